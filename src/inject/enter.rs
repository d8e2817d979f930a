//! The way in: three calls from stubs, then one SETREGS into the parasite, whose first batch closes the memfd.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use libc::user_regs_struct;

use super::batch::{Answers, Batch, CallId};
use super::rest::{self, Left, Rest, Through, Transfer, Whereabouts};
use super::restart::{self, Pending};
use super::stub::{Cleanup, Place, REGION_NAME, Room, Slot, WayBack};
use super::{ALL_SIGNALS, Infected, Placement, Stubs, ThreadState, Tracee, blob, idle_header};
use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr, RemoteFd, Tid};
use crate::sys::region::SharedMapping;
use crate::trace::{Running, StopReason, Stopped, Wait};
use crate::wire;

/// What the caller knows about a tracee that is to be infected.
pub struct Entry<'a> {
    pub pid: Pid,
    /// The pidfd of the process or thread, to fetch the memfd through.
    pub pidfd: &'a OwnedFd,
    /// Where the entry code may go, best first.
    pub places: Vec<Place>,
    /// Where the region goes: [`wire::REGION_SIZE`] bytes.
    pub base: u64,
    pub placement: Placement,
    /// Whether an unblocked signal waits for the thread.
    pub pending: Pending,
    /// What a call that the stop cut short would still have moved. See `rest`.
    pub left: &'a dyn Fn(&Transfer) -> Left,
    /// The registers of the other threads, which are stopped too.
    pub others: BTreeMap<Tid, user_regs_struct>,
}

/// For tracees whose calls are of no interest.
pub fn nothing_left(_: &Transfer) -> Left {
    Left { count: 0, through: Through::File }
}

impl Infected {
    /// Brings the parasite into a stopped thread, the leader of its group or the one that stands for it.
    ///
    /// On an error the tracee has been given back what it had and was released; it runs on.
    pub fn infect(stopped: Stopped, entry: &Entry<'_>) -> Result<Infected> {
        let entered = Infected::infect_all(vec![Arrival::new(stopped, entry, Batch::new())?])?;
        entered.into_iter().next().map(|(infected, _)| infected).ok_or(Error::Gone(entry.pid))
    }

    /// Brings the parasite into many tracees step by step, so that they run at the same time; yields them with the answers of their batches.
    ///
    /// On an error all have been given back what they had, and run on.
    pub fn infect_all(mut arrivals: Vec<Arrival>) -> Result<Vec<(Infected, Answers)>> {
        let mut infected = Vec::new();
        let entered = CALLS.iter().try_for_each(|call| {
            arrivals.iter_mut().try_for_each(|one| one.begin(*call))?;
            arrivals.iter_mut().try_for_each(Arrival::pass)?;
            arrivals.iter_mut().try_for_each(|one| one.finish(*call))
        });
        let mut rest = arrivals.into_iter();
        let started = entered.and_then(|()| {
            for arrival in rest.by_ref() {
                infected.push(arrival.start()?);
            }
            Ok(())
        });
        if let Err(error) = started {
            rest.for_each(Arrival::abandon);
            return Err(error);
        }
        infected.into_iter().map(Started::answer).collect()
    }
}

/// Where a thread is to be given its way on.
pub(super) struct Site<'a> {
    pub mem: &'a File,
    pub pid: Pid,
    pub room: &'a Room,
    /// The registers of all threads of the process.
    pub threads: Vec<user_regs_struct>,
}

