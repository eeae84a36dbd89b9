//! A Postgres of our own: its port, its data, its databases.

mod databases;
mod owner;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use self::owner::Owner;
use crate::{
    chroot::Chroot,
    place,
    process::Process,
    programs::PostgresPrograms,
    server::{self, Life},
};

/// How long a server may take to stop in order before it is killed.
const STOP: Duration = Duration::from_secs(20);
/// How long `Drop` waits for a private server, whose data nobody needs any more.
const DROP: Duration = Duration::from_secs(2);

/// What makes a server the same server when it is started again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seat {
    port: u16,
    /// Trust would let every user of this machine be a superuser, who can run programs.
    password: String,
    /// Lies elsewhere when the server's user cannot reach `dir`.
    home: PathBuf,
    server: Option<Process>,
}

/// A private server. Dropped, it is stopped (unless it is shared); its folder stays, save for a
/// part that had to lie outside of it.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    seat: Seat,
    programs: PostgresPrograms,
    chroot: Option<Chroot>,
    owner: Option<Owner>,
    life: Life,
    /// `name=value`, beside those that every server of ours has.
    settings: Vec<String>,
}

impl Postgres {
    /// Starts a server with its data in `dir`, which is used again when a server lived there
    /// before and emptied when it does not start on that. As root it runs as the user `postgres`,
    /// for it refuses root. Ready means that a query was answered. fsync is on.
    ///
    /// # Errors
    /// When Postgres is not installed, or when it does not start: with the end of its log.
    pub async fn start(dir: impl AsRef<Path>) -> anyhow::Result<Self> {
        Self::start_for(dir.as_ref(), Life::Private, &[]).await
    }

    /// The same; `settings` are its own, each as `name=value`.
    pub(crate) async fn start_for(
        dir: &Path,
        life: Life,
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let settings: Vec<String> = settings.iter().map(|set| (*set).to_owned()).collect();
        let chroot = Chroot::chosen()?;
        let programs = PostgresPrograms::find(chroot.as_ref())?;
        let owner = Owner::find(chroot.as_ref())?;
        let old: Option<Seat> = server::read_json(&dir.join("seat.json"));
        if let Some(process) = old.as_ref().and_then(|seat| seat.server) {
            process.kill().await;
        }
        if let Some(seat) = old.filter(|seat| {
            place::port_is_free(seat.port) && seat.home.join("data/PG_VERSION").is_file()
        }) {
            let mut postgres = Self {
                dir: dir.to_path_buf(),
                seat,
                programs: programs.clone(),
                chroot: chroot.clone(),
                owner,
                life,
                settings: settings.clone(),
            };
            if postgres.launch().await.is_ok() {
                return Ok(postgres);
            }
            postgres.kill().await;
            place::remove(&postgres.seat.home)?;
            // Not by `drop`, which would stop once more what has been killed.
            postgres.seat.server = None;
        }
        place::remove(dir)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let home = owner::home(dir, owner, chroot.as_ref()).await?;
        let seat = Seat {
            port: place::free_port()?,
            password: uuid::Uuid::now_v7().simple().to_string(),
            home,
            server: None,
        };
        let mut postgres =
            Self { dir: dir.to_path_buf(), seat, programs, chroot, owner, life, settings };
        postgres.create().await?;
        if let Err(error) = postgres.launch().await {
            postgres.kill().await;
            return Err(error);
        }
        Ok(postgres)
    }

    /// The shared server in `dir`, if it is up.
    pub(crate) async fn running(dir: &Path) -> Option<Self> {
        let seat: Seat = server::read_json(&dir.join("seat.json"))?;
        seat.server.filter(Process::is_alive)?;
        let chroot = Chroot::chosen().ok()?;
        let programs = PostgresPrograms::find(chroot.as_ref()).ok()?;
        let owner = Owner::find(chroot.as_ref()).ok()?;
        let dir = dir.to_path_buf();
        let (life, settings) = (Life::Shared, Vec::new());
        let postgres = Self { dir, seat, programs, chroot, owner, life, settings };
        tokio::time::timeout(server::TALK, postgres.talk())
            .await
            .is_ok_and(|answer| answer.is_ok())
            .then_some(postgres)
    }

