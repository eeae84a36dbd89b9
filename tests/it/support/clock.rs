//! A wall clock that can be stepped while a process runs by it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use longshore_dev::place::Private;

/// Where systems put libfaketime: Debian's folder for each architecture, others' own.
const FOLDERS: [&str; 3] = ["/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime"];
const LIBRARY: &str = "libfaketimeMT.so.1";

/// The wall clock of the processes that are started with its [`Clock::environment`]. Their
/// monotonic clock goes on as ever.
pub(crate) struct Clock {
    library: PathBuf,
    /// Where servers of another system see it, too.
    dir: Private,
}

impl Clock {
    /// A clock that is right.
    pub(crate) fn new() -> Self {
        let library = library().expect(
            "libfaketime is not installed, so no clock can be stepped: run `dev/setup.sh clients`, \
             or on Debian `apt-get install -y libfaketime`",
        );
        let dir = Private::new("clock").unwrap();
        // The database's user reads it, too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let clock = Self { library, dir };
        clock.step_to(0);
        clock
    }

    /// Steps it to so many seconds before (negative) or after the right time.
    pub(crate) fn step_to(&self, seconds: i64) {
        let next = self.dir.path().join("next");
        fs::write(&next, format!("{seconds:+}")).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
        // At once: whoever read a half would take it for no time at all and end.
        fs::rename(next, self.file()).unwrap();
    }

    /// What a process needs to go by it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }
}

fn library() -> Option<PathBuf> {
    let own = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let own = own.map(|entry| entry.path().join("faketime"));
    let folders = own.chain(FOLDERS.iter().map(|folder| Path::new(folder).to_path_buf()));
    folders.map(|folder| folder.join(LIBRARY)).find(|library| library.is_file())
}
