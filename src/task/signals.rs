//! Signal actions, interval timers and pending signals of a process.
//!
//! Actions and timers are asked inside, where no privilege is needed; pending signals by PTRACE_PEEKSIGINFO. On the
//! way back all are set inside, pending signals last, after everything that creating the task left pending was thrown away.

use crate::error::{Context, Result, Subject};
use crate::ids::Tid;
use crate::image::pb;
use crate::inject::batch::{Answers, Batch, Buffer};
use crate::sys::ptrace::{self, PendingQueue};

/// Bytes of the kernel's sigset_t.
const SIGSET: usize = 8;
/// struct sigaction of the kernel: handler, flags, restorer, mask.
const ACTION: usize = 32;
/// struct itimerval: interval and value, seconds and microseconds each.
const ITIMER: usize = 32;

/// The signals whose action can be set, in order.
pub fn settable() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
}

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    actions: Vec<Buffer>,
    timers: [Buffer; 3],
}

/// Adds the questions to a task's batch.
pub fn ask(batch: &mut Batch) -> Asked {
    let actions = settable()
        .map(|signal| {
            let old = batch.output(ACTION);
            batch.call(libc::SYS_rt_sigaction, [signal.into(), 0u64.into(), old.into(), SIGSET.into()]);
            old
        })
        .collect();
    let timers = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|which| {
        let value = batch.output(ITIMER);
        batch.call(libc::SYS_getitimer, [which.into(), value.into()]);
        value
    });
    Asked { actions, timers }
}

/// What the task answered, as CRIU's entries.
#[derive(Debug)]
pub struct Signals {
    pub actions: Vec<pb::SaEntry>,
    pub timers: pb::TaskTimersEntry,
}

impl Asked {
    pub fn answers(&self, answers: &Answers) -> Signals {
        let actions = self
            .actions
            .iter()
            .map(|old| pb::SaEntry {
                sigaction: answers.u64(*old, 0),
                flags: answers.u64(*old, 8),
                restorer: answers.u64(*old, 16),
                mask: answers.u64(*old, 24),
                ..Default::default()
            })
            .collect();
        let timer = |value: Buffer| pb::ItimerEntry {
            isec: answers.u64(value, 0),
            iusec: answers.u64(value, 8),
            vsec: answers.u64(value, 16),
            vusec: answers.u64(value, 24),
        };
        let [real, virt, prof] = self.timers.map(timer);
        Signals { actions, timers: pb::TaskTimersEntry { real, virt, prof, posix: Vec::new() } }
    }
}

/// The pending signals of a queue, in order, as raw siginfo; nothing is taken.
pub fn pending(tid: Tid, queue: PendingQueue) -> Result<pb::SignalQueueEntry> {
    const CHUNK: usize = 32;
    let mut signals = Vec::new();
    loop {
        let infos = ptrace::peek_siginfo(tid, queue, signals.len() as u64, CHUNK)
            .during("reading the pending signals", Subject::Tid(tid))?;
        let more = infos.len() == CHUNK;
        signals.extend(infos.iter().map(|info| pb::SiginfoEntry { siginfo: info.to_vec() }));
        if !more {
            return Ok(pb::SignalQueueEntry { signals });
        }
    }
}

/// Adds the calls that set the actions.
pub fn restore_actions(batch: &mut Batch, core: &pb::CoreEntry) {
    let task = core.tc.as_ref();
    for (signal, action) in settable().zip(task.into_iter().flat_map(|task| &task.sigactions)) {
        let words = [action.sigaction, action.flags, action.restorer, action.mask];
        let new = batch.input(&words.map(u64::to_ne_bytes).concat());
        batch.must(libc::SYS_rt_sigaction, [signal.into(), new.into(), 0u64.into(), SIGSET.into()]);
    }
}

/// Adds the calls that start the interval timers with the time that was left.
pub fn restore_timers(batch: &mut Batch, core: &pb::CoreEntry) {
    let Some(timers) = core.tc.as_ref().and_then(|task| task.timers.as_ref()) else { return };
    let all =
        [(libc::ITIMER_REAL, &timers.real), (libc::ITIMER_VIRTUAL, &timers.virt), (libc::ITIMER_PROF, &timers.prof)];
    for (which, timer) in all {
        if timer.vsec != 0 || timer.vusec != 0 {
            let words = [timer.isec, timer.iusec, timer.vsec, timer.vusec];
            let new = batch.input(&words.map(u64::to_ne_bytes).concat());
            batch.must(libc::SYS_setitimer, [which.into(), new.into(), 0u64.into()]);
        }
    }
}

/// Adds the calls that throw away what is pending: signals of stops, exits and timers that belong to the restore, not to the program.
///
/// Each call takes at most one signal; a task has at most one of each ordinary signal pending in each of its two queues.
pub fn discard_pending(batch: &mut Batch) {
    let all = batch.input(&u64::MAX.to_ne_bytes());
    let zero = batch.input(&[0u8; 16]);
    for _ in 0..8 {
        batch.call(libc::SYS_rt_sigtimedwait, [all.into(), 0u64.into(), zero.into(), SIGSET.into()]);
    }
}

/// Adds calls that queue signals, for which RLIMIT_SIGPENDING may be lower by now than it was when they came.
pub fn with_room(batch: &mut Batch, core: &pb::CoreEntry, add: impl FnOnce(&mut Batch)) {
    const SIGPENDING: usize = libc::RLIMIT_SIGPENDING as usize;
    let limit = core.tc.as_ref().and_then(|task| task.rlimits.as_ref()?.rlimits.get(SIGPENDING));
    let set = |batch: &mut Batch, soft: u64, hard: u64| {
        let new = batch.input(&[soft.to_ne_bytes(), hard.to_ne_bytes()].concat());
        batch.must(libc::SYS_prlimit64, [0u64.into(), SIGPENDING.into(), new.into(), 0u64.into()]);
    };
    let limit = limit.filter(|limit| limit.cur != limit.max);
    limit.into_iter().for_each(|limit| set(batch, limit.max, limit.max));
    add(batch);
    limit.into_iter().for_each(|limit| set(batch, limit.cur, limit.max));
}

/// Adds the calls that queue the recorded signals of the process again, in order.
pub fn restore_pending(batch: &mut Batch, core: &pb::CoreEntry, pid: i32) {
    let process = core.tc.as_ref().and_then(|task| task.signals_s.as_ref());
    for info in process.into_iter().flat_map(|queue| &queue.signals) {
        let buffer = batch.input(&info.siginfo);
        batch.must(libc::SYS_rt_sigqueueinfo, [pid.into(), number(&info.siginfo).into(), buffer.into()]);
    }
}

/// si_signo of a raw siginfo.
pub(super) fn number(info: &[u8]) -> i32 {
    info.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}
