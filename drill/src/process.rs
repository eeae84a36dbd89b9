//! A process that is known by more than its number: pids are used again, start times are not.

use std::{collections::HashMap, fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often a dying process is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long the kernel gets to remove what was killed.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// One process of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`
    /// (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>).
    started: u64,
}

/// What `/proc/PID/stat` says that matters here.
struct Stat {
    zombie: bool,
    parent: u32,
    /// Processor time so far, in user and in kernel mode, in clock ticks.
    worked: u64,
    /// The same of children that have ended and were waited for.
    reaped: u64,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets and may itself hold brackets and blanks.
    let mut fields = text.rsplit_once(") ")?.1.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X" | "x");
    let parent = fields.next()?.parse().ok()?;
    let user: u64 = fields.nth(9)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let reaped_user: u64 = fields.next()?.parse().ok()?;
    let reaped_system: u64 = fields.next()?.parse().ok()?;
    let started = fields.nth(4)?.parse().ok()?;
    let reaped = reaped_user + reaped_system;
    Some(Stat { zombie, parent, worked: user + system, reaped, started })
}

/// Clock ticks as time.
fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Waits, blocking, until none of them is alive, but no longer than `limit`.
fn gone_within(family: &[Process], limit: Duration) {
    let until = std::time::Instant::now() + limit;
    while family.iter().any(Process::is_alive) && std::time::Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

impl Process {
    /// The process with this number, if there is one that has not ended.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat(pid).filter(|stat| !stat.zombie)?;
        Some(Self { pid, started: stat.started })
    }

    /// This very process.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> anyhow::Result<Self> {
        Self::of(std::process::id()).ok_or_else(|| {
            anyhow::anyhow!("/proc is not readable, mount it: pids are followed there")
        })
    }

    /// Whether it still runs. A zombie does not, nor does a stranger under the same number.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// The processor time that all its threads have taken so far; a clock tick is 10 ms.
    pub fn worked(&self) -> Option<Duration> {
        let stat = stat(self.pid).filter(|stat| stat.started == self.started)?;
        Some(ticks(stat.worked))
    }

    /// [`Process::worked`], with that of all that it has started: of what has ended as well, if it
    /// was waited for.
    pub fn worked_with_family(&self) -> Duration {
        let mut family = self.descendants();
        family.push(*self);
        let known = family
            .iter()
            .filter_map(|member| stat(member.pid).filter(|stat| stat.started == member.started));
        ticks(known.map(|stat| stat.worked + stat.reaped).sum())
    }

    /// Its resident memory, in bytes: the second field of `/proc/PID/statm`
    /// (<https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html>).
    pub fn resident(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// Sends a signal; false when there was nobody to send it to.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_alive()
            && i32::try_from(self.pid)
                .ok()
                .and_then(Pid::from_raw)
                .is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Its children, their children and so on, as they are now.
    pub fn descendants(&self) -> Vec<Self> {
        let mut children: HashMap<u32, Vec<Self>> = HashMap::new();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            if let Some(stat) = stat(pid).filter(|stat| !stat.zombie) {
                children.entry(stat.parent).or_default().push(Self { pid, started: stat.started });
            }
        }
        let mut family = vec![*self];
        let mut next = 0;
        while let Some(member) = family.get(next) {
            family.extend(children.remove(&member.pid).unwrap_or_default());
            next += 1;
        }
        family.split_off(1)
    }

    /// Asks it to end with `signal`; true when it has ended within `grace`.
    pub async fn ask(&self, signal: Signal, grace: Duration) -> bool {
        self.signal(signal);
        let until = Instant::now() + grace;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Kills it and everything under it, and waits until they are gone.
    pub async fn kill(&self) {
        let family = self.kill_family();
        let until = Instant::now() + AFTER_KILL;
        while family.iter().any(Self::is_alive) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// [`Process::ask`], then [`Process::kill`], for `Drop`, where nothing can be awaited.
    pub fn end_blocking(&self, signal: Signal, grace: Duration) {
        // Taken before: a dead parent's children belong to somebody else.
        let mut family = self.descendants();
        self.signal(signal);
        gone_within(&[*self], grace);
        family.extend(self.kill_family());
        for member in &family {
            member.signal(Signal::KILL);
        }
        // A signal is on its way when `kill` returns, and what it ends may still be there.
        gone_within(&family, AFTER_KILL);
    }

    fn kill_family(&self) -> Vec<Self> {
        let mut family = self.descendants();
        family.insert(0, *self);
        for member in &family {
            member.signal(Signal::KILL);
        }
        family
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn shell(script: &str) -> (std::process::Child, Process) {
        let child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        (child, process)
    }

    #[tokio::test]
    async fn a_process_that_listens_ends_when_asked() {
        let (mut child, process) = shell("exec sleep 600");
        assert!(process.is_alive());
        assert!(process.ask(Signal::TERM, Duration::from_secs(20)).await);
        assert!(!process.is_alive(), "a zombie counts as ended");
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn killing_takes_the_whole_family() {
        use std::io::Read;
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        let mut grandchild = String::new();
        let out = child.stdout.as_mut().unwrap();
        while out.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            grandchild.push(char::from(byte[0]));
        }
        let process = Process::of(child.id()).unwrap();
        let grandchild = Process::of(grandchild.parse().unwrap()).unwrap();
        assert_eq!(process.descendants(), [grandchild]);
        process.kill().await;
        assert!(!grandchild.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn what_does_not_listen_is_gone_when_ending_it_returns() {
        use std::io::Read;
        // Deaf to TERM, and large enough that the kernel takes a while to take it apart.
        let script = "trap '' TERM; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ready; \
                      while :; do sleep 600; done";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        let process = Process::of(child.id()).unwrap();
        process.end_blocking(Signal::TERM, LOOK);
        assert!(!process.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn the_time_of_children_counts_when_they_have_ended_too() {
        let (mut child, process) =
            shell("i=0; sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; exec sleep 600");
        let give_up = std::time::Instant::now() + Duration::from_secs(60);
        while stat(process.pid).unwrap().reaped == 0 {
            assert!(std::time::Instant::now() < give_up, "the child took no time");
            std::thread::sleep(LOOK);
        }
        assert!(process.worked_with_family() > process.worked().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_process_under_the_same_number_is_a_stranger() {
        let me = Process::current().unwrap();
        let stranger = Process { started: me.started + 1, ..me };
        assert!(me.is_alive() && !stranger.is_alive());
        assert!(!stranger.signal(Signal::KILL), "or this test would be its own victim");
    }
}
