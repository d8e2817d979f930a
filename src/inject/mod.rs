//! Running code in a tracee: the parasite's way in, its batches, its way out.
//!
//! 1. Three calls run from stubs in the vDSO's tail: memfd_create, mmap, mprotect. Each stub undoes its step and those before if the tracer
//!    dies.
//! 2. The controller fetches the memfd, maps it too and fills it: the blob, the header, the victim's registers, the first batch.
//! 3. One SETREGS sends the tracee to the parasite, which saves the extended state, runs the first batch, whose last call closes the memfd,
//!    and waits for more.
//! 4. [`Infected::cure`] gives the extended state back, sends the tracee through the exit stub, which unmaps the region, and stops it
//!    before it runs an instruction of its own, to set its original registers: the kernel's own restart of an interrupted call then works.
//!
//! Signals are blocked from the first step to the last. Where to place the region is the caller's business.

pub mod batch;
mod blob;
mod call;
mod enter;
mod leave;
pub mod rest;
pub mod restart;
pub mod rseq;
mod stub;
mod tiles;
mod visit;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libc::user_regs_struct;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::sys::region::{SharedMapping, futex_wait};
use crate::trace::{Running, StopReason, Stopped, Wait};
use crate::wire::{self, Header};

use batch::{Answers, Ask, Batch};
use rest::Rest;
use stub::{Room, Slot, WayBack};

pub use call::Call;
pub use enter::{Arrival, Entry, nothing_left, open_mem};
pub use stub::{Place, content_end as vdso_content_end, stubs_behind};
pub use visit::{Guest, Visit};

/// All signals blocked; SIGKILL and SIGSTOP cannot be.
const ALL_SIGNALS: u64 = u64::MAX;

/// How the region is placed in a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The range is free; the kernel refuses if it is not.
    Free,
    /// The range holds the region of the stub from which this one was forked, which the new one replaces.
    Replace,
}

/// What a thread is to be when the parasite has left.
#[derive(Debug, Clone)]
pub struct ThreadState {
    pub regs: user_regs_struct,
    /// What is left of the call behind which the registers are, where a stop has cut it short.
    pub rest: Option<Rest>,
    /// XSAVE image as NT_X86_XSTATE gives it.
    pub xstate: Vec<u8>,
    pub sigmask: u64,
}

impl ThreadState {
    fn of(stopped: &Stopped) -> Result<ThreadState> {
        let (regs, xstate) = (stopped.regs()?, stopped.xstate()?);
        Ok(ThreadState { regs, xstate, sigmask: stopped.sigmask()?, rest: None })
    }

    /// The same with the registers that it goes on with.
    fn going_on(&self, regs: &user_regs_struct) -> ThreadState {
        ThreadState { regs: *regs, rest: None, ..self.clone() }
    }
}

/// The thread group leader between and during batches.
#[derive(Debug)]
enum Tracee {
    Stopped(Stopped),
    /// A batch was posted and not yet collected.
    Serving(Running),
    /// On the way out, in the exit stub: it finds the rest of the way by itself.
    Leaving(Running),
    Lost,
}

/// Whether anybody but the leader may still be in a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stubs {
    Free,
    /// A thread could not be brought back from one: its code has to stay where it is.
    Occupied,
}

/// A tracee in which the parasite waits for batches, in a ptrace stop.
#[derive(Debug)]
#[must_use = "an infected tracee must be cured"]
pub struct Infected {
    pid: Pid,
    tracee: Tracee,
    mem: File,
    base: u64,
    mapping: SharedMapping,
    memfd: OwnedFd,
    room: Room,
    original: ThreadState,
    /// What the thread goes on with after a cure: `original`, or the rest of a call that the stop cut short.
    going_on: user_regs_struct,
    /// What the other threads go on with.
    others: BTreeMap<Tid, user_regs_struct>,
    stubs: Stubs,
    /// A SIGSTOP that came meanwhile; it is sent again at the release.
    owed_stop: bool,
}

const STATE_AT: u64 = wire::DATA_OFFSET + std::mem::offset_of!(Header, state) as u64;
const BATCH_AT: u64 = wire::DATA_OFFSET + std::mem::offset_of!(Header, batch) as u64;
const UNDO_AT: u64 = wire::DATA_OFFSET + std::mem::offset_of!(Header, undo) as u64;
const RESUME_AT: u64 = wire::DATA_OFFSET + std::mem::offset_of!(Header, resume) as u64;
/// How long to sleep between looks at a tracee that does not answer.
const LOOK: Duration = Duration::from_millis(20);

