//! Servers of another system: one that lies in a folder of its own and is entered by `chroot`, so
//! that the same tests meet other versions of RabbitMQ and Postgres.
//!
//! Each server gets a mount namespace of its own for `/proc` and `/dev`: the kernel undoes these
//! mounts with the server's last process, however it dies, and nobody else ever sees them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::place;

/// Names the folder, from the checkout or absolute.
pub const VARIABLE: &str = "LONGSHORE_DEV_ROOT";

/// `$1` is the folder, `$2` the user and group; then comes the program with its arguments. Each
/// step becomes the next, so the pid stays that of the server.
const ENTER: &str = r#"
dir=$1; user=$2; shift 2
mount --bind /proc "$dir/proc" && mount --rbind /dev "$dir/dev" || exit 1
exec chroot --userspec="$user" "$dir" "$@"
"#;

/// The folder of another system, inside of which the servers run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chroot(PathBuf);

impl Chroot {
    /// The folder that the environment names, if it does, made ready to be entered.
    ///
    /// # Errors
    /// When there is no system in it, or this user may not enter it; says what to do.
    pub fn chosen() -> anyhow::Result<Option<Self>> {
        let Some(dir) = folder() else { return Ok(None) };
        if !rustix::process::geteuid().is_root() {
            bail!(
                "{VARIABLE} is set: servers of another system are entered by unshare, mount and chroot, \
                 which only root may (in a container with CAP_SYS_ADMIN and CAP_SYS_CHROOT). Run as root, or unset it"
            );
        }
        let system = dir.canonicalize().ok().filter(|dir| dir.join("etc/passwd").is_file());
        let dir = system.with_context(|| {
            format!(
                "{VARIABLE}: there is no system in {}, set it up by `make compat`",
                dir.display()
            )
        })?;
        let chroot = Self(dir);
        chroot.mirror()?;
        Ok(Some(chroot))
    }

    /// The path of the folder is made to lead to the root inside: what lies in it has the same
    /// name for us and for the servers.
    fn mirror(&self) -> anyhow::Result<()> {
        let inside = self.0.join(self.0.strip_prefix("/").unwrap_or(&self.0));
        let fault = || format!("cannot make {}", inside.display());
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent).with_context(fault)?;
        }
        match std::os::unix::fs::symlink("/", &inside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(fault)
            }
            _ => Ok(()),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// User and group of this name in there.
    pub(crate) fn user(&self, name: &str) -> Option<(u32, u32)> {
        let users = fs::read_to_string(self.0.join("etc/passwd")).ok()?;
        users.lines().find_map(|line| {
            // name:password:uid:gid:…
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    }

    /// A command that runs `program` in there, as this user and group; arguments may be added.
    ///
    /// The program is called by its name inside. By the one outside, which leads there through a
    /// link to the root, a `rabbitmqctl` of Erlang 27 does not find the modules in its own archive.
    pub(crate) fn command(&self, program: &Path, (user, group): (u32, u32)) -> Command {
        let inside = Path::new("/").join(program.strip_prefix(&self.0).unwrap_or(program));
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", ENTER, "enter"])
            .arg(&self.0)
            .arg(format!("{user}:{group}"))
            .arg(inside);
        command
    }
}

/// What the environment names, whether or not it is there.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()).map(|dir| place::checkout().join(dir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn a_path_of_the_folder_means_the_same_inside() {
        let private = place::Private::new("chroot").unwrap();
        let chroot = Chroot(private.path().canonicalize().unwrap());
        for _again in 0..2 {
            chroot.mirror().unwrap();
        }
        let inside = chroot.0.join(chroot.0.strip_prefix("/").unwrap());
        assert_eq!(fs::read_link(inside).unwrap(), Path::new("/"));
    }

    #[test]
    fn users_are_those_of_the_system_inside() {
        let private = place::Private::new("users").unwrap();
        let chroot = Chroot(private.path().to_path_buf());
        assert_eq!(chroot.user("postgres"), None);
        fs::create_dir(private.path().join("etc")).unwrap();
        fs::write(
            private.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:104:106::/var/lib/postgresql:/bin/sh\n",
        )
        .unwrap();
        assert_eq!(chroot.user("postgres"), Some((104, 106)));
        assert_eq!(chroot.user("postgre"), None);
    }
}
