//! The Debians: which there are, and how they come into being.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::{chroot, place, programs};

/// Debian's names, the oldest first: RabbitMQ 3.10 and Postgres 15, 4.0 and 17, 4.3 and 18.
const NAMES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// Where debootstrap keeps what it knows of each Debian.
const SCRIPTS: &str = "/usr/share/debootstrap/scripts";

/// One Debian, with its RabbitMQ and its Postgres.
#[derive(Debug)]
pub(super) struct System {
    /// Debian's name for it.
    pub(super) name: &'static str,
    /// Its folder; none where it is the system that runs here.
    pub(super) dir: Option<PathBuf>,
}

/// Where folders and logs are.
pub(super) fn folder() -> PathBuf {
    place::checkout().join("target/compat")
}

/// All of them.
///
/// # Errors
/// When this user could not enter those in folders.
pub(super) fn all() -> anyhow::Result<Vec<System>> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "systems in folders are made by debootstrap and entered by chroot, which only root may \
             (in a container with CAP_SYS_ADMIN and CAP_SYS_CHROOT): run `make compat` as root"
        );
    }
    Ok(NAMES
        .into_iter()
        .map(|name| System { name, dir: (!runs_here(name)).then(|| folder().join(name)) })
        .collect())
}

/// Whether this very system is it, and has both servers.
fn runs_here(name: &str) -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == format!("VERSION_CODENAME={name}"))
        && programs::RabbitPrograms::find(None).is_ok()
        && programs::PostgresPrograms::find(None).is_ok()
}

impl System {
    /// Makes the folder, unless it is there. One that was interrupted begins anew.
    pub(super) async fn set_up(&self) -> anyhow::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        if dir.is_dir() {
            return Ok(());
        }
        let (part, log) = (dir.with_extension("part"), dir.with_extension("setup.log"));
        println!("{:<10} setting up (about a minute, 900 MB), log in {}", self.name, log.display());
        place::remove(&part)?;
        fs::create_dir_all(&part)?;
        let output = fs::File::create(&log)?;
        let mut command = Command::new("unshare");
        // What it mounts while it works goes with it, however it ends.
        command
            .args(["--mount", "--propagation", "private", "--", "debootstrap", "--variant=minbase"])
            // The last is for the tests that step the clock of a server.
            .args(["--include=rabbitmq-server,postgresql,libfaketime", self.name])
            .arg(&part);
        if !Path::new(SCRIPTS).join(self.name).exists() {
            // Newer than this debootstrap: all of them are made alike. The mirror is the default.
            command.args(["", "sid"]);
        }
        let made = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .status()
            .await
            .context("debootstrap cannot be started, run dev/setup.sh compat")?;
        if !made.success() {
            bail!("debootstrap failed for {}, its log is {}", self.name, log.display());
        }
        // Its servers find themselves by name.
        fs::write(part.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        // In one step: a folder of this name is a whole one.
        fs::rename(&part, dir).with_context(|| format!("cannot make {}", dir.display()))
    }

    /// Has a program of ours, and what it starts, work with this system's servers.
    pub(super) fn enter(&self, command: &mut Command) {
        match &self.dir {
            Some(dir) => command.env(chroot::VARIABLE, dir),
            None => command.env_remove(chroot::VARIABLE),
        };
    }

    /// What it has: RabbitMQ and Postgres.
    pub(super) fn versions(&self) -> anyhow::Result<(String, String)> {
        let root = self.dir.as_deref().unwrap_or(Path::new("/"));
        let status = root.join("var/lib/dpkg/status");
        let status = fs::read_to_string(&status)
            .with_context(|| format!("{} cannot be read", status.display()))?;
        let of = |is: &dyn Fn(&str) -> bool| version(&status, is).unwrap_or_else(|| "?".to_owned());
        let postgres = |name: &str| {
            name.strip_prefix("postgresql-").is_some_and(|rest| rest.parse::<u32>().is_ok())
        };
        Ok((of(&|name| name == "rabbitmq-server"), of(&postgres)))
    }
}

/// The version of an installed package, without what Debian adds to it.
fn version(status: &str, is: &dyn Fn(&str) -> bool) -> Option<String> {
    let of = |stanza: &str, field: &str| {
        stanza.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()))
    };
    let stanza =
        status.split("\n\n").find(|stanza| of(stanza, "Package:").is_some_and(|name| is(&name)))?;
    let version = of(stanza, "Version:")?;
    Some(version.split(['-', '+', '~']).next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_packages() {
        let status = "Package: postgresql-common\nVersion: 278\n\nPackage: postgresql-17\nStatus: install ok\n\
                      Version: 17.6-0+deb13u1\n\nPackage: rabbitmq-server\nVersion: 4.0.5-6+deb13u2\n";
        assert_eq!(version(status, &|name| name == "rabbitmq-server").as_deref(), Some("4.0.5"));
        assert_eq!(version(status, &|name| name == "postgresql-17").as_deref(), Some("17.6"));
        assert_eq!(version(status, &|name| name == "redis"), None);
    }
}
