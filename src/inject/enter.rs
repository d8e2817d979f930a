//! The way in: three calls from stubs, then one SETREGS into the parasite, whose first batch closes the memfd.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use libc::user_regs_struct;

use super::batch::{Answers, Batch};
use super::rest::{self, Transfer, Whereabouts};
use super::restart::{self, Pending};
use super::stub::{Cleanup, Place, REGION_NAME, Room, Slot, WayBack};
use super::{ALL_SIGNALS, Infected, Placement, Stubs, ThreadState, Tracee, blob, idle_header};
use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr, RemoteFd, Tid};
use crate::sys::region::SharedMapping;
use crate::trace::{StopReason, Stopped, Wait};
use crate::wire;

/// What the caller knows about a tracee that is to be infected.
pub struct Entry<'a> {
    pub pid: Pid,
    /// The process's pidfd, to fetch the memfd through.
    pub pidfd: &'a OwnedFd,
    /// Where the entry code may go, best first.
    pub places: Vec<Place>,
    /// Where the region goes: [`wire::REGION_SIZE`] bytes.
    pub base: u64,
    pub placement: Placement,
    /// Whether an unblocked signal waits for the thread.
    pub pending: Pending,
    /// How many bytes the rest of a call that the stop cut short has to move; 0 where it was not the stop. See `rest`.
    pub left: &'a dyn Fn(&Transfer) -> u64,
    /// The registers of the other threads, which are stopped too.
    pub others: BTreeMap<Tid, user_regs_struct>,
}

/// For tracees whose calls are of no interest.
pub fn nothing_left(_: &Transfer) -> u64 {
    0
}

impl Infected {
    /// Brings the parasite into a stopped thread group leader.
    ///
    /// On an error the tracee has been given back what it had and was released; it runs on.
    pub fn infect(stopped: Stopped, entry: &Entry<'_>) -> Result<Infected> {
        Ok(Infected::infect_and_ask(stopped, entry, Batch::new())?.0)
    }

    /// As [`infect`](Infected::infect), with a batch that is run on the way. No call of it may end it early ([`Batch::must`]): the way in
    /// ends with a call behind it.
    pub fn infect_and_ask(stopped: Stopped, entry: &Entry<'_>, first: Batch) -> Result<(Infected, Answers)> {
        let at_stop = ThreadState { regs: stopped.regs()?, xstate: stopped.xstate()?, sigmask: stopped.sigmask()? };
        let mem = open_mem(entry.pid)?;
        let room = Room::find(&mem, entry.pid, &entry.places)?;
        let threads = || entry.others.values().chain([&at_stop.regs]);
        if threads().any(|regs| room.holds(regs.rip)) {
            return Err(Error::Leaving(entry.pid));
        }
        let site = Site { mem: &mem, pid: entry.pid, room: &room, threads: threads().copied().collect() };
        let (regs, going_on) = site.resumption(&at_stop.regs, entry.pending, entry.left)?;
        let original = ThreadState { regs, ..at_stop };
        let way_back = WayBack { regs: restart::without_kernel_restart(&going_on), sigmask: original.sigmask };
        let mut bootstrap =
            Bootstrap { entry, mem, room, way_back, original, going_on, next: Slot::Even, owed_stop: false };
        match bootstrap.run(stopped) {
            Ok((stopped, placed)) => bootstrap.start(stopped, placed, first),
            Err((error, stopped)) => {
                if let Some(stopped) = stopped {
                    bootstrap.give_back(stopped)?;
                }
                Err(error)
            }
        }
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
    /// The registers to record, and those to go on with: the same, but where the stop cut a call short.
    pub fn resumption(
        &self,
        regs: &user_regs_struct,
        pending: Pending,
        left: &dyn Fn(&Transfer) -> u64,
    ) -> Result<(user_regs_struct, user_regs_struct)> {
        let Site { mem, pid, room, threads } = self;
        let (behind, transfer) = match rest::whereabouts(mem, *pid, regs, room.rests(), pending)? {
            Whereabouts::Itself(regs) => {
                let regs = restart::continued(&regs, pending);
                return Ok((regs, regs));
            }
            Whereabouts::Cut(behind, transfer) => (behind, transfer),
        };
        let left = left(&transfer);
        let slot = rest::unused(mem, *pid, room.rests(), threads)?.first().copied();
        let (Some(slot), true) = (slot, left > 0) else { return Ok((behind, behind)) };
        let rest = rest::place(mem, *pid, slot, &behind, &transfer, left)?;
        Ok((behind, rest.unwrap_or(behind)))
    }
}

/// /proc/PID/mem, through which text that is not writable can be written by a tracer.
pub fn open_mem(pid: Pid) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .during("opening the memory", Subject::Pid(pid))
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
    let mut stopped = stopped;
    let mut stops = 0;
    while stops < 2 {
        let running = stopped.cont_to_syscall()?;
        let tid = running.tid();
        stopped = match running.wait()? {
            Wait::Gone(_) => return Err(Error::Gone(Pid(tid.0))),
            Wait::Stopped(stopped) => stopped,
        };
        match stopped.reason() {
            StopReason::Syscall => stops += 1,
            // All other signals are blocked. The release sends it again.
            StopReason::Signal(_) => *owed_stop = true,
            StopReason::Interrupt | StopReason::GroupStop(_) | StopReason::Clone => {}
        }
    }
    let result = stopped.regs()?.rax as i64;
    Ok((stopped, result))
}