impl Infected {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The thread's state at the stop, with a call that the stop broke made good: what the images record.
    pub fn original(&self) -> &ThreadState {
        &self.original
    }

    /// The tracee's memory, /proc/PID/mem.
    pub fn mem(&self) -> &File {
        &self.mem
    }

    /// The region's address range in the tracee.
    pub fn region(&self) -> Range<u64> {
        self.base..self.base + wire::REGION_SIZE
    }

    fn span(offset: u64, calls: usize) -> Vec<u8> {
        [offset.to_ne_bytes(), (calls as u64).to_ne_bytes()].concat()
    }

    /// Writes into the region behind [`wire::HOLD_OFFSET`] or the arena; the tracee is stopped. EFAULT where it does not fit.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mapping.write(offset, bytes).during("writing the region", Subject::Pid(self.pid))
    }

    /// Reads from the region.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.mapping.read(offset, len)
    }

    /// Sets what the parasite runs when the controller is gone, before it leaves. It is placed at `offset` behind
    /// [`wire::HOLD_OFFSET`], which the caller manages; the switch from the old to the new one is not torn, because the tracee is stopped
    /// and an empty span stands in between.
    pub fn set_undo(&self, batch: &Batch, offset: u64) -> Result<()> {
        self.clear_undo()?;
        self.write(offset, &batch.encode(self.base, offset))?;
        self.write(UNDO_AT, &offset.to_ne_bytes())?;
        self.write(UNDO_AT + 8, &(batch.len() as u64).to_ne_bytes())
    }

    /// Nothing is to be undone any more.
    pub fn clear_undo(&self) -> Result<()> {
        self.write(UNDO_AT + 8, &0u64.to_ne_bytes())
    }

    /// Posts a batch and lets the tracee run; [`answer`](Infected::answer) collects it. Batches of several tracees run at the same time this way.
    pub fn post(&mut self, batch: &Batch) -> Result<()> {
        self.place_batch(batch)?;
        let stopped = self.take_stopped()?;
        self.state()?.store(wire::REQUEST, Ordering::Release);
        self.tracee = Tracee::Serving(stopped.cont_without_signal()?);
        Ok(())
    }

    /// Puts a batch where the parasite finds it at the next request.
    fn place_batch(&self, batch: &Batch) -> Result<()> {
        if wire::ARENA_OFFSET + batch.size() as u64 > wire::HOLD_OFFSET {
            return Err(Error::failed(format!("a batch of {} bytes does not fit the region", batch.size())));
        }
        self.write(wire::ARENA_OFFSET, &batch.encode(self.base, wire::ARENA_OFFSET))?;
        self.write(BATCH_AT, &Self::span(wire::ARENA_OFFSET, batch.len()))
    }

    fn take_stopped(&mut self) -> Result<Stopped> {
        match std::mem::replace(&mut self.tracee, Tracee::Lost) {
            Tracee::Stopped(stopped) => Ok(stopped),
            Tracee::Serving(_) | Tracee::Leaving(_) | Tracee::Lost => Err(Error::Gone(self.pid)),
        }
    }

    fn take_serving(&mut self) -> Result<Running> {
        match std::mem::replace(&mut self.tracee, Tracee::Lost) {
            Tracee::Serving(running) => Ok(running),
            Tracee::Stopped(_) | Tracee::Leaving(_) | Tracee::Lost => Err(Error::Gone(self.pid)),
        }
    }

    /// Collects the answers of the batch that was posted.
    pub fn answer(&mut self, batch: Batch) -> Result<Answers> {
        self.await_done()?;
        let bytes = self.mapping.read(wire::ARENA_OFFSET, batch.size());
        Ok(batch.answers(bytes))
    }

    fn state(&self) -> Result<&std::sync::atomic::AtomicU32> {
        self.mapping.atomic(STATE_AT).during("reading the region", Subject::Pid(self.pid))
    }

    /// Waits until the parasite has answered, and stops it.
    fn await_done(&mut self) -> Result<()> {
        let mut running = self.take_serving()?;
        while self.state()?.load(Ordering::Acquire) == wire::REQUEST {
            if !matches!(futex_wait(self.state()?, wire::REQUEST, LOOK), Err(nix::errno::Errno::ETIMEDOUT)) {
                continue;
            }
            running = match running.poll()? {
                Err(running) => running,
                Ok(Wait::Gone(_)) => return Err(Error::Gone(self.pid)),
                Ok(Wait::Stopped(stopped)) => self.unexpected_stop(stopped)?,
            };
        }
        if self.state()?.load(Ordering::Acquire) == wire::LEAVING {
            running.leave_to_the_end();
            return Err(self.held_up());
        }
        running.interrupt()?;
        self.settle(running)
    }

    /// The parasite has left, or is about to: the process is its own again, and nothing is to be put back by us.
    fn held_up(&mut self) -> Error {
        send_owed_stop(std::mem::take(&mut self.owed_stop), self.pid);
        Error::failed(format!(
            "process {}: the parasite gave up waiting, because this controller was held up for seconds; try again",
            self.pid
        ))
    }

    /// Waits for the stop after an answer, and takes the request away: from here on a resumption means that the controller is gone.
    fn settle(&mut self, running: Running) -> Result<()> {
        let mut running = running;
        let stopped = loop {
            let tid = running.tid();
            match running.wait()? {
                Wait::Gone(_) => return Err(Error::Gone(Pid(tid.0))),
                Wait::Stopped(stopped)
                    if matches!(stopped.reason(), StopReason::Interrupt | StopReason::GroupStop(_)) =>
                {
                    break stopped;
                }
                Wait::Stopped(stopped) => running = self.unexpected_stop(stopped)?,
            }
        };
        let collected = self.state()?.compare_exchange(wire::DONE, wire::IDLE, Ordering::AcqRel, Ordering::Acquire);
        if collected.is_err() {
            // It may be out already, in the call that it was in before.
            drop(stopped);
            return Err(self.held_up());
        }
        self.tracee = Tracee::Stopped(stopped);
        Ok(())
    }

    /// A stop in the middle of a batch: SIGSTOP is owed for later; a fault is the parasite's own and ends the work.
    fn unexpected_stop(&mut self, stopped: Stopped) -> Result<Running> {
        match stopped.reason() {
            StopReason::Signal(libc::SIGSTOP) => {
                self.owed_stop = true;
                stopped.cont_without_signal()
            }
            StopReason::Signal(signal) => {
                let regs = stopped.regs()?;
                self.tracee = Tracee::Stopped(stopped);
                Err(Error::unexpected(
                    format!("the parasite in process {}", self.pid),
                    format!("it stopped with signal {signal} at {:#x}", regs.rip.wrapping_sub(self.base)),
                ))
            }
            _ => stopped.cont(),
        }
    }

    /// Runs a batch whose one clone call makes a child, and yields the child, stopped before its first instruction.
    ///
    /// The tracee must have been given the clone trace options. The child shares the parent's region until it is infected itself, and must
    /// not run before that.
    pub fn ask_for_child(&mut self, batch: Batch) -> Result<(Answers, Option<Stopped>)> {
        self.post(&batch)?;
        let mut running = self.take_serving()?;
        let mut child = None;
        while self.state()?.load(Ordering::Acquire) == wire::REQUEST {
            running = match running.poll()? {
                Err(running) => {
                    let _ = futex_wait(self.state()?, wire::REQUEST, Duration::from_micros(50));
                    running
                }
                Ok(Wait::Gone(_)) => return Err(Error::Gone(self.pid)),
                Ok(Wait::Stopped(stopped)) if stopped.reason() == StopReason::Clone => {
                    let tid = Tid(i32::try_from(stopped.event_message()?).unwrap_or(-1));
                    child = Some(Running::attached_by_clone(tid).settle()?);
                    stopped.cont()?
                }
                Ok(Wait::Stopped(stopped)) => self.unexpected_stop(stopped)?,
            };
        }
        self.tracee = Tracee::Serving(running);
        Ok((self.answer(batch)?, child))
    }

    /// The last resort: undoes, as the parasite would without a controller, and cures.
    fn give_up(&mut self) -> Result<()> {
        if matches!(self.tracee, Tracee::Serving(_)) {
            self.await_done()?;
        }
        let undo = self.read(UNDO_AT, 16);
        if undo.get(8..).is_some_and(|calls| calls != [0; 8]) {
            self.write(BATCH_AT, &undo)?;
            let stopped = self.take_stopped()?;
            self.state()?.store(wire::REQUEST, Ordering::Release);
            self.tracee = Tracee::Serving(stopped.cont_without_signal()?);
            self.await_done()?;
            self.clear_undo()?;
        }
        self.cure_now()?.release()
    }

    /// Posts a batch at whose end the task no longer exists, and waits for that.
    pub fn run_to_end(&mut self, batch: &Batch) -> Result<()> {
        self.post(batch)?;
        let mut running = self.take_serving()?;
        loop {
            match running.wait()? {
                Wait::Gone(_) => return Ok(()),
                Wait::Stopped(stopped) => running = stopped.cont()?,
            }
        }
    }

    /// The tracee was killed on purpose: nothing is put back.
    pub fn forget_killed(mut self) {
        if let Ok(stopped) = self.take_stopped() {
            stopped.forget_killed();
        }
    }

    /// The stopped thread, for ptrace requests that change nothing.
    pub fn stopped(&self) -> Result<&Stopped> {
        match &self.tracee {
            Tracee::Stopped(stopped) => Ok(stopped),
            Tracee::Serving(_) | Tracee::Leaving(_) | Tracee::Lost => Err(Error::Gone(self.pid)),
        }
    }

    /// The vDSO was moved in the tracee, and the entry code in its tail with it.
    pub fn vdso_moved(&mut self, by: i64) -> Result<()> {
        self.room.moved(by);
        self.place_exit_stub()
    }

    fn place_exit_stub(&self) -> Result<()> {
        let back = WayBack { regs: restart::without_kernel_restart(&self.going_on), sigmask: self.original.sigmask };
        // The exit stub's first call is the unmapping, with registers that the parasite, or the controller, loads for it.
        let exit_stub = self.room.place(&self.mem, self.pid, Slot::Exit, &[], &back)?;
        let regs = &back.regs;
        let resume = [regs.rbx, regs.rbp, regs.rsp, regs.r12, regs.r13, regs.r14, regs.r15, regs.eflags, exit_stub.0];
        self.write(RESUME_AT, &words(&resume))
    }

    /// The memfd of the region, for children that are to share it.
    pub fn memfd(&self) -> &OwnedFd {
        &self.memfd
    }
}