    /// Ends whatever runs for this folder; true when something did. What had to lie outside of
    /// the folder is removed.
    pub(crate) async fn end(dir: &Path) -> bool {
        let Some(seat) = server::read_json::<Seat>(&dir.join("seat.json")) else { return false };
        let ran = seat.server.is_some_and(|process| process.is_alive());
        if let Some(process) = seat.server {
            process.ask(Signal::INT, STOP).await;
            process.kill().await;
        }
        if !seat.home.starts_with(dir) {
            let _removed = place::remove(&seat.home).is_ok();
        }
        ran
    }

    async fn create(&self) -> anyhow::Result<()> {
        let secret = self.seat.home.join("password");
        fs::write(&secret, &self.seat.password)?;
        owner::give(&secret, self.owner)?;
        let mut command = self.command(&self.programs.initdb);
        command
            .args([
                "--username=postgres",
                "--auth-host=password",
                "--auth-local=reject",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--no-sync", "--no-instructions"])
            .arg(format!("--pwfile={}", secret.display()))
            .arg("--pgdata")
            .arg(self.seat.home.join("data"))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(server::START, command.output())
            .await
            .context("initdb took too long")??;
        fs::remove_file(&secret)?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = self.command(&self.programs.postgres);
        command
            .arg("-D")
            .arg(self.seat.home.join("data"))
            .arg("-p")
            .arg(self.seat.port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=on",
            "max_connections=300",
            "logging_collector=off",
            "log_destination=stderr",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting.as_str()]);
        }
        let process = server::spawn(command, &self.log(), self.life)?;
        self.seat.server = Some(process);
        server::write_json(&self.dir.join("seat.json"), &self.seat)?;
        server::until_ready("Postgres", process, &[&self.log()], || self.talk()).await
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = match (&self.chroot, self.owner) {
            (Some(chroot), Some(owner)) => chroot.command(program, (owner.uid, owner.gid)),
            _ => Command::new(program),
        };
        command
            // A stray PG… variable of the user's would change it.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("LANG", "C")
            .current_dir(&self.seat.home);
        if let (Some(owner), None) = (self.owner, &self.chroot) {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    async fn talk(&self) -> anyhow::Result<()> {
        longshore_drill::database::connect(&self.admin_url())
            .await?
            .simple_query("SELECT 1")
            .await?;
        Ok(())
    }

    /// The database `postgres` as superuser: `postgres://postgres:PASSWORD@127.0.0.1:PORT/postgres`.
    pub fn admin_url(&self) -> String {
        self.url_of("postgres")
    }

    /// The same as [`Postgres::admin_url`]; tests take a database of their own, see
    /// [`Postgres::create_database`].
    pub fn url(&self) -> String {
        self.admin_url()
    }

    /// Where a database of this server is reached.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{}/{database}",
            self.seat.password, self.seat.port
        )
    }

    /// Its host and port, for a [`crate::proxy::Proxy`].
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.seat.port).into()
    }

    /// The pid of the postmaster, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.seat.server.filter(Process::is_alive).map(|process| process.pid)
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// The folder of its data, which only its own user may read.
    pub fn data(&self) -> PathBuf {
        self.seat.home.join("data")
    }

    /// Stops it in order, ending its clients' sessions. Data and port are kept for
    /// [`Postgres::start_again`].
    ///
    /// # Errors
    /// When it had to be killed, for then the stop was not in order.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(process) = self.seat.server else { return Ok(()) };
        // SIGINT is the fast shutdown; SIGTERM waits until the last client has gone:
        // https://www.postgresql.org/docs/15/server-shutdown.html
        if process.ask(Signal::INT, STOP).await {
            return Ok(());
        }
        process.kill().await;
        bail!(
            "Postgres did not stop within {STOP:?} and was killed{}",
            server::tail(&[&self.log()])
        );
    }

    /// Kills it with all its sessions at once, as a power cut would.
    pub async fn kill(&mut self) {
        if let Some(process) = self.seat.server {
            process.kill().await;
        }
    }

    /// Starts it on the same port and data after [`Postgres::stop`] or [`Postgres::kill`].
    ///
    /// # Errors
    /// As [`Postgres::start`]; the data stay as they are.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.kill().await;
        self.launch().await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.life == Life::Private {
            if let Some(process) = self.seat.server {
                process.end_blocking(Signal::INT, DROP);
            }
            if !self.seat.home.starts_with(&self.dir) {
                let _removed = place::remove(&self.seat.home).is_ok();
            }
        }
    }
}
