//! Calls in the other threads of an infected process.
//!
//! The parasite is in the thread group leader only. Another thread runs single calls from a stub, as on the way in: the stub lies in the two
//! slots' place that the way in no longer needs, and after its one `syscall` leads back to where the thread was. What the calls read and write lies
//! in the parasite's region. If the controller dies the leader may unmap the region first: the thread's call then fails with EFAULT, which it
//! does not look at, and it goes on.
//!
//! One thread at a time; all others are stopped.

use libc::user_regs_struct;

use super::batch::{Answers, Ask, Batch, OnError};
use super::enter::{self, Resumption, Site};
use super::rest::{Left, Transfer};
use super::restart::{self, Pending};
use super::stub::{Slot, WayBack};
use super::{ALL_SIGNALS, Call, Infected, Stubs, ThreadState};
use crate::error::{Error, Result};
use crate::ids::{RemoteAddr, Tid};
use crate::trace::Stopped;
use crate::wire;

/// What the caller knows about a thread that is to be visited.
pub struct Visit<'a> {
    /// Whether an unblocked signal waits for it.
    pub pending: Pending,
    /// As in [`Entry`](super::Entry).
    pub left: &'a dyn Fn(&Transfer) -> Left,
}

/// A thread that runs batches, call by call. [`leave`](Guest::leave) or [`leave_as`](Guest::leave_as) ends the visit.
#[must_use = "a visit must be ended"]
#[derive(Debug)]
pub struct Guest<'a> {
    host: &'a mut Infected,
    tid: Tid,
    /// None once it is lost.
    stopped: Option<Stopped>,
    at: RemoteAddr,
    /// Whether it has been sent to the stub.
    sent: Sent,
    back: WayBack,
    original: ThreadState,
    going_on: user_regs_struct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Not,
    ToStub,
}

impl Infected {
    /// Prepares a stopped thread of the process for batches. On an error it runs on as it was.
    pub fn visit(&mut self, stopped: Stopped, visit: &Visit<'_>) -> Result<Guest<'_>> {
        let at_stop = ThreadState::of(&stopped)?;
        let tid = stopped.tid();
        if self.stubs == Stubs::Occupied || self.room.holds(at_stop.regs.rip) {
            return Err(Error::Leaving(self.pid));
        }
        let mut others = self.others.clone();
        others.insert(tid, at_stop.regs);
        let threads = others.values().chain([&self.going_on]).copied().collect();
        let site = Site { mem: &self.mem, pid: self.pid, room: &self.room, threads };
        let Resumption { recorded, rest, going_on } = site.resumption(&stopped, visit.pending, visit.left)?;
        self.others.insert(tid, going_on);
        let original = ThreadState { regs: recorded, rest, ..at_stop };
        let back = WayBack { regs: restart::without_kernel_restart(&going_on), sigmask: original.sigmask };
        let at = self.room.place(&self.mem, self.pid, Slot::Even, &[], &back)?;
        Ok(Guest { host: self, tid, stopped: Some(stopped), at, sent: Sent::Not, back, original, going_on })
    }
}

impl Infected {
    /// Lets a stopped thread of the process go into a call that it does not return from. `mask` is its signal mask from then on.
    pub fn last_call(&mut self, stopped: Stopped, nr: i64, argument: u64, mask: u64) -> Result<()> {
        let regs = stopped.regs()?;
        let at = self.room.place(&self.mem, self.pid, Slot::Even, &[], &WayBack { regs, sigmask: mask })?;
        stopped.set_regs(&enter::calling(&regs, at, nr, [argument, 0, 0, 0, 0, 0]))?;
        stopped.set_sigmask(ALL_SIGNALS)?;
        let entered = enter::syscall_stop(stopped.cont_to_syscall()?, &mut self.owed_stop)?;
        entered.set_sigmask(mask)?;
        entered.release()
    }
}

impl Guest<'_> {
    /// The thread's state at the stop, with a call that the stop broke made good: what the images record.
    pub fn original(&self) -> &ThreadState {
        &self.original
    }