impl Drop for Infected {
    fn drop(&mut self) {
        if matches!(self.tracee, Tracee::Lost | Tracee::Leaving(_)) {
            return;
        }
        if let Err(error) = self.give_up() {
            // The parasite, without a controller, does the same; only its entry code stays behind.
            tracing::debug!(pid = self.pid.0, %error, "curing as the last resort");
        }
    }
}

/// A SIGSTOP that was taken from a process is sent again, unless a SIGCONT has come since. A plain kill(2): the signal was sent to the process
/// and had not been seen by anyone yet.
fn send_owed_stop(owed: bool, pid: Pid) {
    let continued = |status: crate::procfs::Status| {
        (status.signals.pending | status.signals.shared_pending) & (1 << (libc::SIGCONT - 1)) != 0
    };
    if owed && !crate::procfs::Status::read(pid).is_ok_and(continued) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::Signal::SIGSTOP);
    }
}

impl Ask for Infected {
    fn ask(&mut self, batch: Batch) -> Result<Answers> {
        self.post(&batch)?;
        self.answer(batch)
    }
}

/// Words as they lie in the region.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// The bytes of a [`Header`] in which nothing is asked yet; the layout is asserted in `wire`.
fn idle_header(base: u64) -> Vec<u8> {
    let mut bytes = [wire::MAGIC, wire::VERSION, wire::IDLE, 0].map(u32::to_ne_bytes).concat();
    bytes.extend(words(&[base, wire::REGION_SIZE, 0, 0, 0, 0]));
    bytes.resize(size_of::<Header>(), 0);
    bytes
}

/// Registers with every field zero, to be filled.
pub fn zero_regs() -> user_regs_struct {
    user_regs_struct {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        rbp: 0,
        rbx: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rax: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        orig_rax: 0,
        rip: 0,
        cs: 0,
        eflags: 0,
        rsp: 0,
        ss: 0,
        fs_base: 0,
        gs_base: 0,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}
