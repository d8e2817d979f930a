//! Tracee states as types: [`Running`] and [`Stopped`] threads that this thread has seized.
//!
//! ptrace belongs to a thread, so neither type is `Send`. A transition takes `self`. Neither can be made from a bare number but by
//! [`Running::seize`] and at a clone event. Dropping one detaches as the last resort; the kernel does the same when the controller dies,
//! and at every moment a tracee's registers are such that it then finds its way back (FACTS B2).

pub mod broken;

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use libc::user_regs_struct;

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::sys::ptrace::{self, Status, WaitMode};

/// The number of PTRACE_EVENT_STOP (ptrace(2)).
const EVENT_STOP: i32 = 128;

type NotSend = PhantomData<*const ()>;

/// Why a tracee is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// PTRACE_INTERRUPT's own stop.
    Interrupt,
    /// The process was stopped by this signal before; it stays so after the release.
    GroupStop(i32),
    /// A signal on its way to the tracee, which is given on at the next resumption.
    Signal(i32),
    /// Entry or exit of a system call.
    Syscall,
    /// A clone, fork or vfork event.
    Clone,
}

/// A seized thread that runs.
#[must_use = "a seized tracee must be released"]
#[derive(Debug)]
pub struct Running {
    tid: Tid,
    not_send: NotSend,
}

/// A seized thread in a ptrace stop.
#[must_use = "a stopped tracee must be released"]
#[derive(Debug)]
pub struct Stopped {
    tid: Tid,
    reason: StopReason,
    not_send: NotSend,
}

/// What a wait for a running tracee found.
#[derive(Debug)]
pub enum Wait {
    Stopped(Stopped),
    /// The thread exited or was killed: nothing is left to release.
    Gone(Status),
}

impl Running {
    /// Attaches to a thread without stopping it. EPERM: see ptrace(2) and /proc/sys/kernel/yama/ptrace_scope.
    pub fn seize(tid: Tid, options: i32) -> Result<Running> {
        ptrace::seize(tid, options).map_err(|errno| Error::of_tid("seizing", tid, errno))?;
        Ok(Running { tid, not_send: PhantomData })
    }

    /// A child that was attached by a clone event of its tracer's tracee: its first stop is on its way.
    pub fn attached_by_clone(tid: Tid) -> Running {
        Running { tid, not_send: PhantomData }
    }

    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Asks for a stop; [`wait`](Running::wait) collects it.
    pub fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(|errno| Error::of_pid("stopping", Pid(self.tid.0), errno))
    }

    /// Blocks until the tracee stops or is gone.
    pub fn wait(self) -> Result<Wait> {
        let status = ptrace::wait(self.tid, WaitMode::Block).during("waiting", Subject::Tid(self.tid))?;
        Ok(self.arrive(status))
    }

    /// Whether the tracee has stopped; hands itself back where it has not.
    pub fn poll(self) -> Result<std::result::Result<Wait, Running>> {
        let status = ptrace::wait(self.tid, WaitMode::Poll).during("waiting", Subject::Tid(self.tid))?;
        Ok(if status == Status::Nothing { Err(self) } else { Ok(self.arrive(status)) })
    }

    fn arrive(self, status: Status) -> Wait {
        let Status::Stopped(signal, event) = status else {
            std::mem::forget(self);
            return Wait::Gone(status);
        };
        let reason = match (signal, event) {
            (libc::SIGTRAP, EVENT_STOP) => StopReason::Interrupt,
            (signal, EVENT_STOP) => StopReason::GroupStop(signal),
            (_, libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE) => StopReason::Clone,
            (signal, _) if signal == libc::SIGTRAP | 0x80 => StopReason::Syscall,
            (signal, _) => StopReason::Signal(signal),
        };
        let stopped = Stopped { tid: self.tid, reason, not_send: PhantomData };
        std::mem::forget(self);
        Wait::Stopped(stopped)
    }

    /// Stops the tracee in PTRACE_EVENT_STOP. Signals that come first are delivered on the way, as they would have been.
    pub fn stop(self) -> Result<Stopped> {
        self.interrupt()?;
        self.settle()
    }

    /// Lets it run on undisturbed, attached until the controller ends, when the kernel detaches it.
    pub fn leave_to_the_end(self) {
        tracing::debug!(tid = self.tid.0, "a running tracee was left to the end of the controller");
        std::mem::forget(self);
    }

    /// Waits for the stop that [`interrupt`](Running::interrupt) asked for, delivering the signals that come before it.
    pub fn settle(self) -> Result<Stopped> {
        let mut running = self;
        loop {
            let tid = running.tid;
            match settled(tid, running.wait()?)? {
                Ok(stopped) => return Ok(stopped),
                Err(more) => running = more,
            }
        }
    }

    /// As [`settle`](Running::settle), for at most `limit`; hands itself back where there is no stop by then.
    pub fn settle_within(self, limit: Duration) -> Result<std::result::Result<Stopped, Running>> {
        let deadline = Instant::now() + limit;
        let mut running = self;
        loop {
            let tid = running.tid;
            match running.poll()? {
                Err(same) if Instant::now() >= deadline => return Ok(Err(same)),
                Err(same) => {
                    std::thread::yield_now();
                    running = same;
                }
                Ok(wait) => match settled(tid, wait)? {
                    Ok(stopped) => return Ok(Ok(stopped)),
                    Err(more) => running = more,
                },
            }
        }
    }
}

