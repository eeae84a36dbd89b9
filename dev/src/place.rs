//! Where things lie: everything of a checkout under its own `target/dev`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;

use crate::{chroot, process::Process};

/// The checkout this was built from. `LONGSHORE_DEV_CHECKOUT` names another one.
pub fn checkout() -> PathBuf {
    let built = || {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
    };
    std::env::var_os("LONGSHORE_DEV_CHECKOUT").map_or_else(built, PathBuf::from)
}

/// The folder of everything that is started here: `target/dev`, or one inside of the system that
/// [`chroot::VARIABLE`] names.
pub fn root() -> PathBuf {
    // As the servers see it: a path with a symbolic link in it would lead elsewhere in there.
    let inside = |dir: PathBuf| dir.canonicalize().unwrap_or(dir).join("longshore");
    chroot::folder().map_or_else(|| checkout().join("target/dev"), inside)
}

/// Eight hex digits that differ from checkout to checkout.
pub fn hash() -> String {
    let path = checkout();
    let path = path.canonicalize().unwrap_or(path);
    short_hash(path.as_os_str().as_encoded_bytes())
}

/// FNV-1a, folded to 32 bits: a name, not a secret (<http://www.isthe.com/chongo/tech/comp/fnv/>).
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff)
}

/// A free TCP port of 127.0.0.1, below the range from which the kernel takes the ports of
/// outgoing connections: a stopped server finds its port free again when it comes back.
///
/// # Errors
/// When no port is free.
pub fn free_port() -> anyhow::Result<u16> {
    (0..200)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|port| port_is_free(*port))
        .context("no free port found between 10000 and 32000, stop what listens there")
}

/// Whether nobody listens on this port of 127.0.0.1.
pub fn port_is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// A folder for one test's private servers. It is removed when this is dropped, so declare it
/// before the servers that live in it: locals are dropped in reverse order.
#[derive(Debug)]
pub struct Private(PathBuf);

impl Private {
    /// A new, empty folder `target/dev/private/PID-NUMBER-NAME`. Folders that processes before
    /// us left behind by dying are removed by the way.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let all = root().join("private");
        sweep(&all);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = all.join(format!("{}-{number}-{name}", std::process::id()));
        remove(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Left behind, it is swept by the next process that makes one.
        let _removed = remove(&self.0).is_ok();
    }
}

fn sweep(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let owner =
            entry.file_name().to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| Process::of(pid).is_none()) {
            let _removed = remove(&entry.path()).is_ok();
        }
    }
}

/// Removes a folder with all that is in it; a folder that is not there is fine.
pub(crate) fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn a_private_folder_goes_with_its_owner() {
        let private = Private::new("room").unwrap();
        let path = private.path().to_path_buf();
        assert!(path.is_dir() && path.starts_with(root()));
        drop(private);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_swept() {
        let left = root().join("private").join(format!("{}-0-left", u32::MAX));
        fs::create_dir_all(&left).unwrap();
        let _private = Private::new("sweeper").unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn checkouts_have_different_names() {
        assert_ne!(short_hash(b"/a/longshore"), short_hash(b"/b/longshore"));
        assert_eq!(hash().len(), 8);
    }
}
