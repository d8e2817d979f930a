//! Calls with a timeout that a dump finds a thread in: how much of it is left, and how a new task gets into such a call.
//!
//! No call of the kernel tells it. So before the freeze it is noted when each thread went to sleep (/proc/PID/task/TID/sched), which was when its
//! call began; after the freeze, that it has slept since then and is in that call still. The difference to its timeout is what is left. A deadline
//! on CLOCK_MONOTONIC or CLOCK_BOOTTIME is compared with the clock. One on CLOCK_REALTIME needs nothing: the wall clock goes on. Where a sleeper
//! has asked for what is left, the kernel has written it there at the stop.
//!
//! A new task begins the call with what is left and is interrupted at once ([`inject::Call`]), so that the kernel has everything for going on with
//! it, as after any stop.
//!
//! An epoll_wait that the stop broke is made again with what is left as its timeout, also in a session that runs on.
//!
//! Not told is the time of a call without either that was interrupted and went on before (a stopped job, an earlier dump), that of processor clocks,
//! and anything on a kernel without that file. Such a call starts over.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::ids::{Pid, Tid};
use crate::image::pb;
use crate::inject::{self, restart};
use crate::procfs::Stat;
use crate::procfs::attributes::{self, InSyscall, scheduled};
use crate::sys::event::clock_ns;

use super::survey::Survey;
use super::thread;

const SECOND: i64 = 1_000_000_000;
const MILLISECOND: i64 = 1_000_000;

/// How a call says how long it waits; arguments are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timeout {
    /// The argument, in milliseconds.
    Milliseconds(usize),
    /// The argument points to a struct timespec.
    Relative(usize),
    /// So does the first; at the second the kernel writes what is left.
    Sleep(usize, usize),
    /// It points to a point in this clock.
    Until(usize, i32),
}

impl Timeout {
    /// None where the call has none, or one that is no business of ours.
    fn of(nr: i64, args: &[u64; 6]) -> Option<Timeout> {
        const FUTEX_WAIT: u64 = 0;
        const FUTEX_WAIT_BITSET: u64 = 9;
        const COMMAND: u64 = 0x7f;
        let clock = args[0] as i32;
        let timeout = match nr {
            libc::SYS_nanosleep => Timeout::sleep(0, 1, args),
            libc::SYS_clock_nanosleep if args[1] & libc::TIMER_ABSTIME as u64 == 0 => match clock {
                libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => Timeout::sleep(2, 3, args),
                _ => return None,
            },
            libc::SYS_clock_nanosleep => match clock {
                libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => Timeout::Until(2, clock),
                _ => return None,
            },
            libc::SYS_poll => Timeout::Milliseconds(2),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Timeout::Milliseconds(3),
            libc::SYS_futex if args[3] != 0 => match args[1] & COMMAND {
                FUTEX_WAIT => Timeout::Relative(3),
                FUTEX_WAIT_BITSET if args[1] & libc::FUTEX_CLOCK_REALTIME as u64 == 0 => {
                    Timeout::Until(3, libc::CLOCK_MONOTONIC)
                }
                _ => return None,
            },
            _ => return None,
        };
        let forever = matches!(timeout, Timeout::Milliseconds(at) if (args[at] as i32) < 0);
        (!forever).then_some(timeout)
    }

    fn sleep(time: usize, rest: usize, args: &[u64; 6]) -> Timeout {
        if args[rest] == 0 { Timeout::Relative(time) } else { Timeout::Sleep(time, rest) }
    }

    /// Nanoseconds: of the clock for a deadline, what is left of a sleep.
    fn read(self, mem: &File, args: &[u64; 6]) -> Option<i64> {
        let at = match self {
            Timeout::Milliseconds(at) => return Some(i64::from(args[at] as i32) * MILLISECOND),
            Timeout::Relative(at) | Timeout::Sleep(_, at) | Timeout::Until(at, _) => args[at],
        };
        let mut time = [0u8; 16];
        mem.read_exact_at(&mut time, at).ok()?;
        let word = |at: usize| Some(i64::from_ne_bytes(time.get(at..at + 8)?.try_into().ok()?));
        word(0)?.checked_mul(SECOND)?.checked_add(word(8)?)
    }
}

/// A thread that waits in a call with a timeout.
#[derive(Debug, Clone, Copy)]
struct Wait {
    nr: u64,
    args: [u64; 6],
    /// Nanoseconds of CLOCK_MONOTONIC.
    began: i64,
    /// How often it had gone to sleep by then.
    sleeps: u64,
}

/// When the threads of a tree began their calls.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<Tid, Wait>);