/// The stop that was asked for, or the tracee on its way after another one.
fn settled(tid: Tid, wait: Wait) -> Result<std::result::Result<Stopped, Running>> {
    match wait {
        Wait::Gone(_) => Err(Error::Gone(Pid(tid.0))),
        Wait::Stopped(stopped) => match stopped.reason {
            StopReason::Interrupt | StopReason::GroupStop(_) => Ok(Ok(stopped)),
            _ => Ok(Err(stopped.cont()?)),
        },
    }
}

impl Stopped {
    pub fn tid(&self) -> Tid {
        self.tid
    }

    pub fn reason(&self) -> StopReason {
        self.reason
    }

    /// The signal of a signal-delivery stop, which has to be passed on at resumption.
    fn carried(&self) -> i32 {
        if let StopReason::Signal(signal) = self.reason { signal } else { 0 }
    }

    fn done<T>(&self, operation: &'static str, result: std::result::Result<T, Errno>) -> Result<T> {
        result.map_err(|errno| Error::of_pid(operation, Pid(self.tid.0), errno))
    }

    /// Resumes; a carried signal is delivered.
    pub fn cont(self) -> Result<Running> {
        self.done("resuming", ptrace::cont(self.tid, self.carried()))?;
        Ok(self.resumed())
    }

    /// Resumes without the carried signal.
    pub fn cont_without_signal(self) -> Result<Running> {
        self.done("resuming", ptrace::cont(self.tid, 0))?;
        Ok(self.resumed())
    }

    /// Resumes up to the next syscall entry or exit.
    pub fn cont_to_syscall(self) -> Result<Running> {
        self.done("resuming", ptrace::cont_to_syscall(self.tid))?;
        Ok(self.resumed())
    }

    /// Asks for a PTRACE_EVENT_STOP that comes before any user instruction runs again.
    pub fn interrupt_next(&self) -> Result<()> {
        self.done("stopping", ptrace::interrupt(self.tid))
    }

    fn resumed(self) -> Running {
        let running = Running { tid: self.tid, not_send: PhantomData };
        std::mem::forget(self);
        running
    }

    /// Lets the tracee go for good; a process that was in a group stop is in it again.
    pub fn release(self) -> Result<()> {
        let result = self.done("releasing", ptrace::detach(self.tid, self.carried()));
        std::mem::forget(self);
        result
    }

    /// Gives up the claim without detaching, after the process was killed.
    pub fn forget_killed(self) {
        std::mem::forget(self);
    }

    pub fn regs(&self) -> Result<user_regs_struct> {
        self.done("reading the registers", ptrace::get_regs(self.tid))
    }

    pub fn set_regs(&self, regs: &user_regs_struct) -> Result<()> {
        self.done("setting the registers", ptrace::set_regs(self.tid, regs))
    }

    pub fn xstate(&self) -> Result<Vec<u8>> {
        self.done("reading the extended state", ptrace::get_xstate(self.tid))
    }

    pub fn set_xstate(&self, bytes: &[u8]) -> Result<()> {
        self.done("setting the extended state", ptrace::set_xstate(self.tid, bytes))
    }

    pub fn sigmask(&self) -> Result<u64> {
        self.done("reading the signal mask", ptrace::get_sigmask(self.tid))
    }

    pub fn set_sigmask(&self, mask: u64) -> Result<()> {
        self.done("setting the signal mask", ptrace::set_sigmask(self.tid, mask))
    }

    pub fn set_options(&self, options: i32) -> Result<()> {
        self.done("setting the trace options", ptrace::set_options(self.tid, options))
    }

    /// The id of the new child, at a clone event.
    pub fn event_message(&self) -> Result<u64> {
        self.done("reading the event", ptrace::event_message(self.tid))
    }
}

/// How long the last resort waits for a stop.
const LAST_RESORT: Duration = Duration::from_millis(200);

impl Drop for Running {
    /// A running tracee can only be detached in a stop. One that cannot stop (it waits in vfork, or for a device) stays attached until the
    /// controller ends, when the kernel detaches it.
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_RESORT;
        let _ = ptrace::interrupt(self.tid);
        loop {
            match ptrace::wait(self.tid, WaitMode::Poll) {
                Ok(Status::Nothing) if Instant::now() < deadline => std::thread::yield_now(),
                Ok(status @ Status::Stopped(..)) => {
                    let same = Running { tid: self.tid, not_send: PhantomData };
                    let Wait::Stopped(stopped) = same.arrive(status) else { return };
                    if matches!(stopped.reason, StopReason::Interrupt | StopReason::GroupStop(_)) {
                        return;
                    }
                    // The stop that was asked for comes behind this one.
                    let _ = ptrace::cont(self.tid, stopped.carried());
                    std::mem::forget(stopped);
                }
                _ => break,
            }
        }
        tracing::debug!(tid = self.tid.0, "a running tracee was left to the end of the controller");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = broken::mend(self) {
            tracing::debug!(tid = self.tid.0, %error, "mending as the last resort");
        }
        if let Err(errno) = ptrace::detach(self.tid, self.carried()) {
            tracing::debug!(tid = self.tid.0, %errno, "detaching as the last resort");
        }
    }
}