type Lost = (Error, Option<Stopped>);

/// The region as it is in the tracee before the parasite runs.
struct Placed {
    memfd: OwnedFd,
    mapping: SharedMapping,
    /// The tracee's number of the memfd.
    remote_fd: i32,
}

struct Bootstrap<'a> {
    entry: &'a Entry<'a>,
    mem: File,
    room: Room,
    way_back: WayBack,
    original: ThreadState,
    going_on: user_regs_struct,
    next: Slot,
    owed_stop: bool,
}

impl Bootstrap<'_> {
    /// The three calls. An error brings the tracee back at a syscall stop in a stub, so that it can be given back its state.
    fn run(&mut self, stopped: Stopped) -> std::result::Result<(Stopped, Placed), Lost> {
        // The memfd's name has to lie in the victim's memory: behind the code of the exit slot, which is not yet in use.
        let name = self.room.slot(Slot::Exit);
        if let Err(error) = self.mem.write_all_at(REGION_NAME, name.0).during("writing", Subject::Pid(self.entry.pid)) {
            return Err((error, Some(stopped)));
        }
        let size = wire::REGION_SIZE;
        let (stopped, remote_fd) = self.call(
            stopped,
            libc::SYS_memfd_create,
            [name.0, u64::from(libc::MFD_CLOEXEC), 0, 0, 0, 0],
            &[Cleanup::CloseResult],
        )?;
        let fd = i32::try_from(remote_fd).unwrap_or(-1);
        let close = Cleanup::Close { fd };
        let (memfd, mapping) = match self.fetch(fd) {
            Ok(fetched) => fetched,
            Err(error) => {
                let (stopped, _) = self.call(stopped, libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0], &[])?;
                return Err((error, Some(stopped)));
            }
        };
        let fixed = match self.entry.placement {
            Placement::Free => libc::MAP_FIXED_NOREPLACE,
            Placement::Replace => libc::MAP_FIXED,
        };
        let flags = (libc::MAP_SHARED | fixed) as u64;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let mapped = self.call(
            stopped,
            libc::SYS_mmap,
            [self.entry.base, size, protection, flags, fd as u64, 0],
            &[Cleanup::UnmapResult { len: size }, close],
        );
        let (stopped, _) = mapped.map_err(|lost| self.close_after(lost, fd))?;
        let unmap = Cleanup::Unmap { start: self.entry.base, len: size };
        let text = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let (stopped, _) = self.call(
            stopped,
            libc::SYS_mprotect,
            [self.entry.base, wire::DATA_OFFSET, text, 0, 0, 0],
            &[unmap, close],
        )?;
        Ok((stopped, Placed { memfd, mapping, remote_fd: fd }))
    }

    fn close_after(&mut self, (error, stopped): Lost, fd: i32) -> Lost {
        let Some(stopped) = stopped else { return (error, None) };
        match self.call(stopped, libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0], &[]) {
            Ok((stopped, _)) => (error, Some(stopped)),
            Err((_, stopped)) => (error, stopped),
        }
    }

    /// One call from a stub. Memory first, then one SETREGS, then the signal mask, then go.
    fn call(
        &mut self,
        stopped: Stopped,
        nr: i64,
        args: [u64; 6],
        cleanup: &[Cleanup],
    ) -> std::result::Result<(Stopped, i64), Lost> {
        let slot = self.next;
        self.next = if slot == Slot::Even { Slot::Odd } else { Slot::Even };
        let at = match self.room.place(&self.mem, self.entry.pid, slot, cleanup, &self.way_back) {
            Ok(at) => at,
            Err(error) => return Err((error, Some(stopped))),
        };
        let regs = calling(&self.way_back.regs, at, nr, args);
        if let Err(error) = stopped.set_regs(&regs).and_then(|()| stopped.set_sigmask(ALL_SIGNALS)) {
            return Err((error, Some(stopped)));
        }
        let (stopped, result) = run_call(stopped, &mut self.owed_stop).map_err(|error| (error, None))?;
        if (-4095..0).contains(&result) {
            let errno = nix::errno::Errno::from_raw(-result as i32);
            let operation = match nr {
                libc::SYS_memfd_create => "making the parasite's memory",
                libc::SYS_mmap => "mapping the parasite",
                _ => "entering",
            };
            return Err((Error::sys(operation, Subject::Pid(self.entry.pid), errno), Some(stopped)));
        }
        Ok((stopped, result))
    }

    /// The controller's own copy of the memfd, sized, mapped and filled.
    fn fetch(&self, fd: i32) -> Result<(OwnedFd, SharedMapping)> {
        let subject = || Subject::Fd(self.entry.pid, fd);
        let memfd =
            crate::sys::process::pidfd_getfd(self.entry.pidfd.as_fd(), RemoteFd(fd)).during("fetching", subject())?;
        nix::unistd::ftruncate(&memfd, wire::REGION_SIZE as i64).during("sizing", subject())?;
        let len = usize::try_from(wire::REGION_SIZE).unwrap_or(0);
        let mapping = SharedMapping::new(memfd.as_fd(), len).during("mapping", subject())?;
        let blob = blob::load(self.entry.base)?;
        mapping.write(0, &blob.bytes).during("writing", subject())?;
        mapping.write(wire::DATA_OFFSET, &idle_header(self.entry.base)).during("writing", subject())?;
        Ok((memfd, mapping))
    }

    /// Sends the tracee into the parasite, which runs the first batch and closes the memfd.
    ///
    /// Until the one SETREGS the tracee stands in the stub of the last call, which unmaps the region and closes the memfd. From then on the
    /// parasite runs the batch to its end whether or not there still is a controller.
    fn start(self, stopped: Stopped, placed: Placed, first: Batch) -> Result<(Infected, Answers)> {
        let base = self.entry.base;
        let Placed { memfd, mapping, remote_fd } = placed;
        let mut first = first;
        let close = first.call(libc::SYS_close, [remote_fd.into()]);
        let mut infected = Infected {
            pid: self.entry.pid,
            tracee: Tracee::Lost,
            mem: self.mem,
            base,
            mapping,
            memfd,
            room: self.room,
            original: self.original,
            going_on: self.going_on,
            others: self.entry.others.clone(),
            stubs: Stubs::Free,
            owed_stop: self.owed_stop,
        };
        infected.place_exit_stub()?;
        infected.place_batch(&first)?;
        infected.state()?.store(wire::REQUEST, Ordering::Release);
        let entry = blob::load(base)?.entry;
        let regs = user_regs_struct {
            rip: base + entry,
            rdi: base,
            rsp: base + wire::STACK_TOP,
            orig_rax: u64::MAX,
            ..self.way_back.regs
        };
        stopped.set_regs(&regs)?;
        infected.tracee = Tracee::Serving(stopped.cont_without_signal()?);
        let answers = infected.answer(first)?;
        answers.result(close).during("closing the parasite's memory", Subject::Fd(infected.pid, remote_fd))?;
        Ok((infected, answers))
    }

    /// After a failed step: from the syscall stop in a stub back to where the tracee was.
    fn give_back(&self, stopped: Stopped) -> Result<()> {
        stopped.interrupt_next()?;
        let stopped = stopped.cont_without_signal()?.settle()?;
        stopped.set_sigmask(self.original.sigmask)?;
        stopped.set_regs(&self.going_on)?;
        self.room.put_back(&self.mem, self.entry.pid)?;
        super::send_owed_stop(self.owed_stop, self.entry.pid);
        stopped.release()
    }
}
