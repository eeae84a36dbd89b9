//! A RabbitMQ node of our own: its ports, its data, its port mapper.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::{
    chroot::Chroot,
    place,
    process::Process,
    programs::RabbitPrograms,
    server::{self, Life},
};

/// How long a node may take to stop in order before it is killed.
const STOP: Duration = Duration::from_secs(30);
/// How long `Drop` waits for a private node, whose data nobody needs any more.
const DROP: Duration = Duration::from_secs(2);
/// How long one `rabbitmqctl` may take; it starts an Erlang of its own.
const CTL: Duration = Duration::from_secs(180);

/// What makes a node the same node when it is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seat {
    node: String,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    server: Option<Process>,
    epmd: Option<Process>,
}

/// A private node. Dropped, it is stopped (unless it is shared); its folder stays.
#[derive(Debug)]
pub struct Rabbit {
    dir: PathBuf,
    seat: Seat,
    programs: RabbitPrograms,
    chroot: Option<Chroot>,
    life: Life,
}

impl Rabbit {
    /// Starts a node with its data in `dir`, which is used again when a node lived there before
    /// and emptied when it does not start on that. `name` becomes part of the node's name. Takes
    /// about 5 s of CPU. Ready means that an AMQP handshake succeeded.
    ///
    /// # Errors
    /// When RabbitMQ is not installed, or when it does not start: with the end of its log.
    pub async fn start(dir: impl AsRef<Path>, name: &str) -> anyhow::Result<Self> {
        Self::start_for(dir.as_ref(), name, Life::Private).await
    }

    pub(crate) async fn start_for(dir: &Path, name: &str, life: Life) -> anyhow::Result<Self> {
        let chroot = Chroot::chosen()?;
        let programs = RabbitPrograms::find(chroot.as_ref())?;
        let old: Option<Seat> = server::read_json(&dir.join("seat.json"));
        for process in old.iter().flat_map(|seat| [seat.server, seat.epmd]).flatten() {
            process.kill().await;
        }
        if let Some(seat) = old.filter(|seat| {
            [seat.port, seat.dist_port, seat.epmd_port].map(place::port_is_free) == [true; 3]
        }) {
            let mut rabbit = Self {
                dir: dir.to_path_buf(),
                seat,
                programs: programs.clone(),
                chroot: chroot.clone(),
                life,
            };
            if rabbit.launch().await.is_ok() {
                return Ok(rabbit);
            }
            rabbit.kill_all().await;
        }
        place::remove(dir)?;
        let seat = Seat {
            node: format!("longshore-{}-{}@localhost", place::hash(), plain(name)),
            port: place::free_port()?,
            dist_port: place::free_port()?,
            epmd_port: place::free_port()?,
            server: None,
            epmd: None,
        };
        let mut rabbit = Self { dir: dir.to_path_buf(), seat, programs, chroot, life };
        if let Err(error) = rabbit.launch().await {
            rabbit.kill_all().await;
            return Err(error);
        }
        Ok(rabbit)
    }

    /// The shared node in `dir`, if it is up.
    pub(crate) async fn running(dir: &Path) -> Option<Self> {
        let seat: Seat = server::read_json(&dir.join("seat.json"))?;
        seat.server.filter(Process::is_alive)?;
        let chroot = Chroot::chosen().ok()?;
        let programs = RabbitPrograms::find(chroot.as_ref()).ok()?;
        let rabbit = Self { dir: dir.to_path_buf(), seat, programs, chroot, life: Life::Shared };
        tokio::time::timeout(server::TALK, rabbit.talk())
            .await
            .is_ok_and(|answer| answer.is_ok())
            .then_some(rabbit)
    }

    /// Ends whatever runs for this folder; true when something did.
    pub(crate) async fn end(dir: &Path) -> bool {
        let Some(seat) = server::read_json::<Seat>(&dir.join("seat.json")) else { return false };
        let ran = seat.server.is_some_and(|process| process.is_alive());
        if let Some(process) = seat.server {
            process.ask(Signal::TERM, STOP).await;
            process.kill().await;
        }
        if let Some(epmd) = seat.epmd {
            epmd.kill().await;
        }
        ran
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        for folder in ["", "data", "log", "home", "config"] {
            fs::create_dir_all(self.dir.join(folder))
                .with_context(|| format!("cannot create {}", self.dir.display()))?;
        }
        fs::write(
            self.dir.join("config/rabbitmq.conf"),
            format!("listeners.tcp.local = 127.0.0.1:{}\n", self.seat.port),
        )?;
        fs::write(self.dir.join("config/enabled_plugins"), "[].\n")?;
        fs::write(self.dir.join("config/rabbitmq-env.conf"), "")?;
        if !self.seat.epmd.is_some_and(|epmd| epmd.is_alive()) {
            let mut epmd = self.program(&self.programs.epmd);
            epmd.args(["-port", &self.seat.epmd_port.to_string(), "-address", "127.0.0.1"])
                .current_dir(&self.dir);
            self.seat.epmd = Some(server::spawn(epmd, &self.dir.join("log/epmd.log"), self.life)?);
        }
        let mut command = self.command(&self.programs.server);
        // By this the script becomes the Erlang machine instead of waiting for it: one pid, which
        // takes SIGTERM as the request for an orderly stop.
        command.env("RUNNING_UNDER_SYSTEMD", "true");
        let process = server::spawn(command, &self.dir.join("log/console.log"), self.life)?;
        self.seat.server = Some(process);
        server::write_json(&self.dir.join("seat.json"), &self.seat)?;
        let console = self.dir.join("log/console.log");
        server::until_ready("RabbitMQ", process, &[&console, &self.log()], || self.talk()).await
    }

