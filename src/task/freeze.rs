//! Stopping every thread of a tree, so that nothing of it runs and nothing new appears.
//!
//! Threads are seized and interrupted, then the tree is read again; a thread or child that appeared meanwhile is taken too, until a reading
//! finds nothing new. Processes are pinned by a pidfd each, taken before the seizure, so that a reused number is noticed: the pidfd of a
//! process that ended says so.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::inject::{self, restart};
use crate::procfs::attributes::{self, InSyscall};
use crate::procfs::{self, Stat, State};
use crate::sys::process::{pidfd_open, pidfd_open_thread, pidfd_poll};
use crate::sys::ptrace;
use crate::trace::broken;
use crate::trace::{Running, StopReason, Stopped, Wait};

use super::deadline::Waits;
use super::survey::{in_vfork, waits_in_vfork};

/// Readings of the tree, at most; a tree that still changes then is multiplying.
const MAX_PASSES: usize = 100;

/// A process with all its threads stopped.
#[derive(Debug)]
pub struct FrozenProcess {
    pub pid: Pid,
    /// Of the host.
    pub pidfd: OwnedFd,
    /// The thread group leader, or where that has ended, another thread: the one that the parasite goes into.
    pub host: Stopped,
    /// The other threads.
    pub threads: Vec<Stopped>,
}

/// A whole tree, parents before their children.
#[derive(Debug)]
pub struct Frozen {
    pub processes: Vec<FrozenProcess>,
    /// Children that have ended and wait to be reaped.
    pub zombies: Vec<Pid>,
    /// Processes that were seen, before any of their threads was seized.
    pins: BTreeMap<Pid, OwnedFd>,
}

/// Stops the tree rooted at `root`; `waits` is what was seen of it while it ran. On an error every thread is released and runs on.
pub fn freeze(root: Pid, waits: &Waits) -> Result<Frozen> {
    let mut frozen = Frozen { processes: Vec::new(), zombies: Vec::new(), pins: BTreeMap::new() };
    let mut known = BTreeSet::new();
    for _ in 0..MAX_PASSES {
        let mut new = Vec::new();
        let mut zombies = Vec::new();
        walk(root, &mut new, &mut zombies, &known)?;
        if new.is_empty() {
            frozen.zombies = zombies;
            return Ok(frozen);
        }
        known.extend(new.iter().map(|(_, tid)| *tid));
        frozen.take(new, waits)?;
    }
    Err(Error::failed(format!(
        "the tree of process {root} keeps growing while it is being stopped; try again when it is quiet"
    )))
}

/// Lists the threads that are not yet known, parents first.
fn walk(pid: Pid, new: &mut Vec<(Pid, Tid)>, zombies: &mut Vec<Pid>, known: &BTreeSet<Tid>) -> Result<()> {
    let stat = Stat::read(pid)?;
    if stat.state.is_dead() && stat.num_threads <= 1 {
        zombies.push(pid);
        return Ok(());
    }
    let ended = |tid: Tid| stat.state.is_dead() && tid == Tid::from(pid);
    let mut threads = procfs::tree::threads(pid)?;
    // The leader first: it is the host where it lives.
    threads.sort_by_key(|tid| *tid != Tid::from(pid));
    for tid in threads {
        if !known.contains(&tid) && !ended(tid) {
            new.push((pid, tid));
        }
    }
    for child in procfs::tree::children(pid)? {
        match walk(child, new, zombies, known) {
            Err(Error::Gone(gone)) if gone == child => {}
            result => result?,
        }
    }
    Ok(())
}

impl Frozen {
    /// Seizes and interrupts all, then waits for each: the stops come in parallel.
    fn take(&mut self, new: Vec<(Pid, Tid)>, waits: &Waits) -> Result<()> {
        let mut coming = Vec::new();
        for (pid, tid) in new {
            if let Entry::Vacant(entry) = self.pins.entry(pid) {
                entry.insert(pin(pid)?);
            }
            match Running::seize(tid, ptrace::OPTIONS) {
                Ok(running) => {
                    running.interrupt()?;
                    coming.push((pid, running));
                }
                Err(Error::Gone(_)) => {}
                // A thread that ended between the reading and the seizure is a zombie, which cannot be seized, or was reaped since.
                Err(_) if ended(pid, tid) => {}
                Err(error) => return Err(error),
            }
        }
        let mut coming = coming.into_iter();
        while let Some((pid, running)) = coming.next() {
            let settled = settle(pid, running, waits)
                .and_then(|stopped| let_time_out(pid, stopped, waits))
                .and_then(|stopped| leave_vdso(pid, stopped, waits));
            let placed = match settled {
                Ok(stopped) => self.place(pid, stopped),
                Err((Error::Gone(_), _)) => Ok(()),
                Err((error, running)) => {
                    self.give_up(coming.by_ref().rev().map(|(_, running)| running).chain(running));
                    Err(error)
                }
            };
            placed?;
        }
        Ok(())
    }