impl Site<'_> {
    /// What a stopped thread of the process is recorded as, and the registers that it goes on with: the same, but where the stop cut a call short.
    ///
    /// A thread in the stub of an earlier cut is taken out of it, to behind its call, before that stub is written anew.
    pub fn resumption(
        &self,
        stopped: &Stopped,
        pending: Pending,
        left: &dyn Fn(&Transfer) -> Left,
    ) -> Result<Resumption> {
        let Site { mem, pid, room, threads } = self;
        let regs = stopped.regs()?;
        let Whereabouts { regs: behind, cut } = rest::whereabouts(mem, *pid, &regs, room.rests(), pending)?;
        let Some(cut) = cut else { return Ok(Resumption::same(behind)) };
        let Some(transfer) = cut.transfer(mem, *pid)? else { return Ok(Resumption::same(behind)) };
        let left = left(&transfer);
        let rest = if left.count > 0 { rest::rest(mem, *pid, &transfer, left)? } else { None };
        let Some(rest) = rest else { return Ok(Resumption::same(behind)) };
        let placed = match cut.stub {
            Some(inside) if cut.moved == 0 => Some(inside),
            inside => {
                if inside.is_some() {
                    stopped.set_regs(&behind)?;
                }
                let others = threads.iter().filter(|one| **one != regs).chain([&behind]);
                let unused = rest::unused(mem, *pid, room.rests(), &others.copied().collect::<Vec<_>>())?;
                rest::place(mem, *pid, &unused, &behind, &rest)?
            }
        };
        Ok(Resumption { recorded: behind, rest: Some(rest), going_on: placed.unwrap_or(behind) })
    }
}

/// How a thread is recorded and goes on.
pub(super) struct Resumption {
    pub recorded: user_regs_struct,
    /// What is left of the call behind which the registers are.
    pub rest: Option<Rest>,
    pub going_on: user_regs_struct,
}

impl Resumption {
    fn same(regs: user_regs_struct) -> Resumption {
        Resumption { recorded: regs, rest: None, going_on: regs }
    }
}

/// /proc/TID/mem of a living thread, through which text that is not writable can be written by a tracer.
pub fn open_mem(tid: Tid) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{tid}/mem"))
        .during("opening the memory", Subject::Tid(tid))
}

/// The registers that make a call from the stub at `at`, all others as in `back`.
pub(super) fn calling(back: &user_regs_struct, at: RemoteAddr, nr: i64, args: [u64; 6]) -> user_regs_struct {
    user_regs_struct {
        rip: at.0,
        rax: nr as u64,
        rdi: args[0],
        rsi: args[1],
        rdx: args[2],
        r10: args[3],
        r8: args[4],
        r9: args[5],
        orig_rax: u64::MAX,
        ..*back
    }
}

/// Runs the system call to whose instruction the registers point; yields the tracee at the exit stop, and the raw result.
///
/// A SIGSTOP on its way, which nobody can block, is taken from the tracee and noted in `owed_stop`.
pub(super) fn run_call(stopped: Stopped, owed_stop: &mut bool) -> Result<(Stopped, i64)> {
    let entered = syscall_stop(stopped.cont_to_syscall()?, owed_stop)?;
    let left = syscall_stop(entered.cont_to_syscall()?, owed_stop)?;
    let result = left.regs()?.rax as i64;
    Ok((left, result))
}

/// Waits for the next syscall stop.
pub(super) fn syscall_stop(running: Running, owed_stop: &mut bool) -> Result<Stopped> {
    let mut running = running;
    loop {
        let tid = running.tid();
        let stopped = match running.wait()? {
            Wait::Gone(_) => return Err(Error::Gone(Pid(tid.0))),
            Wait::Stopped(stopped) => stopped,
        };
        match stopped.reason() {
            StopReason::Syscall => return Ok(stopped),
            // All other signals are blocked. The release sends it again.
            StopReason::Signal(_) => *owed_stop = true,
            StopReason::Interrupt | StopReason::GroupStop(_) | StopReason::Clone => {}
        }
        running = stopped.cont_to_syscall()?;
    }
}

/// The calls of the way in, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    MakeMemfd,
    Map,
    Protect,
}

const CALLS: [Call; 3] = [Call::MakeMemfd, Call::Map, Call::Protect];

