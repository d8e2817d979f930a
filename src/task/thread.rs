//! What the kernel keeps for each thread of a process: signal mask and stack, robust list, restartable sequences, name, scheduling, credentials.
//!
//! Most of it is told outside, by ptrace, /proc and the calls that take a thread id; the rest the thread is asked inside, the leader by the
//! parasite and the others in visits. On the way back each thread sets its own.

use std::fs::File;

use libc::user_regs_struct;

use crate::error::{Context, Errno, Error, Refusal, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::pb;
use crate::inject::ThreadState;
use crate::inject::batch::{Answers, Batch, Buffer, CallId};
use crate::inject::rest::{Call, Rest};
use crate::inject::restart::{self, Pending};
use crate::procfs::{self, Status};
use crate::sys::process::attributes::{
    SchedAttr, get_robust_list, getpriority, ioprio_get, sched_getaffinity, sched_getattr,
};
use crate::sys::ptrace::{self, PendingQueue, RseqConfiguration};
use crate::trace::Stopped;

use super::cpu::Layout;
use super::deadline::Waits;
use super::directories::Directories;
use super::modes::{self, Modes};
use super::seccomp::{self, Filter};
use super::{directories, identity, regs, rseq, scheduling, signals};

/// stack_t: address, flags (padded), size.
const STACK: usize = 24;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// What is known of a stopped thread from outside.
#[derive(Debug)]
pub struct ThreadFacts {
    pub tid: Tid,
    pub comm: Vec<u8>,
    pub status: Status,
    pub pending: pb::SignalQueueEntry,
    pub rseq: rseq::Area,
    pub robust_list: (u64, usize),
    pub sched: SchedAttr,
    /// What a thread of the fair class runs for at a time, in nanoseconds, where it has chosen that (Linux 6.12).
    pub slice: Option<u64>,
    /// -20 to 19, whatever the policy is.
    pub nice: i32,
    /// As ioprio_get(2); 0 where no class is set.
    pub ioprio: u32,
    /// Bits of the processors that it may run on.
    pub affinity: Vec<u8>,
    /// Where they are not the leader's.
    pub directories: Option<Directories>,
    /// Seccomp filters, the oldest first.
    pub filters: Vec<Filter>,
    /// The call with a timeout that it was stopped in.
    pub restart: Option<pb::PtyagentRestart>,
}

impl ThreadFacts {
    /// Asks for all of it; the thread is stopped by us, and so is `host`, whose directories are the process's. `mem` is its memory.
    pub fn read(pid: Pid, host: Tid, thread: &Stopped, mem: &File, waits: &Waits) -> Result<ThreadFacts> {
        let tid = thread.tid();
        let facts = ThreadFacts::untraced(pid, tid)?;
        refuse_dispatched(pid, tid, &facts.comm)?;
        let regs = thread.regs()?;
        let robust = get_robust_list(tid).map_err(failed("asking for the robust list", tid))?;
        Ok(ThreadFacts {
            filters: if facts.status.seccomp == Some(2) { seccomp::filters(tid)? } else { Vec::new() },
            directories: directories::read(pid, host, tid, &facts.status)?,
            pending: signals::pending(tid, PendingQueue::Thread)?,
            rseq: rseq::Area::of(pid, tid)?,
            robust_list: (robust.0.0, robust.1),
            restart: waits.restart(pid, tid, &regs, mem),
            ..facts
        })
    }

    /// What is told without a stop, also of a thread that is a zombie.
    pub fn untraced(pid: Pid, tid: Tid) -> Result<ThreadFacts> {
        let comm = std::fs::read(procfs::thread_path(pid, tid, "comm"));
        let comm = comm.map_err(|error| procfs::failure("reading the name of a thread", pid, &error))?;
        let sched = sched_getattr(tid).map_err(failed("asking for the scheduling", tid))?;
        let usual = sched_getattr(Tid(0)).map_err(failed("asking for the usual slice", tid))?.runtime;
        let status = Status::read_thread(pid, tid)?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm).to_vec();
        Ok(ThreadFacts {
            tid,
            filters: Vec::new(),
            directories: None,
            comm,
            status,
            pending: pb::SignalQueueEntry::default(),
            rseq: rseq::Area::Told(None),
            robust_list: (0, 0),
            sched,
            slice: Some(sched.runtime).filter(|slice| scheduling::FAIR.contains(&sched.policy) && *slice != usual),
            nice: getpriority(tid).map_err(failed("asking for the nice value", tid))?,
            // Where the class is "none" old kernels show a level, which can be read only.
            ioprio: ioprio_get(tid).ok().filter(|value| value >> IOPRIO_CLASS_SHIFT != 0).unwrap_or(0),
            affinity: sched_getaffinity(tid).map_err(failed("asking for the affinity", tid))?,
            restart: None,
        })
    }

    /// Whether a signal that the thread does not block waits for it, or for any thread of its process.
    pub fn pending(&self, sigmask: u64, process: &pb::SignalQueueEntry) -> Pending {
        regs::deliverable(sigmask, [&self.pending, process])
    }
}

