//! Where the installed servers are. Asked of their packages first, for no two distributions agree.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow};

use crate::chroot::Chroot;

/// RabbitMQ's programs.
#[derive(Debug, Clone)]
pub struct RabbitPrograms {
    /// The `rabbitmq-server` of RabbitMQ's own `sbin`: Debian's wrapper of that name insists on
    /// the system's user and folders.
    pub server: PathBuf,
    /// `rabbitmqctl`, from the same folder.
    pub ctl: PathBuf,
    /// Erlang's port mapper.
    pub epmd: PathBuf,
}

/// Postgres' programs.
#[derive(Debug, Clone)]
pub struct PostgresPrograms {
    /// Creates a data folder.
    pub initdb: PathBuf,
    /// The server.
    pub postgres: PathBuf,
}

impl RabbitPrograms {
    /// Looks where `dpkg` says, beside `rabbitmqctl`, and in the usual places; of another system
    /// in the places of its packages only.
    ///
    /// # Errors
    /// Says what to install.
    pub fn find(chroot: Option<&Chroot>) -> anyhow::Result<Self> {
        if let Some(chroot) = chroot {
            return Self::inside(chroot.dir());
        }
        let missing = || {
            anyhow!(
                "rabbitmq-server was not found, install it: `apt-get install rabbitmq-server` or `make setup`"
            )
        };
        let listed = output("dpkg", &["-L", "rabbitmq-server"]).unwrap_or_default();
        let by_package =
            listed.lines().map(PathBuf::from).filter(|path| path.ends_with("sbin/rabbitmq-server"));
        // `rabbitmqctl` may be a link into the folder that is looked for.
        let by_neighbour = in_path("rabbitmqctl")
            .into_iter()
            .chain([PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmqctl")])
            .filter_map(|ctl| Some(ctl.canonicalize().ok()?.parent()?.join("rabbitmq-server")));
        let by_place =
            ["/usr/lib/rabbitmq/lib", "/opt", "/usr/local/lib"].iter().flat_map(|folder| {
                children(Path::new(folder))
                    .into_iter()
                    .map(|child| child.join("sbin/rabbitmq-server"))
            });
        let server = by_package
            .chain(by_neighbour)
            .chain(by_place)
            // The whole installation has `rabbitmq-env` beside it; Debian's wrapper has not.
            .find(|path| path.is_file() && path.with_file_name("rabbitmq-env").is_file())
            .ok_or_else(missing)?;
        let ctl = server.with_file_name("rabbitmqctl");
        let by_erlang = || {
            children(Path::new("/usr/lib/erlang"))
                .into_iter()
                .map(|erts| erts.join("bin/epmd"))
                .find(|path| path.is_file())
        };
        let epmd = in_path("epmd")
            .or_else(by_erlang)
            .context("epmd was not found, install it: `apt-get install erlang-base`")?;
        Ok(Self { server, ctl, epmd })
    }

    fn inside(dir: &Path) -> anyhow::Result<Self> {
        let file = |folder: &str, name: &str| {
            let found = children(&dir.join(folder)).into_iter().map(|child| child.join(name));
            found.into_iter().find(|path| path.is_file())
        };
        let missing = || format!("RabbitMQ is not installed in {}", dir.display());
        let server = file("usr/lib/rabbitmq/lib", "sbin/rabbitmq-server").with_context(missing)?;
        let epmd = file("usr/lib/erlang", "bin/epmd").with_context(missing)?;
        Ok(Self { ctl: server.with_file_name("rabbitmqctl"), server, epmd })
    }
}

impl PostgresPrograms {
    /// Looks where `pg_config` says, in `PATH`, and in Debian's places, the newest version first;
    /// of another system in Debian's places only.
    ///
    /// # Errors
    /// Says what to install.
    pub fn find(chroot: Option<&Chroot>) -> anyhow::Result<Self> {
        if let Some(chroot) = chroot {
            return children(&chroot.dir().join("usr/lib/postgresql"))
                .into_iter()
                .map(|version| version.join("bin"))
                .find(|dir| dir.join("initdb").is_file())
                .map(|dir| Self { initdb: dir.join("initdb"), postgres: dir.join("postgres") })
                .with_context(|| {
                    format!("Postgres is not installed in {}", chroot.dir().display())
                });
        }
        let by_config = output("pg_config", &["--bindir"]).map(|dir| PathBuf::from(dir.trim()));
        let by_path = in_path("initdb")
            .and_then(|path| Some(path.canonicalize().ok()?.parent()?.to_path_buf()));
        let mut by_place = children(Path::new("/usr/lib/postgresql"));
        by_place
            .sort_by_key(|dir| dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
        by_config
            .into_iter()
            .chain(by_path)
            .chain(by_place.into_iter().rev().map(|version| version.join("bin")))
            // `pg_config` alone comes with libpq-dev and knows a folder without a server.
            .find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
            .map(|dir| Self { initdb: dir.join("initdb"), postgres: dir.join("postgres") })
            .context("the Postgres server was not found, install it: `apt-get install postgresql` or `make setup`")
    }
}

/// The first file of this name in `PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

pub(crate) fn output(program: &str, args: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn the_servers_are_found_and_are_not_wrappers() {
        let chroot = Chroot::chosen().unwrap();
        let rabbit = RabbitPrograms::find(chroot.as_ref()).unwrap();
        assert!(rabbit.ctl.is_file() && rabbit.server.with_file_name("rabbitmq-env").is_file());
        let postgres = PostgresPrograms::find(chroot.as_ref()).unwrap();
        assert!(postgres.initdb.is_file());
    }
}
