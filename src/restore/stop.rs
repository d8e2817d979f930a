//! Stopping a task that was stopped, once it is let go.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::image::pb;
use crate::procfs::{Stat, State, Status};

/// Whether a stop signal would still stop the task: default action, not blocked.
pub fn stop_action(core: &pb::CoreEntry, signal: i32) -> bool {
    let Some(task) = &core.tc else { return false };
    let blocked = task.blk_sigset & (1 << (signal - 1).max(0)) != 0;
    let default = crate::task::signals::settable()
        .zip(&task.sigactions)
        .find(|(number, _)| *number == signal)
        .is_none_or(|(_, action)| action.sigaction == 0);
    default && !blocked
}

/// Waits until a thread that was let go has stopped; a signal that was taken and did not stop it is followed by one that does.
pub fn await_stop(tid: Tid, send: impl Fn(i32) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let mut insisted = false;
    loop {
        if Stat::read(Pid(tid.0))?.state == State::Stopped {
            return Ok(());
        }
        if !insisted && start.elapsed().as_millis() > 50 && !is_on_its_way(tid)? {
            insisted = true;
            send(libc::SIGSTOP)?;
        }
        if start.elapsed().as_secs() > 5 {
            return Err(Error::failed(format!("thread {tid} did not stop again")));
        }
        std::thread::yield_now();
    }
}

/// Whether a stop signal waits for a thread that has not run yet.
fn is_on_its_way(tid: Tid) -> Result<bool> {
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let signals = Status::read(Pid(tid.0))?.signals;
    Ok(stops.iter().any(|signal| (signals.pending | signals.shared_pending) & 1 << (signal - 1) != 0))
}