fn failed(operation: &'static str, tid: Tid) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::sys(operation, Subject::Tid(tid), errno)
}

/// A call of ours would come back to such a thread as a signal.
fn refuse_dispatched(pid: Pid, tid: Tid, comm: &[u8]) -> Result<()> {
    if ptrace::dispatches_calls(tid) != Ok(true) {
        return Ok(());
    }
    Err(Error::Refused(Refusal {
        pid,
        comm: String::from_utf8_lossy(comm).trim_end().to_owned(),
        fd: None,
        kind: format!("its thread {tid} handles its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)"),
        remedy: "end that program, then dump again".into(),
    }))
}

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    stack: (CallId, Buffer),
    tid_address: (CallId, Buffer),
    pdeath_sig: Buffer,
    secbits: CallId,
    timerslack: CallId,
    rseq: Option<rseq::Asked>,
    modes: modes::Asked,
}

/// Adds the questions to a batch that the thread itself runs.
pub fn ask(batch: &mut Batch, facts: &ThreadFacts) -> Asked {
    let old = batch.output(STACK);
    let into = |batch: &mut Batch, option: i32| {
        let value = batch.output(8);
        (batch.call(libc::SYS_prctl, [option.into(), value.into()]), value)
    };
    Asked {
        stack: (batch.call(libc::SYS_sigaltstack, [0u64.into(), old.into()]), old),
        tid_address: into(batch, libc::PR_GET_TID_ADDRESS),
        pdeath_sig: into(batch, libc::PR_GET_PDEATHSIG).1,
        secbits: batch.call(libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into()]),
        timerslack: batch.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK.into()]),
        rseq: rseq::ask(batch, &facts.rseq),
        modes: modes::ask(batch),
    }
}

/// What the thread answered.
#[derive(Debug, Default)]
pub struct Told {
    pub stack: pb::ThreadSasEntry,
    pub tid_address: u64,
    pub pdeath_sig: u32,
    pub secbits: u32,
    /// Nanoseconds.
    pub timerslack: u64,
    /// The restartable sequence area, if there is one.
    pub rseq: Option<RseqConfiguration>,
    pub modes: Modes,
}

impl Asked {
    /// `comm` names the process in a refusal.
    pub fn answers(&self, answers: &Answers, facts: &ThreadFacts, pid: Pid, comm: &str) -> Result<Told> {
        let get = |call: CallId, operation: &'static str| answers.result(call).during(operation, Subject::None);
        get(self.stack.0, "reading the alternate stack")?;
        get(self.tid_address.0, "asking for the address of the thread id (CONFIG_CHECKPOINT_RESTORE)")?;
        Ok(Told {
            stack: pb::ThreadSasEntry {
                ss_sp: answers.u64(self.stack.1, 0),
                ss_flags: answers.u32(self.stack.1, 8),
                ss_size: answers.u64(self.stack.1, 16),
            },
            tid_address: answers.u64(self.tid_address.1, 0),
            pdeath_sig: answers.u32(self.pdeath_sig, 0),
            secbits: get(self.secbits, "asking for the secure bits")? as u32,
            timerslack: get(self.timerslack, "asking for the timer slack")? as u64,
            rseq: match &self.rseq {
                Some(asked) => asked.answers(answers, pid, comm)?,
                None => facts.rseq.place(),
            },
            modes: self.modes.answers(answers),
        })
    }
}

/// A thread as CRIU's entry, without what belongs to the process.
pub fn core(facts: &ThreadFacts, state: &ThreadState, told: &Told, layout: &Layout) -> Result<pb::CoreEntry> {
    Ok(pb::CoreEntry {
        thread_info: Some(pb::ThreadInfoX86 {
            clear_tid_addr: told.tid_address,
            gpregs: regs::to_entry(&restart::from_the_start(&state.regs).unwrap_or(state.regs)),
            fpregs: regs::to_fp_entry(&state.xstate, layout)?,
            tls: Vec::new(),
        }),
        ..core_without_registers(facts, state.sigmask, told)
    })
}

