//! Whose Postgres it is: it refuses root, and another user may be unable to reach the checkout.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::{chroot::Chroot, place, programs};

/// The user that the server runs as when we are root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    /// `None` when we are not root: then the server runs as ourselves.
    pub(super) fn find(chroot: Option<&Chroot>) -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        if let Some(chroot) = chroot {
            let user = chroot.user("postgres").with_context(|| {
                format!("Postgres is not installed in {}", chroot.dir().display())
            });
            return user.map(|(uid, gid)| Some(Self { uid, gid }));
        }
        let id = |flag| {
            programs::output("id", &[flag, "postgres"]).and_then(|text| text.trim().parse().ok())
        };
        let missing = "Postgres refuses to run as root and there is no user `postgres`, install the package `postgresql`";
        Ok(Some(Self { uid: id("-u").context(missing)?, gid: id("-g").context(missing)? }))
    }
}

/// Hands a file or folder to the owner.
pub(super) fn give(path: &Path, owner: Option<Owner>) -> anyhow::Result<()> {
    if let Some(owner) = owner {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("cannot give {} to the user postgres", path.display()))?;
    }
    Ok(())
}

/// A new folder that the owner can reach and only the owner can read: `dir/home`, or one under
/// the system's folder for temporary files where the way to `dir` is closed to that user.
/// In another system all ways are open.
pub(super) async fn home(
    dir: &Path,
    owner: Option<Owner>,
    chroot: Option<&Chroot>,
) -> anyhow::Result<PathBuf> {
    let near = dir.join("home");
    make(&near, owner)?;
    let (Some(user), None) = (owner, chroot) else { return Ok(near) };
    let reached = Command::new("sh")
        .args(["-c", "cd \"$1\" && test -w .", "reach"])
        .arg(&near)
        .current_dir("/")
        .uid(user.uid)
        .gid(user.gid)
        .stderr(std::process::Stdio::null())
        .status()
        .await?;
    if reached.success() {
        return Ok(near);
    }
    place::remove(&near)?;
    let name = format!("longshore-{}", place::short_hash(dir.as_os_str().as_encoded_bytes()));
    let far = std::env::temp_dir().join(name);
    if let Ok(meta) = fs::symlink_metadata(&far) {
        // Anybody may write there: only what is certainly ours is removed.
        if !meta.is_dir() || meta.uid() != user.uid {
            bail!("{} is in the way and is not ours, remove it", far.display());
        }
        place::remove(&far)?;
    }
    make(&far, owner)?;
    Ok(far)
}

fn make(path: &Path, owner: Option<Owner>) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    give(path, owner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_closed_way_leads_to_the_temporary_folder_and_an_open_one_does_not() {
        let private = place::Private::new("closed").unwrap();
        let owner = Owner::find(None).unwrap();
        let closed = private.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let home = home(&closed, owner, None).await.unwrap();
        assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        // Where the tests do not run as root the way is always open.
        assert_eq!(home.starts_with(&closed), owner.is_none());
        place::remove(&home).unwrap();
    }
}
