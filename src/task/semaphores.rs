//! Semaphore adjustments: what semop(2) with SEM_UNDO keeps for the end of a process. They cannot be read, and are lost.
//!
//! Whether a process has a list for them at all is told by kcmp(2), against a new process, which has none. Every process of several threads has one.
//! Where there is no semaphore there is nothing in any list.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::sys::process::stub::{OnParentDeath, StubPid, clone_with_pid};
use crate::sys::process::{KcmpType, kcmp, pidfd_send_signal, wait4};

/// Adds to the losses who may have adjustments.
///
/// Each process comes with a living thread.
pub fn record(images: &mut Images, processes: &[(Pid, Tid)]) -> Result<()> {
    if !exist()? {
        return Ok(());
    }
    let new = clone_with_pid(StubPid::Any, 0, OnParentDeath::Die).during("making a process", Subject::None)?;
    let lists = processes.iter().map(|(pid, tid)| {
        let order = kcmp(*tid, new.pid.into(), KcmpType::Sysvsem, 0, 0);
        Ok((*pid, order.map_err(|errno| Error::of_pid("comparing the semaphore adjustments", *pid, errno))?.is_ne()))
    });
    let lists = lists.collect::<Result<Vec<(Pid, bool)>>>();
    let ended = pidfd_send_signal(new.handle.as_fd(), libc::SIGKILL).and_then(|()| wait4(new.pid, libc::__WALL));
    ended.during("ending a process", Subject::None)?;
    let loss = |pid: Pid| pb::PtyagentLoss {
        pid: Some(pid.0 as u32),
        fd: None,
        text: Some("changes of semaphores that are to be undone at its end (SEM_UNDO), if it has made any".into()),
    };
    let losers = lists?.into_iter().filter(|(_, has_list)| *has_list).map(|(pid, _)| loss(pid));
    images.own.get_or_insert_default().losses.extend(losers);
    Ok(())
}

/// Whether this IPC namespace has semaphores; the first line of the table names its columns.
fn exist() -> Result<bool> {
    let path = Path::new("/proc/sysvipc/sem");
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().nth(1).is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("reading", Subject::Path(path.into()), &error)),
    }
}