/// The same of a thread that has none any more.
pub fn core_without_registers(facts: &ThreadFacts, sigmask: u64, told: &Told) -> pb::CoreEntry {
    let thread = pb::ThreadCoreEntry {
        futex_rla: facts.robust_list.0,
        futex_rla_len: facts.robust_list.1 as u32,
        sched_nice: Some(facts.nice),
        sched_policy: Some(facts.sched.policy),
        sched_prio: Some(facts.sched.priority),
        blk_sigset: Some(sigmask),
        sas: Some(told.stack),
        pdeath_sig: Some(told.pdeath_sig),
        signals_p: Some(facts.pending.clone()),
        creds: Some(identity::credentials(&facts.status, told.secbits)),
        comm: Some(facts.comm.clone()),
        rseq_entry: told.rseq.map(|rseq| pb::RseqEntry {
            rseq_abi_pointer: rseq.pointer,
            rseq_abi_size: rseq.size,
            signature: rseq.signature,
            rseq_cs_pointer: None,
        }),
        ..Default::default()
    };
    pb::CoreEntry { mtype: pb::core_entry::March::X8664 as i32, thread_core: Some(thread), ..Default::default() }
}

/// A thread as our own entry.
pub fn own(pid: Pid, facts: &ThreadFacts, state: &ThreadState, told: &Told) -> pb::PtyagentThread {
    pb::PtyagentThread {
        xstate: Some(state.xstate.clone()),
        interrupted_rax: restart::from_the_start(&state.regs).map(|_| state.regs.rax as i64),
        restart: state.rest.as_ref().map(restart_of).or_else(|| facts.restart.clone()),
        ..own_without_registers(pid, facts, told)
    }
}

/// The same of a thread that has none any more.
pub fn own_without_registers(pid: Pid, facts: &ThreadFacts, told: &Told) -> pb::PtyagentThread {
    let mut own = pb::PtyagentThread {
        tid: Some(facts.tid.0 as u32),
        pid: Some(pid.0 as u32),
        rseq_pointer: told.rseq.map(|rseq| rseq.pointer),
        rseq_len: told.rseq.map(|rseq| rseq.size),
        rseq_signature: told.rseq.map(|rseq| rseq.signature),
        rseq_flags: told.rseq.map(|rseq| rseq.flags),
        robust_list: Some(facts.robust_list.0),
        robust_list_len: Some(facts.robust_list.1 as u32),
        clear_child_tid: Some(told.tid_address),
        pdeath_signal: Some(told.pdeath_sig),
        no_new_privs: facts.status.no_new_privs.map(|flag| flag != 0),
        sched_policy: Some(facts.sched.policy),
        sched_flags: Some(facts.sched.flags),
        sched_nice: Some(facts.nice),
        sched_priority: Some(facts.sched.priority),
        sched_runtime: scheduling::deadline(&facts.sched, facts.sched.runtime).or(facts.slice),
        sched_deadline: scheduling::deadline(&facts.sched, facts.sched.deadline),
        sched_period: scheduling::deadline(&facts.sched, facts.sched.period),
        ioprio: Some(facts.ioprio),
        cpu_affinity: Some(facts.affinity.clone()),
        timer_slack_ns: Some(told.timerslack),
        cap_ambient: Some(facts.status.capabilities.ambient),
        ..Default::default()
    };
    told.modes.record(&mut own);
    if let Some(directories) = &facts.directories {
        directories::record(&mut own, directories);
    }
    own
}

/// The registers of a recorded thread at the stop.
pub fn registers(info: &pb::ThreadInfoX86, own: Option<&pb::PtyagentThread>) -> user_regs_struct {
    let regs = regs::from_entry(&info.gpregs);
    own.and_then(|own| own.interrupted_rax).map_or(regs, |rax| restart::at_the_stop(&regs, rax))
}

/// The rest of a call that was cut short.
fn restart_of(rest: &Rest) -> pb::PtyagentRestart {
    pb::PtyagentRestart {
        kind: Some(pb::PtyagentRestartKind::PtyagentRestartPartial as i32),
        syscall: Some(rest.call.nr as u32),
        args: rest.call.args.to_vec(),
        result: Some(rest.done as i64),
        data: (!rest.data.is_empty()).then(|| rest.data.clone()),
        ..Default::default()
    }
}

