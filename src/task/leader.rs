//! A main thread that has ended while other threads of its process run on: a zombie until the last of them has ended.
//!
//! /proc shows the process through any other thread, and one of those takes the main thread's part: it is the *host*, which the parasite goes
//! into. What is left of the main thread is what /proc tells of a zombie: its exit status, name, credentials, scheduling and signal sets.
//!
//! On the way back the main thread builds the process up to where threads are made, makes the host, gives itself what is its own, and ends,
//! before any child has asked to be told of its parent's death.
//!
//! Refused: a main thread that had seccomp filters, which nobody can read any more, or that did not end by itself, a stopped process, whose
//! stop hides the exit status, and all of it before Linux 6.9, where open files can be had through the main thread alone.
//! Its parent-death signal cannot be seen, and is lost.

use super::survey::TaskFacts;
use super::thread::{self, ThreadFacts, Told};
use crate::error::{Errno, Error, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::procfs::{Stat, Status};
use crate::sys::process::pidfd_open_thread;
use crate::sys::ptrace;
use crate::trace::Stopped;

/// struct siginfo.
const SIGINFO: usize = 128;
const SI_TKILL: i32 = -6;

/// What is left of it.
#[derive(Debug)]
pub struct Ended {
    facts: ThreadFacts,
    /// As wait(2) encodes it.
    status: u32,
}

/// Refuses the process where this kernel does not let us look at it.
pub fn refuse_unseen(task: &TaskFacts) -> Result<()> {
    match pidfd_open_thread(task.body) {
        Err(Errno::EINVAL) => {
            refuse(task.pid, task.comm(), "", "end the program, then try again, or use Linux 6.9 or newer")
        }
        Err(errno) => Err(Error::of_tid("pinning", task.body, errno)),
        Ok(_) => Ok(()),
    }
}

/// Refuses what cannot be given again.
pub fn refuse_unsupported(task: &TaskFacts) -> Result<()> {
    const END: &str = "end the program, then dump again";
    if Status::read_thread(task.pid, task.pid.into())?.seccomp != Some(0) {
        return refuse(task.pid, task.comm(), ", under a seccomp filter that nobody can read any more", END);
    }
    // A stop shows its signal in the place of the status; it is refused when everything has stopped.
    if task.stat.exit_code & 0xff == 0 || task.stat.exit_code & 0xff == 0x7f {
        return Ok(());
    }
    refuse(task.pid, task.comm(), ", and did not do so by itself", END)
}

fn refuse<T>(pid: Pid, comm: String, how: &str, remedy: &str) -> Result<T> {
    let kind = format!("its main thread has ended while others run on{how}");
    Err(Error::Refused(Refusal { pid, comm, fd: None, kind, remedy: remedy.into() }))
}

/// Reads what is left of it; the process is frozen, and `stop_signal` had stopped it.
pub fn read(task: &TaskFacts, stop_signal: Option<i32>) -> Result<Option<Ended>> {
    if !task.has_lost_leader() {
        return Ok(None);
    }
    let (pid, tid) = (task.pid, Tid::from(task.pid));
    if stop_signal.is_some() {
        return refuse(pid, task.comm(), ", and it is stopped, which hides how", "continue it, then dump again");
    }
    let status = Stat::read_thread(pid, tid)?.exit_code as u32;
    let mut facts = ThreadFacts::untraced(pid, tid)?;
    let waiting = facts.status.signals.pending;
    facts.pending.signals = (1..=64).filter(|signal| waiting & 1 << (signal - 1) != 0).map(directed).collect();
    Ok(Some(Ended { facts, status }))
}

/// A signal to a thread, as tgkill(2) makes it: whatever more it had, nobody can take it any more.
fn directed(signal: i32) -> pb::SiginfoEntry {
    let mut siginfo = [signal, 0, SI_TKILL].map(i32::to_ne_bytes).concat();
    siginfo.resize(SIGINFO, 0);
    pb::SiginfoEntry { siginfo }
}

impl Ended {
    /// The core of the process, without its task part.
    pub fn core(&self) -> pb::CoreEntry {
        thread::core_without_registers(&self.facts, self.facts.status.signals.blocked, &Told::default())
    }

    pub fn own(&self, pid: Pid) -> pb::PtyagentThread {
        let own = thread::own_without_registers(pid, &self.facts, &Told::default());
        pb::PtyagentThread { exit_status: Some(self.status), ..own }
    }

    /// The signals that the main thread had blocked.
    pub fn blocked(&self) -> u64 {
        self.facts.status.signals.blocked
    }
}

/// How the main thread of a recorded process has ended.
pub fn exit_status(images: &Images, pid: u32) -> Option<u32> {
    images.own_thread(pid)?.exit_status
}

/// The thread of a recorded process that the parasite goes into: its main thread, or where that has ended, the first of the others.
pub fn host(images: &Images, pid: u32) -> u32 {
    let others = images.pstree.iter().filter(|entry| entry.pid == pid).flat_map(|entry| &entry.threads);
    match exit_status(images, pid) {
        Some(_) => others.copied().find(|tid| *tid != pid).unwrap_or(pid),
        None => pid,
    }
}

/// Ends the main thread, which is stopped, with this exit status and these signals blocked. The parasite is in another thread of the process.
///
/// It is let go at the entry of its last call, behind which no signal reaches it, so that it belongs to its process again.
pub fn end(host: &mut Infected, main: Stopped, status: u32, blocked: u64) -> Result<()> {
    let tid = main.tid();
    main.set_options(ptrace::OPTIONS)?;
    host.last_call(main, libc::SYS_exit, u64::from(status >> 8 & 0xff), blocked)?;
    while !Stat::read_thread(host.pid(), tid)?.state.is_dead() {
        std::thread::yield_now();
    }
    Ok(())
}