/// A tracee on the way in: stopped, or in one of the calls.
#[must_use = "an arrival must be brought in or given back"]
#[derive(Debug)]
pub struct Arrival {
    pid: Pid,
    pidfd: OwnedFd,
    base: u64,
    placement: Placement,
    others: BTreeMap<Tid, user_regs_struct>,
    mem: File,
    room: Room,
    way_back: WayBack,
    original: ThreadState,
    going_on: user_regs_struct,
    first: Batch,
    tracee: At,
    next: Slot,
    owed_stop: bool,
    /// The tracee's number of the memfd.
    remote_fd: Option<i32>,
    region: Option<(OwnedFd, SharedMapping)>,
    mapped: Mapped,
}

#[derive(Debug)]
enum At {
    /// Where it was when it was stopped.
    Home(Stopped),
    /// At a syscall stop in a stub.
    Stub(Stopped),
    /// On its way to the syscall stop that ends a call, or with `Entry` to the one that begins it.
    Running(Running, NextStop),
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextStop {
    Entry,
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapped {
    No,
    Yes,
}

impl Arrival {
    /// Looks where a stopped thread is and where it can be entered. `first` is run on the way in; no call of it may end it early
    /// ([`Batch::must`]), because a call behind it ends the way in.
    pub fn new(stopped: Stopped, entry: &Entry<'_>, first: Batch) -> Result<Arrival> {
        let at_stop = ThreadState::of(&stopped)?;
        let mem = open_mem(stopped.tid())?;
        let room = Room::find(&mem, entry.pid, &entry.places)?;
        let threads = || entry.others.values().chain([&at_stop.regs]);
        if threads().any(|regs| room.holds(regs.rip)) {
            return Err(Error::Leaving(entry.pid));
        }
        let site = Site { mem: &mem, pid: entry.pid, room: &room, threads: threads().copied().collect() };
        let Resumption { recorded, rest, going_on } = site.resumption(&stopped, entry.pending, entry.left)?;
        let original = ThreadState { regs: recorded, rest, ..at_stop };
        let way_back = WayBack { regs: restart::without_kernel_restart(&going_on), sigmask: original.sigmask };
        let pidfd = entry.pidfd.try_clone().map_err(|error| Error::io("copying", Subject::Pid(entry.pid), &error))?;
        Ok(Arrival {
            pid: entry.pid,
            pidfd,
            base: entry.base,
            placement: entry.placement,
            others: entry.others.clone(),
            mem,
            room,
            way_back,
            original,
            going_on,
            first,
            tracee: At::Home(stopped),
            next: Slot::Even,
            owed_stop: false,
            remote_fd: None,
            region: None,
            mapped: Mapped::No,
        })
    }

    fn take_stopped(&mut self) -> Result<Stopped> {
        match std::mem::replace(&mut self.tracee, At::Lost) {
            At::Home(stopped) | At::Stub(stopped) => Ok(stopped),
            At::Running(..) | At::Lost => Err(Error::Gone(self.pid)),
        }
    }

    /// Sends the tracee into one of the calls.
    fn begin(&mut self, call: Call) -> Result<()> {
        let fd = self.remote_fd.unwrap_or(-1);
        let close = Cleanup::Close { fd };
        let size = wire::REGION_SIZE;
        match call {
            Call::MakeMemfd => {
                // The memfd's name has to lie in the victim's memory: behind the code of the exit slot, which is not yet in use.
                let name = self.room.slot(Slot::Exit);
                self.mem.write_all_at(REGION_NAME, name.0).during("writing", Subject::Pid(self.pid))?;
                let args = [name.0, u64::from(libc::MFD_CLOEXEC), 0, 0, 0, 0];
                self.send(libc::SYS_memfd_create, args, &[Cleanup::CloseResult])
            }
            Call::Map => {
                let fixed = match self.placement {
                    Placement::Free => libc::MAP_FIXED_NOREPLACE,
                    Placement::Replace => libc::MAP_FIXED,
                };
                let flags = (libc::MAP_SHARED | fixed) as u64;
                // Executable from the start: a process may have sworn to make nothing so later on (PR_SET_MDWE).
                let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
                let args = [self.base, size, protection, flags, fd as u64, 0];
                self.send(libc::SYS_mmap, args, &[Cleanup::UnmapResult { len: size }, close])
            }
            Call::Protect => {
                let data = (libc::PROT_READ | libc::PROT_WRITE) as u64;
                let args = [self.base + wire::DATA_OFFSET, size - wire::DATA_OFFSET, data, 0, 0, 0];
                self.send(libc::SYS_mprotect, args, &[Cleanup::Unmap { start: self.base, len: size }, close])
            }
        }
    }

    /// One call from a stub. Memory first, then one SETREGS, then the signal mask, then go.
    fn send(&mut self, nr: i64, args: [u64; 6], cleanup: &[Cleanup]) -> Result<()> {
        let slot = self.next;
        self.next = if slot == Slot::Even { Slot::Odd } else { Slot::Even };
        let at = self.room.place(&self.mem, self.pid, slot, cleanup, &self.way_back)?;
        let stopped = self.take_stopped()?;
        let sent = stopped.set_regs(&calling(&self.way_back.regs, at, nr, args));
        let masked = sent.and_then(|()| stopped.set_sigmask(ALL_SIGNALS));
        self.tracee = At::Stub(stopped);
        masked?;
        let running = self.take_stopped()?.cont_to_syscall()?;
        self.tracee = At::Running(running, NextStop::Entry);
        Ok(())
    }

    /// From the stop at the beginning of the call on to the one at its end.
    fn pass(&mut self) -> Result<()> {
        if let At::Running(running, NextStop::Entry) = std::mem::replace(&mut self.tracee, At::Lost) {
            let stopped = syscall_stop(running, &mut self.owed_stop)?;
            self.tracee = At::Running(stopped.cont_to_syscall()?, NextStop::Exit);
        }
        Ok(())
    }

    /// Waits for the end of the call that was begun; yields its raw result.
    fn result(&mut self) -> Result<i64> {
        let At::Running(running, NextStop::Exit) = std::mem::replace(&mut self.tracee, At::Lost) else {
            return Err(Error::Gone(self.pid));
        };
        let stopped = syscall_stop(running, &mut self.owed_stop)?;
        let result = stopped.regs()?.rax as i64;
        self.tracee = At::Stub(stopped);
        Ok(result)
    }

    fn finish(&mut self, call: Call) -> Result<()> {
        let result = self.result()?;
        if (-4095..0).contains(&result) {
            let errno = nix::errno::Errno::from_raw(-result as i32);
            let operation = match call {
                Call::MakeMemfd => "making the parasite's memory",
                Call::Map => "mapping the parasite",
                Call::Protect => "entering",
            };
            return Err(Error::sys(operation, Subject::Pid(self.pid), errno));
        }
        match call {
            Call::MakeMemfd => {
                let fd = i32::try_from(result).unwrap_or(-1);
                self.remote_fd = Some(fd);
                self.region = Some(self.fetch(fd)?);
            }
            Call::Map => self.mapped = Mapped::Yes,
            Call::Protect => {}
        }
        Ok(())
    }

    /// The controller's own copy of the memfd, sized, mapped and filled.
    fn fetch(&self, fd: i32) -> Result<(OwnedFd, SharedMapping)> {
        let subject = || Subject::Fd(self.pid, fd);
        let memfd = crate::sys::process::pidfd_getfd(self.pidfd.as_fd(), RemoteFd(fd)).during("fetching", subject())?;
        nix::unistd::ftruncate(&memfd, wire::REGION_SIZE as i64).during("sizing", subject())?;
        let len = usize::try_from(wire::REGION_SIZE).unwrap_or(0);
        let mapping = SharedMapping::new(memfd.as_fd(), len).during("mapping", subject())?;
        let blob = blob::load(self.base)?;
        mapping.write(0, &blob.bytes).during("writing", subject())?;
        mapping.write(wire::DATA_OFFSET, &idle_header(self.base)).during("writing", subject())?;
        Ok((memfd, mapping))
    }

    /// Sends the tracee into the parasite, which runs the first batch and closes the memfd.
    ///
    /// Until the one SETREGS the tracee stands in the stub of the last call, which unmaps the region and closes the memfd. From then on the
    /// parasite runs the batch to its end whether or not there still is a controller.
    fn start(mut self) -> Result<Started> {
        let (Some((memfd, mapping)), Some(remote_fd)) = (self.region.take(), self.remote_fd) else {
            return Err(Error::Gone(self.pid));
        };
        let stopped = self.take_stopped()?;
        let mut first = self.first;
        let close = first.call(libc::SYS_close, [remote_fd.into()]);
        let mut infected = Infected {
            pid: self.pid,
            tracee: Tracee::Lost,
            mem: self.mem,
            base: self.base,
            mapping,
            memfd,
            room: self.room,
            original: self.original,
            going_on: self.going_on,
            others: self.others,
            stubs: Stubs::Free,
            owed_stop: self.owed_stop,
        };
        infected.place_exit_stub()?;
        infected.place_batch(&first)?;
        infected.state()?.store(wire::REQUEST, Ordering::Release);
        let entry = blob::load(self.base)?.entry;
        let regs = user_regs_struct {
            rip: self.base + entry,
            rdi: self.base,
            rsp: self.base + wire::STACK_TOP,
            orig_rax: u64::MAX,
            ..self.way_back.regs
        };
        stopped.set_regs(&regs)?;
        infected.tracee = Tracee::Serving(stopped.cont_without_signal()?);
        Ok(Started { infected, first, close, remote_fd })
    }

    /// After a failed step: undoes what was done and brings the tracee back to where it was. Where even that fails it is let go in its stub,
    /// which does the same.
    fn abandon(mut self) {
        if let Err(error) = self.give_back() {
            tracing::debug!(pid = self.pid.0, %error, "a tracee was let go in its stub");
        }
        super::send_owed_stop(self.owed_stop, self.pid);
    }

    fn give_back(&mut self) -> Result<()> {
        self.pass()?;
        if matches!(self.tracee, At::Running(..)) {
            let result = self.result()?;
            // A memfd that nobody has noted is told by its result; a mapping that was made is told by the address.
            match (self.remote_fd, result) {
                (None, fd @ 0..) => self.remote_fd = i32::try_from(fd).ok(),
                (Some(_), address) if address as u64 == self.base => self.mapped = Mapped::Yes,
                _ => {}
            }
        }
        if self.mapped == Mapped::Yes {
            self.undo(libc::SYS_munmap, [self.base, wire::REGION_SIZE, 0, 0, 0, 0])?;
        }
        if let Some(fd) = self.remote_fd {
            self.undo(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
        }
        let in_stub = matches!(self.tracee, At::Stub(_));
        let mut stopped = self.take_stopped()?;
        if in_stub {
            stopped.interrupt_next()?;
            stopped = stopped.cont_without_signal()?.settle()?;
            stopped.set_sigmask(self.original.sigmask)?;
        }
        stopped.set_regs(&self.going_on)?;
        self.room.put_back(&self.mem, self.pid)?;
        stopped.release()
    }

    fn undo(&mut self, nr: i64, args: [u64; 6]) -> Result<()> {
        self.send(nr, args, &[])?;
        self.pass()?;
        self.result().map(drop)
    }
}

/// A tracee on whose first batch the parasite is.
struct Started {
    infected: Infected,
    first: Batch,
    close: CallId,
    remote_fd: i32,
}

impl Started {
    fn answer(mut self) -> Result<(Infected, Answers)> {
        let answers = self.infected.answer(self.first)?;
        let closed = answers.result(self.close);
        closed.during("closing the parasite's memory", Subject::Fd(self.infected.pid, self.remote_fd))?;
        Ok((self.infected, answers))
    }
}