/// The same, read back.
pub fn rest(own: &pb::PtyagentThread) -> Option<Rest> {
    let partial = pb::PtyagentRestartKind::PtyagentRestartPartial as i32;
    let restart = own.restart.as_ref().filter(|restart| restart.kind == Some(partial))?;
    let args = restart.args.clone().try_into().ok()?;
    let call = Call { nr: restart.syscall?.into(), args };
    Some(Rest { call, done: u64::try_from(restart.result?).ok()?, data: restart.data.clone().unwrap_or_default() })
}

/// The processors that a restore may use.
#[derive(Debug)]
pub struct Affinity {
    /// As the kernel tells them.
    pub ours: Vec<u8>,
    /// What is to be set for just these: all bits where nothing but the kernel restricts them, since processors may be added later.
    pub set: Vec<u8>,
}

/// Adds the calls that set everything but the credentials and what is pending.
pub fn restore(batch: &mut Batch, core: &pb::CoreEntry, own: &pb::PtyagentThread, affinity: &Affinity) {
    if let Some(stack) = core.thread_core.as_ref().and_then(|thread| thread.sas.as_ref()) {
        const SS_DISABLE: u64 = 2;
        // A stack of no size is one that is disabled; SS_ONSTACK is an answer, not a setting.
        let flags = if stack.ss_size == 0 { SS_DISABLE } else { u64::from(stack.ss_flags) & !1 };
        let new = batch.input(&[stack.ss_sp, flags, stack.ss_size].map(u64::to_ne_bytes).concat());
        batch.must(libc::SYS_sigaltstack, [new.into(), 0u64.into()]);
    }
    let thread = core.thread_core.as_ref();
    let comm = thread.and_then(|thread| thread.comm.clone()).or(core.tc.as_ref().map(|task| task.comm.clone()));
    restore_name(batch, &comm.unwrap_or_default());
    if let Some(slack) = own.timer_slack_ns {
        batch.must(libc::SYS_prctl, [libc::PR_SET_TIMERSLACK.into(), slack.into()]);
    }
    scheduling::restore(batch, core, own);
    restore_library(batch, core);
    // The thread begins on the restore's one processor.
    let other = own.cpu_affinity.as_deref().filter(|recorded| *recorded != affinity.ours);
    let bits = other.unwrap_or(&affinity.set);
    let mask = batch.input(bits);
    batch.must(libc::SYS_sched_setaffinity, [0u64.into(), bits.len().into(), mask.into()]);
}

/// Adds the call that names the thread which runs it.
pub fn restore_name(batch: &mut Batch, comm: &[u8]) {
    let mut name = comm.to_vec();
    name.resize(16, 0);
    let name = batch.input(&name);
    batch.must(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
}

/// What the kernel keeps per thread for the C library.
fn restore_library(batch: &mut Batch, core: &pb::CoreEntry) {
    if let Some(info) = &core.thread_info {
        batch.call(libc::SYS_set_tid_address, [info.clear_tid_addr.into()]);
    }
    if let Some(thread) = core.thread_core.as_ref().filter(|thread| thread.futex_rla_len != 0) {
        let len = u64::from(thread.futex_rla_len);
        batch.must(libc::SYS_set_robust_list, [thread.futex_rla.into(), len.into()]);
    }
    let recorded = core.thread_core.as_ref().and_then(|thread| thread.rseq_entry.as_ref());
    if let Some(rseq) = recorded.filter(|rseq| rseq.rseq_abi_pointer != 0) {
        let number = |value: u32| u64::from(value).into();
        batch.must(
            libc::SYS_rseq,
            [rseq.rseq_abi_pointer.into(), number(rseq.rseq_abi_size), 0u64.into(), number(rseq.signature)],
        );
    }
}

/// Adds the calls with which the thread queues its own pending signals again, in order.
pub fn restore_pending(batch: &mut Batch, core: &pb::CoreEntry, pid: u32, tid: u32) {
    let thread = core.thread_core.as_ref().and_then(|thread| thread.signals_p.as_ref());
    for info in thread.into_iter().flat_map(|queue| &queue.signals) {
        let buffer = batch.input(&info.siginfo);
        let signal = signals::number(&info.siginfo);
        batch.must(
            libc::SYS_rt_tgsigqueueinfo,
            [u64::from(pid).into(), u64::from(tid).into(), signal.into(), buffer.into()],
        );
    }
}