impl Waits {
    /// Looks at a tree that runs. A thread of which something is not told is left out.
    pub fn of(survey: &Survey) -> Waits {
        let mut waits = BTreeMap::new();
        let mut clocks = Clocks::default();
        let alive = survey.tasks.iter().filter(|task| task.alive().is_some());
        for (pid, tid) in alive.flat_map(|task| task.threads.iter().map(|tid| (task.pid, *tid))) {
            if let Some(wait) = wait(pid, tid, &mut clocks) {
                waits.insert(tid, wait);
            }
        }
        Waits(waits)
    }

    /// What is recorded of the call that a stopped thread was in, where it has a timeout.
    pub fn restart(&self, pid: Pid, tid: Tid, regs: &user_regs_struct, mem: &File) -> Option<pb::PtyagentRestart> {
        if !restart::goes_on(regs) {
            return None;
        }
        let (nr, args) = (restart::number(regs, mem)?, restart::arguments(regs));
        let left = self.left(pid, tid, nr, &args, mem)?;
        Some(pb::PtyagentRestart {
            kind: Some(pb::PtyagentRestartKind::PtyagentRestartBlock as i32),
            syscall: Some(nr as u32),
            args: args.to_vec(),
            result: Some(regs.rax as i64),
            remaining_ns: Some(left as u64),
            ..Default::default()
        })
    }

    /// Whether the time of the call that a stopped thread was in may be up though it shows as one that goes on: a poll(2) looks for signals before it
    /// notices, so it does where the thread had no processor between its timer and the stop. `regs` are of a call that the kernel restarts.
    pub fn may_be_over(&self, pid: Pid, tid: Tid, regs: &user_regs_struct, mem: &File) -> bool {
        let args = restart::arguments(regs);
        match restart::number(regs, mem) {
            Some(libc::SYS_poll) => self.left(pid, tid, libc::SYS_poll, &args, mem).is_none(),
            // Any that was restarted before.
            number => number.is_none(),
        }
    }

    /// The milliseconds, rounded up, that a call of a stopped thread has left that the stop broke.
    pub fn left_ms(&self, pid: Pid, tid: Tid, regs: &user_regs_struct, mem: &File) -> Option<u32> {
        let left = self.left(pid, tid, regs.orig_rax as i64, &restart::arguments(regs), mem)?;
        u32::try_from(left.saturating_add(MILLISECOND - 1) / MILLISECOND).ok()
    }

    /// Nanoseconds that a call has left in which a stopped thread was.
    fn left(&self, pid: Pid, tid: Tid, nr: i64, args: &[u64; 6], mem: &File) -> Option<i64> {
        let timeout = Timeout::of(nr, args)?;
        let time = timeout.read(mem, args)?;
        let left = match timeout {
            Timeout::Sleep(..) => time,
            Timeout::Until(_, clock) => time - clock_ns(clock).ok()?,
            Timeout::Relative(_) | Timeout::Milliseconds(_) => {
                let wait = self.0.get(&tid).filter(|wait| wait.nr as i64 == nr && wait.args == *args)?;
                // It was woken once, by our stop.
                let undisturbed = scheduled(pid, tid)?.sleeps == wait.sleeps + 1;
                undisturbed.then_some(time - (clock_ns(libc::CLOCK_MONOTONIC).ok()? - wait.began))?
            }
        };
        Some(left.max(0))
    }
}

fn wait(pid: Pid, tid: Tid, clocks: &mut Clocks) -> Option<Wait> {
    let here = || match attributes::syscall(pid, tid) {
        Ok(InSyscall::Inside { number, args, sp, pc }) => Some((number, args, sp, pc)),
        _ => None,
    };
    let call = here()?;
    let (nr, args, ..) = call;
    if !matches!(Timeout::of(nr as i64, &args)?, Timeout::Relative(_) | Timeout::Milliseconds(_)) {
        return None;
    }
    let seen = scheduled(pid, tid)?;
    let began = clocks.monotonic(Stat::processor(pid, tid)?, seen.last_run_ns)?;
    // The call was the same before and after, and it was slept in all the time.
    let same = here()? == call && scheduled(pid, tid)? == seen;
    same.then_some(Wait { nr, args, began, sleeps: seen.sleeps })
}

/// What is to be added to the scheduler's clock of a processor for CLOCK_MONOTONIC, in nanoseconds.
#[derive(Debug, Default)]
struct Clocks(BTreeMap<usize, Option<i64>>);

impl Clocks {
    fn monotonic(&mut self, processor: usize, time: i64) -> Option<i64> {
        self.0.entry(processor).or_insert_with(|| offset(processor)).map(|offset| time + offset)
    }
}

