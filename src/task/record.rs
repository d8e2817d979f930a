//! One process as CRIU's entries and our own, from what /proc says, what ptrace says and what the task answered.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::dump::FileIds;
use crate::ids::Tid;
use crate::image::{Images, pb};
use crate::inject::ThreadState;
use crate::mem;
use crate::procfs::attributes::PosixTimer;
use crate::procfs::{Auxv, Mapping, Sharing, Stat, Status};
use crate::sys::process::attributes::{SchedAttr, get_robust_list, sched_getaffinity, sched_getattr};
use crate::sys::ptrace::{self, PendingQueue, RseqConfiguration};

use super::identity::Identity;
use super::regs;
use super::signals::{self, Signals};
use super::survey::{Alive, TaskFacts};

/// CRIU's TASK_ALIVE, TASK_DEAD and TASK_STOPPED.
pub const ALIVE: u32 = 1;
pub const DEAD: u32 = 2;
pub const STOPPED: u32 = 3;

/// What is known of a stopped process from outside, before the parasite is in.
#[derive(Debug)]
pub struct Outside {
    pub stat: Stat,
    pub status: Status,
    pub mappings: Vec<Mapping>,
    pub auxv: Auxv,
    pub thread_pending: pb::SignalQueueEntry,
    pub process_pending: pb::SignalQueueEntry,
    pub rseq: Option<RseqConfiguration>,
    pub robust_list: (u64, usize),
    pub sched: SchedAttr,
    /// Bits of the processors that it may run on.
    pub affinity: Vec<u8>,
    pub exe: PathBuf,
    pub cwd: PathBuf,
    pub root: PathBuf,
    pub oom_score_adj: Option<i32>,
    pub coredump_filter: Option<u32>,
    pub timers: Vec<PosixTimer>,
    /// The signal that had stopped it.
    pub stop_signal: Option<i32>,
}

impl Outside {
    /// Adds to the facts of the survey what only a tracer is told; the process is stopped by us.
    pub fn read(facts: &TaskFacts, alive: &Alive, stop_signal: Option<i32>) -> Result<Outside> {
        let pid = facts.pid;
        let tid = Tid::from(pid);
        let robust = get_robust_list(tid).map_err(|errno| Error::of_pid("asking for the robust list", pid, errno))?;
        let rseq = ptrace::rseq_configuration(tid).ok().filter(|config| config.pointer != 0);
        let unflagged = alive.maps.iter().any(|mapping| mapping.flags.is_none());
        Ok(Outside {
            stat: facts.stat.clone(),
            status: facts.status.clone(),
            mappings: if unflagged { crate::procfs::maps::read_with_flags(pid)? } else { alive.maps.clone() },
            auxv: alive.auxv.clone(),
            thread_pending: signals::pending(tid, PendingQueue::Thread)?,
            process_pending: signals::pending(tid, PendingQueue::Process)?,
            rseq,
            robust_list: (robust.0.0, robust.1),
            sched: sched_getattr(tid).map_err(|errno| Error::of_pid("asking for the scheduling", pid, errno))?,
            affinity: sched_getaffinity(tid).map_err(|errno| Error::of_pid("asking for the affinity", pid, errno))?,
            exe: PathBuf::from(&alive.exe),
            cwd: PathBuf::from(&alive.cwd),
            root: PathBuf::from(&alive.root),
            oom_score_adj: alive.oom_score_adj,
            coredump_filter: alive.coredump_filter,
            timers: alive.timers.clone().unwrap_or_default(),
            stop_signal,
        })
    }

    /// Whether a signal that the thread does not block waits for it.
    pub fn pending(&self, sigmask: u64) -> crate::inject::restart::Pending {
        regs::deliverable(sigmask, [&self.thread_pending, &self.process_pending])
    }
}

/// Adds a live process to the images. The files that it names by path are added too; descriptors and terminals are others' business.
pub fn record(
    images: &mut Images,
    files: &mut FileIds,
    outside: &Outside,
    state: &ThreadState,
    signals: Signals,
    identity: &Identity,
) -> Result<()> {
    let pid = outside.stat.pid.0 as u32;
    images.pstree.push(pb::PstreeEntry {
        pid,
        ppid: outside.stat.ppid.0 as u32,
        pgid: outside.stat.pgrp.0 as u32,
        sid: outside.stat.session.0 as u32,
        threads: vec![pid],
    });
    let ids = pb::TaskKobjIdsEntry { vm_id: pid, files_id: pid, fs_id: pid, sighand_id: pid, ..Default::default() };
    images.ids.insert(pid, ids);
    record_fs(images, files, outside);
    record_mm(images, files, outside, identity);
    let core = core(outside, state, signals, identity, ids)?;
    images.cores.insert(pid, core);
    let own = images.own.get_or_insert_default();
    own.tasks.push(own_task(outside, identity));
    own.threads.push(own_thread(outside, state, identity));
    Ok(())
}