    /// Ends the visit; yields the thread in a stop, about to go on with what it was doing.
    pub fn leave(mut self) -> Result<Stopped> {
        let last = self.original.going_on(&self.going_on);
        self.go_back(&last)
    }

    /// Ends the visit and gives the thread the state `last`, in the middle of `call` where there is one.
    pub fn leave_as(mut self, last: &ThreadState, call: Option<&Call>) -> Result<Stopped> {
        let stopped = self.stopped.take().ok_or(Error::Gone(self.host.pid))?;
        let stopped = self.host.make_room_for_tiles(stopped, &self.original.xstate, last)?;
        let (stopped, regs) = match call {
            Some(call) => self.host.begin(stopped, call, self.at, &last.regs)?,
            None => {
                let regs = self.host.begin_rest(self.tid, last)?;
                (stopped, regs)
            }
        };
        stopped.set_xstate(&last.xstate)?;
        self.stopped = Some(stopped);
        self.host.others.insert(self.tid, regs);
        self.go_back(&ThreadState { regs, ..last.clone() })
    }

    fn stopped(&self) -> Result<&Stopped> {
        self.stopped.as_ref().ok_or(Error::Gone(self.host.pid))
    }

    /// From the syscall stop in the stub to a stop like the first one, in which the kernel's own restart works on the registers set here.
    fn go_back(&mut self, last: &ThreadState) -> Result<Stopped> {
        let mut stopped = self.stopped.take().ok_or(Error::Gone(self.host.pid))?;
        if self.sent == Sent::ToStub {
            stopped.interrupt_next()?;
            stopped = stopped.cont_without_signal()?.settle()?;
        }
        stopped.set_sigmask(last.sigmask)?;
        stopped.set_regs(&last.regs)?;
        self.sent = Sent::Not;
        Ok(stopped)
    }

    /// Runs one call; yields its raw result.
    fn call(&mut self, nr: i64, args: [u64; 6]) -> Result<i64> {
        let stopped = self.stopped()?;
        stopped.set_regs(&enter::calling(&self.back.regs, self.at, nr, args))?;
        if self.sent == Sent::Not {
            self.sent = Sent::ToStub;
            self.stopped()?.set_sigmask(ALL_SIGNALS)?;
        }
        let stopped = self.stopped.take().ok_or(Error::Gone(self.host.pid))?;
        let (stopped, result) = enter::run_call(stopped, &mut self.host.owed_stop)?;
        self.stopped = Some(stopped);
        Ok(result)
    }
}

impl Ask for Guest<'_> {
    fn ask(&mut self, batch: Batch) -> Result<Answers> {
        let (base, offset) = (self.host.base, wire::ARENA_OFFSET);
        self.host.place_batch(&batch)?;
        let mut results = Vec::new();
        while let Some((nr, args, on_error)) = batch.resolved(results.len(), base, offset, &results) {
            let result = self.call(nr, args)?;
            let at = offset + Batch::result_at(results.len()) as u64;
            self.host.write(at, &result.to_ne_bytes())?;
            results.push(result);
            if (-4095..0).contains(&result) && on_error == OnError::Stop {
                break;
            }
        }
        let bytes = self.host.read(offset, batch.size());
        Ok(batch.answers(bytes))
    }
}

impl Drop for Guest<'_> {
    /// The last resort, where the visit was not ended: the thread is let go where it was, or the stub stays for it.
    fn drop(&mut self) {
        if self.sent == Sent::Not {
            return;
        }
        let last = self.original.going_on(&self.going_on);
        if let Err(error) = self.go_back(&last).and_then(Stopped::release) {
            self.host.stubs = Stubs::Occupied;
            tracing::debug!(tid = self.tid.0, %error, "a thread was left in its stub");
        }
    }
}
