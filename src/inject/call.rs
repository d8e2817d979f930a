//! Getting a new task into the middle of a call that its kernel goes on with by a restart block.
//!
//! The task makes the call from a stub while an interruption is already on its way: the kernel notes the deadline and all else in the task's
//! restart block, and returns at once. With the recorded registers, which say that, it then goes on as after any stop.

use libc::user_regs_struct;

use super::enter::{calling, syscall_stop};
use super::{Infected, restart};
use crate::error::Result;
use crate::ids::RemoteAddr;
use crate::trace::Stopped;
use crate::wire;

/// A call, and where it has a struct timespec that is not the program's own, its argument (from 0) and its value: seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub nr: i64,
    pub args: [u64; 6],
    pub time: Option<(usize, [i64; 2])>,
}

impl Infected {
    /// Begins a call in a stopped thread of the process, from the stub at `at`; yields it with the registers that it is to get in the end,
    /// which without the call are `last`.
    pub(super) fn begin(
        &mut self,
        stopped: Stopped,
        call: &Call,
        at: RemoteAddr,
        last: &user_regs_struct,
    ) -> Result<(Stopped, user_regs_struct)> {
        const ETIMEDOUT: i64 = -(libc::ETIMEDOUT as i64);
        const EAGAIN: i64 = -(libc::EAGAIN as i64);
        let mut args = call.args;
        if let Some((argument, time)) = call.time {
            self.write(wire::ARENA_OFFSET, &time.map(i64::to_ne_bytes).concat())?;
            args[argument] = self.base + wire::ARENA_OFFSET;
        }
        stopped.set_regs(&calling(last, at, call.nr, args))?;
        let entered = syscall_stop(stopped.cont_to_syscall()?, &mut self.owed_stop)?;
        entered.interrupt_next()?;
        let stopped = entered.cont_without_signal()?.settle()?;
        let result = stopped.regs()?.rax as i64;
        let behind = restart::behind(last);
        let last = match result {
            restart::ERESTART_RESTARTBLOCK => restart::by_restart_block(&behind, call.nr),
            // The time was up, or the word of the futex is another one by now.
            0 | ETIMEDOUT | EAGAIN => user_regs_struct { rax: result as u64, orig_rax: u64::MAX, ..behind },
            // A poll that found something before everything was in place.
            _ => *last,
        };
        Ok((stopped, last))
    }
}