fn record_fs(images: &mut Images, files: &mut FileIds, outside: &Outside) {
    let directory = (libc::O_RDONLY | libc::O_DIRECTORY) as u32;
    let cwd_id = files.of_path(images, &outside.cwd, directory);
    let root_id = files.of_path(images, &outside.root, directory);
    images.fs.insert(outside.stat.pid.0 as u32, pb::FsEntry { cwd_id, root_id, umask: outside.status.umask });
}

fn record_mm(images: &mut Images, files: &mut FileIds, outside: &Outside, identity: &Identity) {
    let stat = &outside.stat;
    let exe_file_id = files.of_path(images, &outside.exe, libc::O_RDONLY as u32);
    let vmas = outside
        .mappings
        .iter()
        .filter(|mapping| !mapping.is("[vsyscall]"))
        .map(|mapping| mem::to_entry(mapping, backing(images, files, mapping)))
        .collect();
    let entry = pb::MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: identity.brk,
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id,
        mm_saved_auxv: outside.auxv.0.iter().chain([&(0, 0)]).flat_map(|(kind, value)| [*kind, *value]).collect(),
        vmas,
        dumpable: Some(identity.dumpable),
        thp_disabled: identity.thp_disabled.then_some(true),
        ..Default::default()
    };
    images.mm.insert(stat.pid.0 as u32, entry);
}

/// The id that a mapping's entry refers to: its file, or the inode of its shared memory.
fn backing(images: &mut Images, files: &mut FileIds, mapping: &Mapping) -> Option<u32> {
    if mem::is_shared_anonymous(mapping) {
        return Some(mapping.inode as u32);
    }
    if !mem::is_file(mapping) {
        return None;
    }
    // A shared mapping that may be made writable needs a writable descriptor, whatever its protection is now.
    let may_write = mapping.flags.as_ref().is_none_or(|flags| flags.has(b"mw"));
    let flags = if mapping.sharing == Sharing::Shared && may_write { libc::O_RDWR } else { libc::O_RDONLY };
    Some(files.of_path(images, Path::new(&mapping.name), flags as u32))
}

fn core(
    outside: &Outside,
    state: &ThreadState,
    signals: Signals,
    identity: &Identity,
    ids: pb::TaskKobjIdsEntry,
) -> Result<pb::CoreEntry> {
    let comm = outside.stat.comm.as_bytes().to_vec();
    let task = pb::TaskCoreEntry {
        task_state: if outside.stop_signal.is_some() { STOPPED } else { ALIVE },
        exit_code: 0,
        personality: identity.personality,
        flags: outside.stat.flags,
        blk_sigset: state.sigmask,
        comm: comm.clone(),
        timers: Some(signals.timers),
        rlimits: Some(identity.limits.clone()),
        signals_s: Some(outside.process_pending.clone()),
        oom_score_adj: outside.oom_score_adj,
        sigactions: signals.actions,
        child_subreaper: identity.subreaper.then_some(true),
        ..Default::default()
    };
    let thread = pb::ThreadCoreEntry {
        futex_rla: outside.robust_list.0,
        futex_rla_len: outside.robust_list.1 as u32,
        sched_nice: Some(outside.sched.nice),
        sched_policy: Some(outside.sched.policy),
        sched_prio: Some(outside.sched.priority),
        blk_sigset: Some(state.sigmask),
        sas: Some(signals.stack),
        pdeath_sig: Some(identity.pdeath_sig),
        signals_p: Some(outside.thread_pending.clone()),
        creds: Some(super::identity::credentials(&outside.status, identity.secbits)),
        comm: Some(comm),
        rseq_entry: outside.rseq.map(|rseq| pb::RseqEntry {
            rseq_abi_pointer: rseq.pointer,
            rseq_abi_size: rseq.size,
            signature: rseq.signature,
            rseq_cs_pointer: None,
        }),
        ..Default::default()
    };
    Ok(pb::CoreEntry {
        mtype: pb::core_entry::March::X8664 as i32,
        thread_info: Some(pb::ThreadInfoX86 {
            clear_tid_addr: identity.tid_address,
            gpregs: regs::to_entry(&state.regs),
            fpregs: regs::to_fp_entry(&state.xstate)?,
            tls: Vec::new(),
        }),
        tc: Some(task),
        ids: Some(ids),
        thread_core: Some(thread),
    })
}

