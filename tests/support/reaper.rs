//! Reaping of what a dump or a restore orphans: a zombie keeps its PID busy, and the next restore needs it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// While it lives, orphans of this process's descendants become its children and are reaped when they end.
pub struct Subreaper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Makes the test process a child subreaper. Any number of tests of one process may hold one at the same time.
///
/// Statuses that tests wait for are never taken: the kernel gives orphans to the main thread of a subreaper, while what a test
/// spawns is a child of that test's own thread, and only the main thread's children are reaped here.
pub fn subreaper() -> Subreaper {
    prctl::set_child_subreaper(true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = thread::Builder::new().name("reaper".into()).spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            reap();
            poll(&mut [], PollTimeout::from(5_u8)).unwrap();
        }
        reap();
    });
    Subreaper { stop, thread: Some(thread.unwrap()) }
}

impl Drop for Subreaper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reaps the zombies among the main thread's children.
fn reap() {
    let main = std::process::id();
    let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|word| word.parse().ok()) {
        match waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            // EINVAL: ended by a realtime signal, which nix cannot express; it is reaped all the same.
            Ok(_) | Err(Errno::ECHILD | Errno::EINVAL) => {}
            Err(errno) => panic!("waiting for {pid}: {errno}"),
        }
    }
}

/// Kills every process of a session that a test started.
pub fn kill_session(sid: i32) {
    assert!(sid > 1, "not a session of a test: {sid}");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if super::snapshot::stat(pid).is_some_and(|stat| stat.session == sid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
