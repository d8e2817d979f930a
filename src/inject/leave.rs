//! The way out: the extended state, the exit stub, whose first call unmaps the region, and a stop before an instruction of the tracee's own runs.
//!
//! From the one SETREGS on the tracee finds its way by itself, whatever becomes of the controller.

use std::os::unix::fs::FileExt;

use libc::user_regs_struct;

use super::stub::{Slot, WayBack};
use super::{Call, Infected, Stubs, ThreadState, Tracee, enter, rest, send_owed_stop, tiles};
use crate::error::{Context, Error, Result, Subject};
use crate::ids::Tid;
use crate::trace::{Running, Stopped};
use crate::wire;

impl Infected {
    /// Puts everything back and yields the tracee in a stop, about to go on with what it was doing.
    pub fn cure(mut self) -> Result<Stopped> {
        self.cure_now()
    }

    pub(super) fn cure_now(&mut self) -> Result<Stopped> {
        self.send_out(&self.own_state(), None)?;
        self.pass_out()?;
        self.turn()?;
        self.arrive_cured()
    }

    /// As [`cure`](Infected::cure), for many tracees step by step, so that they run at the same time. On an error all run on.
    pub fn cure_all(mut all: Vec<Infected>) -> Result<Vec<Stopped>> {
        all.iter_mut().try_for_each(|one| one.send_out(&one.own_state(), None).map(drop))?;
        all.iter_mut().try_for_each(Infected::pass_out)?;
        all.iter_mut().try_for_each(Infected::turn)?;
        all.iter_mut().map(Infected::arrive_cured).collect()
    }

    /// Takes the parasite away and gives the thread the recorded state `last`, in the middle of `call` where there is one.
    pub fn leave_as(mut self, last: &ThreadState, call: Option<&Call>) -> Result<Stopped> {
        let last = &last.going_on(&self.begin_rest(self.pid.into(), last)?);
        let going_on = self.send_out(last, call)?;
        self.pass_out()?;
        self.turn()?;
        self.arrive(&going_on, last.sigmask)
    }

    /// What the thread goes on with.
    fn own_state(&self) -> ThreadState {
        self.original.going_on(&self.going_on)
    }

    /// The registers with which a thread goes on that is to get the state `last`: at the rest of its call, where there is one and room for it.
    pub(super) fn begin_rest(&self, tid: Tid, last: &ThreadState) -> Result<user_regs_struct> {
        let Some(rest) = &last.rest else { return Ok(last.regs) };
        let others = self.others.iter().filter(|(other, _)| **other != tid).map(|(_, regs)| *regs);
        let threads: Vec<user_regs_struct> = others.chain([last.regs]).collect();
        let unused = rest::unused(&self.mem, self.pid, self.room.rests(), &threads)?;
        Ok(rest::place(&self.mem, self.pid, &unused, &last.regs, rest)?.unwrap_or(last.regs))
    }

    fn arrive_cured(&mut self) -> Result<Stopped> {
        let going_on = self.going_on;
        self.arrive(&going_on, self.original.sigmask)
    }

    /// Sends the tracee into the exit stub; yields the registers that it is to have in the end.
    fn send_out(&mut self, last: &ThreadState, call: Option<&Call>) -> Result<user_regs_struct> {
        let stopped = self.take_stopped()?;
        let now = self.original.xstate.clone();
        let mut stopped = self.make_room_for_tiles(stopped, &now, last)?;
        let mut going_on = last.regs;
        if let Some(call) = call {
            let back = WayBack { regs: last.regs, sigmask: last.sigmask };
            let at = self.room.place(&self.mem, self.pid, Slot::Odd, &[], &back)?;
            (stopped, going_on) = self.begin(stopped, call, at, &last.regs)?;
        }
        stopped.set_xstate(&last.xstate)?;
        let mut regs = last.regs;
        regs.rip = self.room.slot(Slot::Exit).0;
        regs.orig_rax = u64::MAX;
        regs.rax = libc::SYS_munmap as u64;
        (regs.rdi, regs.rsi) = (self.base, wire::REGION_SIZE);
        stopped.set_regs(&regs)?;
        self.tracee = Tracee::Leaving(stopped.cont_to_syscall()?);
        Ok(going_on)
    }

    /// From the beginning of the unmapping on to its end.
    fn pass_out(&mut self) -> Result<()> {
        let running = self.take_leaving()?;
        let stopped = enter::syscall_stop(running, &mut self.owed_stop)?;
        self.tracee = Tracee::Leaving(stopped.cont_to_syscall()?);
        Ok(())
    }

    /// From the end of the unmapping on towards a stop that comes before the tracee runs the rest of the stub; with the kernel's view of a fresh
    /// stop its restart logic works on the registers that are set there.
    fn turn(&mut self) -> Result<()> {
        let running = self.take_leaving()?;
        let stopped = enter::syscall_stop(running, &mut self.owed_stop)?;
        let result = stopped.regs()?.rax as i64;
        if result != 0 {
            return Err(Error::unexpected(
                format!("unmapping the parasite from process {}", self.pid),
                result.to_string(),
            ));
        }
        stopped.interrupt_next()?;
        self.tracee = Tracee::Leaving(stopped.cont_without_signal()?);
        Ok(())
    }

    fn arrive(&mut self, going_on: &user_regs_struct, sigmask: u64) -> Result<Stopped> {
        let stopped = self.take_leaving()?.settle()?;
        stopped.set_sigmask(sigmask)?;
        stopped.set_regs(going_on)?;
        if self.stubs == Stubs::Free {
            self.room.put_back(&self.mem, self.pid)?;
        }
        let threads: Vec<user_regs_struct> = self.others.values().chain([going_on]).copied().collect();
        let unused = rest::unused(&self.mem, self.pid, self.room.rests(), &threads)?;
        rest::clear(&self.mem, self.pid, &unused)?;
        send_owed_stop(self.owed_stop, self.pid);
        Ok(stopped)
    }

    fn take_leaving(&mut self) -> Result<Running> {
        match std::mem::replace(&mut self.tracee, Tracee::Lost) {
            Tracee::Leaving(running) => Ok(running),
            Tracee::Stopped(_) | Tracee::Serving(_) | Tracee::Lost => Err(Error::Gone(self.pid)),
        }
    }

    /// Lets a thread without AMX tiles have room for those of `last`, which it is to get in a moment; see `tiles`.
    pub(super) fn make_room_for_tiles(&mut self, stopped: Stopped, now: &[u8], last: &ThreadState) -> Result<Stopped> {
        if !tiles::in_use(&last.xstate) || tiles::in_use(now) {
            return Ok(stopped);
        }
        self.write(wire::ARENA_OFFSET, &tiles::CONFIGURATION)?;
        let at = self.room.slot(Slot::Odd);
        self.mem.write_all_at(&tiles::CODE, at.0).during("writing the entry code", Subject::Pid(self.pid))?;
        let args = [self.base + wire::ARENA_OFFSET, 0, 0, 0, 0, 0];
        stopped.set_regs(&enter::calling(&last.regs, at, libc::SYS_getpid, args))?;
        Ok(enter::run_call(stopped, &mut self.owed_stop)?.0)
    }
}