/// The clocks of the processors differ (they leave out the time of interrupts), so this one is read there. None where we may not run there.
fn offset(processor: usize) -> Option<i64> {
    let this = nix::unistd::Pid::from_raw(0);
    let me = nix::unistd::gettid().as_raw();
    let allowed = sched_getaffinity(this).ok()?;
    let mut there = CpuSet::new();
    there.set(processor).ok()?;
    sched_setaffinity(this, &there).ok()?;
    // Giving the processor away brings our own note up to date.
    std::thread::yield_now();
    let now = clock_ns(libc::CLOCK_MONOTONIC);
    let seen = scheduled(Pid(std::process::id() as i32), Tid(me));
    sched_setaffinity(this, &allowed).ok()?;
    Some(now.ok()? - seen?.last_run_ns)
}

/// The call that a thread of a new task is to be in the middle of; none where it starts over or was in no such call.
pub fn unfinished(core: &pb::CoreEntry, own: Option<&pb::PtyagentThread>) -> Option<inject::Call> {
    let regs = thread::registers(core.thread_info.as_ref()?, own);
    let recorded = own?.restart.as_ref()?;
    let (nr, left) = (regs.orig_rax as i64, i64::try_from(recorded.remaining_ns?).ok()?);
    if recorded.syscall.map(i64::from) != Some(nr) || !restart::goes_on(&regs) {
        return None;
    }
    let mut args = restart::arguments(&regs);
    let timeout = Timeout::of(nr, &args)?;
    // No time left is not the same as none to wait for.
    let left = left.max(1);
    let (time, at) = match timeout {
        Timeout::Milliseconds(at) => {
            args[at] = (left.saturating_add(MILLISECOND - 1) / MILLISECOND).min(i32::MAX.into()) as u64;
            return Some(inject::Call { nr, args, time: None });
        }
        Timeout::Relative(at) | Timeout::Sleep(at, _) => (left, at),
        Timeout::Until(at, _) if nr == libc::SYS_clock_nanosleep => {
            // From now on it waits as long as is left, whatever becomes of the clock.
            (args[1], args[3]) = (0, 0);
            (left, at)
        }
        Timeout::Until(at, clock) => (clock_ns(clock).ok()?.saturating_add(left), at),
    };
    Some(inject::Call { nr, args, time: Some((at, [time / SECOND, time % SECOND])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_found() {
        let of = |nr: i64, args: [u64; 6]| Timeout::of(nr, &args);
        assert_eq!(of(libc::SYS_poll, [0, 0, 5, 0, 0, 0]), Some(Timeout::Milliseconds(2)));
        assert_eq!(of(libc::SYS_poll, [0, 0, 0xffff_ffff, 0, 0, 0]), None);
        assert_eq!(of(libc::SYS_clock_nanosleep, [1, 0, 8, 0, 0, 0]), Some(Timeout::Relative(2)));
        assert_eq!(of(libc::SYS_clock_nanosleep, [1, 0, 8, 8, 0, 0]), Some(Timeout::Sleep(2, 3)));
        assert_eq!(of(libc::SYS_clock_nanosleep, [1, 1, 8, 0, 0, 0]), Some(Timeout::Until(2, 1)));
        // A point of the wall clock, a processor clock.
        assert_eq!(of(libc::SYS_clock_nanosleep, [0, 1, 8, 0, 0, 0]), None);
        assert_eq!(of(libc::SYS_clock_nanosleep, [2, 0, 8, 0, 0, 0]), None);
        assert_eq!(of(libc::SYS_futex, [8, 128, 0, 8, 0, 0]), Some(Timeout::Relative(3)));
        assert_eq!(of(libc::SYS_futex, [8, 128 | 9, 0, 8, 0, 0]), Some(Timeout::Until(3, 1)));
        assert_eq!(of(libc::SYS_futex, [8, 128 | 9 | 256, 0, 8, 0, 0]), None);
        assert_eq!(of(libc::SYS_futex, [8, 128, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_thread_is_known_to_sleep_since_it_began() {
        let pid = Pid(std::process::id() as i32);
        let (tell, told) = std::sync::mpsc::channel();
        let before = clock_ns(libc::CLOCK_MONOTONIC).unwrap();
        let sleeper = std::thread::spawn(move || {
            tell.send(Tid(nix::unistd::gettid().as_raw())).unwrap();
            nix::poll::poll(&mut [], 300u16).unwrap();
        });
        let tid = told.recv().unwrap();
        let (mut found, mut clocks) = (None, Clocks::default());
        while found.is_none() && !sleeper.is_finished() {
            found = wait(pid, tid, &mut clocks);
        }
        sleeper.join().unwrap();
        let after = clock_ns(libc::CLOCK_MONOTONIC).unwrap();
        // Kernels without the file do not tell.
        if scheduled(pid, pid.into()).is_some() {
            let began = found.unwrap().began;
            assert!((before - MILLISECOND..after).contains(&began), "{before} {began} {after}");
        }
    }
}