    /// Lets those go that have stopped, and then those that have not yet, children first: a process in vfork stops, and can be detached,
    /// only when its child goes on.
    fn give_up(&mut self, coming: impl Iterator<Item = Running>) {
        for process in self.processes.drain(..) {
            drop((process.threads, process.host));
        }
        coming.for_each(drop);
    }

    fn place(&mut self, pid: Pid, stopped: Stopped) -> Result<()> {
        let is_leader = stopped.tid() == Tid::from(pid);
        if let Some(process) = self.processes.iter_mut().find(|process| process.pid == pid) {
            process.threads.push(stopped);
            return Ok(());
        }
        // A pidfd that is readable now belongs to a process that has ended: the number was given to another one in between.
        let pin = self.pins.get(&pid).filter(|pidfd| !pidfd_poll(pidfd.as_fd(), 0).unwrap_or(true));
        let pin = pin.ok_or(Error::Gone(pid))?;
        let pidfd = match is_leader {
            true => pin.try_clone().map_err(|error| Error::io("copying", Subject::Pid(pid), &error))?,
            false => pidfd_open_thread(stopped.tid()).map_err(|errno| Error::of_pid("pinning", pid, errno))?,
        };
        self.processes.push(FrozenProcess { pid, pidfd, host: stopped, threads: Vec::new() });
        Ok(())
    }

    /// Lets everything run on.
    pub fn release(self) -> Result<()> {
        for process in self.processes {
            for thread in process.threads {
                thread.release()?;
            }
            process.host.release()?;
        }
        Ok(())
    }
}

fn ended(pid: Pid, tid: Tid) -> bool {
    match Stat::read_thread(pid, tid) {
        Ok(stat) => stat.state.is_dead(),
        Err(error) => matches!(error, Error::Gone(_)),
    }
}

/// How long a thread may sleep uninterruptibly instead of stopping: so many looks of so long each. One that is found on its way to a processor stops
/// when it gets one, and on the clock alone, a machine that stood still would leave it no time.
pub const LOOKS: u32 = 250;
pub const LOOK: Duration = Duration::from_millis(20);

/// Waits for a stop, and mends what it broke. A process in vfork does not stop before its child, which may be stopped already, goes
/// on. What has not stopped comes back with the error.
fn settle(pid: Pid, running: Running, waits: &Waits) -> std::result::Result<Stopped, (Error, Option<Running>)> {
    let mut running = running;
    let mut looks = 0;
    loop {
        running = match running.settle_within(LOOK).map_err(|error| (error, None))? {
            Ok(stopped) => return mend(pid, stopped, waits),
            Err(running) => running,
        };
        let comm = || Stat::read(pid).map(|stat| stat.comm_text()).unwrap_or_default();
        let tid = running.tid();
        let sleeps = |stat: Stat| stat.state == State::DiskSleep;
        let error = match waits_in_vfork(pid, tid) {
            true => in_vfork(pid, tid, procfs::tree::children(pid).unwrap_or_default()),
            false if looks < LOOKS => {
                looks += u32::from(Stat::read_thread(pid, tid).is_ok_and(sleeps));
                continue;
            }
            false => Error::Refused(Refusal {
                pid,
                comm: comm(),
                fd: None,
                kind: "it sleeps uninterruptibly in the kernel".into(),
                remedy: "wait until the device answers, then try again".into(),
            }),
        };
        return Err((error, Some(running)));
    }
}

/// Lets the kernel go on with a call that only the stop has broken. A process that a signal had stopped has seen a stop, whatever we do.
fn mend(pid: Pid, stopped: Stopped, waits: &Waits) -> std::result::Result<Stopped, (Error, Option<Running>)> {
    let mend = || {
        let regs = stopped.regs()?;
        let is_broken = stopped.reason() == StopReason::Interrupt && broken::is_broken(&regs);
        if is_broken || restart::is_endless(&regs) {
            let left = waits.left_ms(pid, stopped.tid(), &regs, &inject::open_mem(stopped.tid())?);
            stopped.set_regs(&broken::made_again(&regs, left))?;
        }
        Ok(())
    };
    match mend() {
        Ok(()) => Ok(stopped),
        Err(error) => Err((error, None)),
    }
}

/// How long a call that goes on has to sleep before it counts as one that has time left. The timer of one that has none comes at once.
const ASLEEP: Duration = Duration::from_millis(1);