    /// A program of RabbitMQ's, in the system that it belongs to.
    fn program(&self, program: &Path) -> Command {
        match &self.chroot {
            Some(chroot) => chroot.command(program, (0, 0)),
            None => Command::new(program),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let dir = |name: &str| self.dir.join(name);
        let mut command = self.program(program);
        command
            // A stray RABBITMQ_… variable of the user's would make it another node.
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("LANG", "C.UTF-8")
            .env("HOME", dir("home"))
            .env("RABBITMQ_NODENAME", &self.seat.node)
            .env("RABBITMQ_NODE_PORT", self.seat.port.to_string())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_DIST_PORT", self.seat.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", dir("data"))
            .env("RABBITMQ_LOG_BASE", dir("log"))
            .env("RABBITMQ_LOGS", self.log())
            .env("RABBITMQ_CONFIG_FILE", dir("config/rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir("config/advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", dir("config/rabbitmq-env.conf"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", dir("config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir("config/enabled_plugins"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("RABBITMQ_CTL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.seat.epmd_port.to_string())
            .current_dir(&self.dir);
        command
    }

    async fn talk(&self) -> anyhow::Result<()> {
        // Knocking first keeps the client library from logging every refused attempt.
        tokio::net::TcpStream::connect(("127.0.0.1", self.seat.port)).await?;
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
        connection.close(200, "bye".into()).await?;
        Ok(())
    }

    /// Where it is reached: `amqp://guest:guest@127.0.0.1:PORT/%2f`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.seat.port)
    }

    /// The same: the only user may do everything.
    pub fn admin_url(&self) -> String {
        self.url()
    }

    /// Its host and port, for a [`crate::proxy::Proxy`].
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.seat.port).into()
    }

    /// The node's name in Erlang.
    pub fn node(&self) -> &str {
        &self.seat.node
    }

    /// The pid of the Erlang machine, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.seat.server.filter(Process::is_alive).map(|process| process.pid)
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log/rabbit.log")
    }

    /// Stops it in order. Data and ports are kept for [`Rabbit::start_again`].
    ///
    /// # Errors
    /// When it had to be killed, for then the stop was not in order.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(process) = self.seat.server else { return Ok(()) };
        if process.ask(Signal::TERM, STOP).await {
            return Ok(());
        }
        process.kill().await;
        bail!(
            "RabbitMQ did not stop within {STOP:?} and was killed{}",
            server::tail(&[&self.log()])
        );
    }

    /// Kills the whole node at once, as a power cut would.
    pub async fn kill(&mut self) {
        if let Some(process) = self.seat.server {
            process.kill().await;
        }
    }

    async fn kill_all(&mut self) {
        self.kill().await;
        if let Some(epmd) = self.seat.epmd {
            epmd.kill().await;
        }
    }

    /// Starts it on the same ports and data after [`Rabbit::stop`] or [`Rabbit::kill`].
    ///
    /// # Errors
    /// As [`Rabbit::start`]; the data stay as they are.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.kill().await;
        self.launch().await
    }

    /// Runs `rabbitmqctl` against this node and returns what it printed.
    ///
    /// # Errors
    /// When it fails (with its words) or takes longer than three minutes.
    pub async fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(&self.programs.ctl);
        command
            .arg("--node")
            .arg(&self.seat.node)
            .args(args)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(CTL, command.output()).await.with_context(|| {
            format!("rabbitmqctl {} took longer than {CTL:?}", args.join(" "))
        })??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "rabbitmqctl {} failed: {text}{}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if self.life == Life::Private {
            for process in [self.seat.server, self.seat.epmd].into_iter().flatten() {
                process.end_blocking(Signal::TERM, DROP);
            }
        }
    }
}

/// Only what Erlang takes in a node's name.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect()
}