fn own_task(outside: &Outside, identity: &Identity) -> pb::PtyagentTask {
    let span = |name: &str| {
        let found: Vec<&Mapping> =
            outside.mappings.iter().filter(|mapping| mapping.name.as_bytes().starts_with(name.as_bytes())).collect();
        let start = found.first().map(|mapping| mapping.start.0);
        let len = found.iter().map(|mapping| mapping.len()).sum::<u64>();
        (start, start.map(|_| len))
    };
    let (vdso_start, vdso_len) = span("[vdso");
    let (vvar_start, vvar_len) = span("[vvar");
    let stat = &outside.stat;
    pb::PtyagentTask {
        pid: Some(stat.pid.0 as u32),
        start_time: Some(stat.start_time),
        oom_score_adj: outside.oom_score_adj,
        nice: Some(stat.nice),
        ioprio: Some(identity.ioprio),
        personality: Some(identity.personality),
        child_subreaper: Some(identity.subreaper),
        no_new_privs: outside.status.no_new_privs.map(|flag| flag != 0),
        dumpable: Some(identity.dumpable as u32),
        stop_signal: outside.stop_signal.map(|signal| signal as u32),
        vdso_start,
        vdso_len,
        vvar_start,
        vvar_len,
        exe: Some(outside.exe.as_os_str().as_bytes().to_vec()),
        exit_signal: Some(stat.exit_signal as u32),
        timer_slack_ns: Some(identity.timerslack),
        coredump_filter: outside.coredump_filter,
        thp_disabled: identity.thp_disabled.then_some(true),
        vmas: outside.mappings.iter().filter_map(mem::to_own_entry).collect(),
        ..Default::default()
    }
}

fn own_thread(outside: &Outside, state: &ThreadState, identity: &Identity) -> pb::PtyagentThread {
    let pid = outside.stat.pid.0 as u32;
    pb::PtyagentThread {
        tid: Some(pid),
        pid: Some(pid),
        xstate: Some(state.xstate.clone()),
        rseq_pointer: outside.rseq.map(|rseq| rseq.pointer),
        rseq_len: outside.rseq.map(|rseq| rseq.size),
        rseq_signature: outside.rseq.map(|rseq| rseq.signature),
        rseq_flags: outside.rseq.map(|rseq| rseq.flags),
        robust_list: Some(outside.robust_list.0),
        robust_list_len: Some(outside.robust_list.1 as u32),
        clear_child_tid: Some(identity.tid_address),
        pdeath_signal: Some(identity.pdeath_sig),
        sched_policy: Some(outside.sched.policy),
        sched_flags: Some(outside.sched.flags),
        sched_nice: Some(outside.sched.nice),
        sched_priority: Some(outside.sched.priority),
        cpu_affinity: Some(outside.affinity.clone()),
        cap_ambient: Some(outside.status.capabilities.ambient),
        ..Default::default()
    }
}

/// Adds a zombie: its numbers, its name and how it ended.
pub fn record_zombie(images: &mut Images, stat: &Stat) {
    let pid = stat.pid.0 as u32;
    images.pstree.push(pb::PstreeEntry {
        pid,
        ppid: stat.ppid.0 as u32,
        pgid: stat.pgrp.0 as u32,
        sid: stat.session.0 as u32,
        threads: vec![pid],
    });
    let task = pb::TaskCoreEntry {
        task_state: DEAD,
        exit_code: stat.exit_code as u32,
        comm: stat.comm.as_bytes().to_vec(),
        flags: stat.flags,
        ..Default::default()
    };
    let core = pb::CoreEntry { mtype: pb::core_entry::March::X8664 as i32, tc: Some(task), ..Default::default() };
    images.cores.insert(pid, core);
    images.own.get_or_insert_default().tasks.push(pb::PtyagentTask {
        pid: Some(pid),
        exit_status: Some(stat.exit_code as u32),
        exit_signal: Some(stat.exit_signal as u32),
        ..Default::default()
    });
}