/// Lets a poll go on whose time may be up, until it has returned or sleeps again: only the kernel knows (see [`Waits::may_be_over`]).
///
/// The kernel restarts the call, so the thread stops at its entry and at its exit.
fn let_time_out(pid: Pid, stopped: Stopped, waits: &Waits) -> std::result::Result<Stopped, (Error, Option<Running>)> {
    let lost = |error: Error| (error, None);
    let regs = stopped.regs().map_err(lost)?;
    let tid = stopped.tid();
    let is_candidate = stopped.reason() == StopReason::Interrupt && restart::by_the_kernel(&regs);
    if !is_candidate || !waits.may_be_over(pid, tid, &regs, &inject::open_mem(tid).map_err(lost)?) {
        return Ok(stopped);
    }
    let limit = Instant::now() + LOOK * LOOKS;
    let (mut entered, mut asked, mut asleep) = (false, false, None);
    let mut running = stopped.cont_to_syscall().map_err(lost)?;
    let stopped = loop {
        running = match running.poll().map_err(lost)? {
            Ok(Wait::Gone(_)) => return Err(lost(Error::Gone(pid))),
            Ok(Wait::Stopped(stopped)) => match stopped.reason() {
                StopReason::Syscall if !entered => {
                    entered = true;
                    stopped.cont_to_syscall().map_err(lost)?
                }
                StopReason::Interrupt | StopReason::GroupStop(_) => break mend(pid, stopped, waits)?,
                // It takes the place of the one that was asked for, if that was so.
                _ => {
                    stopped.interrupt_next().map_err(lost)?;
                    break settle(pid, stopped.cont().map_err(lost)?, waits)?;
                }
            },
            Err(running) if Instant::now() >= limit => break settle(pid, running, waits)?,
            Err(running) => running,
        };
        let is_inside = entered && matches!(attributes::syscall(pid, tid), Ok(InSyscall::Inside { .. }));
        asleep = asleep.filter(|_| is_inside).or_else(|| is_inside.then(Instant::now));
        if !asked && asleep.is_some_and(|since| since.elapsed() >= ASLEEP) {
            running.interrupt().map_err(lost)?;
            asked = true;
        }
        std::thread::yield_now();
    };
    if stopped.regs().map_err(lost)? == restart::restarted(&regs) {
        // Else the number of the call would be lost.
        stopped.set_regs(&regs).map_err(lost)?;
    }
    Ok(stopped)
}

/// Looks at a thread that is in its vDSO, at most.
const VDSO_LOOKS: usize = 200;
const VDSO_RUN: Duration = Duration::from_micros(20);

/// Lets a thread that has stopped inside the vDSO run on until it is outside: another kernel's vDSO is not this one. Its functions take well
/// under a microsecond; a thread that is found there every time is taken as it is, and so is one that a signal had stopped there.
fn leave_vdso(pid: Pid, stopped: Stopped, waits: &Waits) -> std::result::Result<Stopped, (Error, Option<Running>)> {
    let lost = |error: Error| (error, None);
    let mut stopped = stopped;
    let mut vdso = None;
    for _ in 0..VDSO_LOOKS {
        let regs = stopped.regs().map_err(lost)?;
        let blocked = regs.orig_rax as i64 >= 0 && (-516..=-512).contains(&(regs.rax as i64));
        if blocked || stopped.reason() != StopReason::Interrupt {
            break;
        }
        let vdso = match &vdso {
            Some(range) => range,
            None => vdso.insert(vdso_range(stopped.tid()).map_err(lost)?),
        };
        if !vdso.contains(&regs.rip) {
            break;
        }
        let running = stopped.cont().map_err(lost)?;
        // An interruption that comes before the thread is on a processor would find it where it was.
        std::thread::sleep(VDSO_RUN);
        running.interrupt().map_err(lost)?;
        stopped = settle(pid, running, waits)?;
    }
    Ok(stopped)
}

/// The code of the vDSO, without the unused tail: a thread there is in a stub of ours, which finishes a call (see `inject::rest`). Empty where the
/// process has none.
fn vdso_range(tid: Tid) -> Result<Range<u64>> {
    let mappings = procfs::maps::read(Pid(tid.0))?;
    let Some(vdso) = mappings.iter().find(|mapping| mapping.is("[vdso]")) else { return Ok(0..0) };
    let mut image = vec![0u8; usize::try_from(vdso.end.0 - vdso.start.0).unwrap_or(0)];
    let read = inject::open_mem(tid)?.read_exact_at(&mut image, vdso.start.0);
    read.during("reading the vDSO", Subject::Tid(tid))?;
    let used = inject::vdso_content_end(&image).unwrap_or(image.len());
    Ok(vdso.start.0..vdso.start.0 + used as u64)
}

fn pin(pid: Pid) -> Result<OwnedFd> {
    pidfd_open(pid).map_err(|errno| Error::of_pid("pinning", pid, errno))
}
