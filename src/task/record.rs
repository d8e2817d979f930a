//! One process as CRIU's entries and our own, from what /proc says, what ptrace says and what the task answered.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::dump::FileIds;
use crate::files::removed::{self, Holder};
use crate::ids::Pid;
use crate::image::{Images, pb};
use crate::inject::ThreadState;
use crate::mem::policy::Policy;
use crate::mem::{self, shared};
use crate::procfs::attributes::{self, Cgroup, PosixTimer};
use crate::procfs::{Auxv, Mapping, Sharing, Stat, Status};
use crate::sys::ptrace::PendingQueue;

use super::cpu::Layout;
use super::identity::{self, Identity};
use super::leader::{self, Ended};
use super::signals::{self, Signals};
use super::survey::{Alive, TaskFacts};
use super::thread::{self, ThreadFacts, Told};
use super::{cgroup, seccomp};

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
    pub process_pending: pb::SignalQueueEntry,
    /// Of the host.
    pub thread: ThreadFacts,
    /// The thread group leader, where that has ended.
    pub ended: Option<Ended>,
    pub exe: PathBuf,
    pub cwd: PathBuf,
    pub root: PathBuf,
    pub oom_score_adj: Option<i32>,
    pub coredump_filter: Option<u32>,
    pub autogroup_nice: Option<i32>,
    pub timers: Vec<PosixTimer>,
    pub cgroups: Vec<Cgroup>,
    /// The signal that had stopped it.
    pub stop_signal: Option<i32>,
}

impl Outside {
    /// Adds to the facts of the survey what only a tracer is told; the process is stopped by us. `thread` is its host.
    pub fn read(facts: &TaskFacts, alive: &Alive, stop_signal: Option<i32>, thread: ThreadFacts) -> Result<Outside> {
        let pid = facts.pid;
        let (tid, ended) = (thread.tid, leader::read(facts, stop_signal)?);
        let unflagged = alive.maps.iter().any(|mapping| mapping.flags.is_none());
        Ok(Outside {
            stat: facts.stat.clone(),
            status: facts.status.clone(),
            mappings: if unflagged { crate::procfs::maps::read_with_flags(Pid(tid.0))? } else { alive.maps.clone() },
            auxv: alive.auxv.clone(),
            process_pending: signals::pending(tid, PendingQueue::Process)?,
            thread,
            ended,
            exe: PathBuf::from(&alive.exe),
            cwd: PathBuf::from(&alive.cwd),
            root: PathBuf::from(&alive.root),
            oom_score_adj: alive.oom_score_adj,
            coredump_filter: alive.coredump_filter,
            autogroup_nice: attributes::autogroup_nice(pid)?,
            timers: alive.timers.clone().unwrap_or_default(),
            cgroups: alive.cgroups.clone(),
            stop_signal,
        })
    }

    /// The thread whose directory of /proc shows the process.
    pub fn seen(&self) -> Pid {
        Pid(self.thread.tid.0)
    }
}

/// What its host was asked inside.
#[derive(Debug)]
pub struct Inside {
    pub signals: Signals,
    pub identity: Identity,
    pub policy: Policy,
    pub told: Told,
}

/// Adds a live process to the images, which have the ids of its objects. The files that it names by path are added too; descriptors and terminals are others' business.
pub fn record(
    images: &mut Images,
    files: &mut FileIds,
    outside: &Outside,
    state: &ThreadState,
    inside: Inside,
    layout: &Layout,
) -> Result<()> {
    let Inside { signals, identity, policy, told } = &inside;
    let pid = outside.stat.pid.0 as u32;
    images.pstree.push(pb::PstreeEntry {
        pid,
        ppid: outside.stat.ppid.0 as u32,
        pgid: outside.stat.pgrp.0 as u32,
        sid: outside.stat.session.0 as u32,
        threads: vec![pid],
    });
    let ids = images.ids.get(&pid).copied().ok_or(Error::Gone(outside.stat.pid))?;
    record_fs(images, files, outside);
    record_mm(images, files, outside, identity, policy)?;
    let task = Some(task_core(outside, state, signals, identity, policy));
    let own = images.own.get_or_insert_default();
    own.tasks.push(own_task(outside, identity, policy, told));
    own.losses.extend(identity.loss(pid));
    if let Some(ended) = &outside.ended {
        own.threads.push(ended.own(outside.stat.pid));
        images.cores.insert(pid, pb::CoreEntry { tc: task, ids: Some(ids), ..ended.core() });
        return record_thread(images, outside.stat.pid, &outside.thread, state, told, layout);
    }
    own.threads.push(thread::own(outside.stat.pid, &outside.thread, state, told));
    let mut core = pb::CoreEntry { tc: task, ids: Some(ids), ..thread::core(&outside.thread, state, told, layout)? };
    record_filters(images, &mut core, &outside.thread);
    images.cores.insert(pid, core);
    Ok(())
}

fn record_filters(images: &mut Images, core: &mut pb::CoreEntry, facts: &ThreadFacts) {
    if let (Some(newest), Some(thread)) = (seccomp::record(images, &facts.filters), &mut core.thread_core) {
        (thread.seccomp_mode, thread.seccomp_filter) = (Some(pb::SeccompMode::Filter as i32), Some(newest));
    }
}

/// Adds a thread that is not the leader to a process that is in the images.
pub fn record_thread(
    images: &mut Images,
    pid: Pid,
    facts: &ThreadFacts,
    state: &ThreadState,
    told: &Told,
    layout: &Layout,
) -> Result<()> {
    let tid = facts.tid.0 as u32;
    let mut core = thread::core(facts, state, told, layout)?;
    record_filters(images, &mut core, facts);
    images.cores.insert(tid, core);
    if let Some(entry) = images.pstree.iter_mut().find(|entry| entry.pid == pid.0 as u32) {
        entry.threads.push(tid);
    }
    images.own.get_or_insert_default().threads.push(thread::own(pid, facts, state, told));
    Ok(())
}

fn record_fs(images: &mut Images, files: &mut FileIds, outside: &Outside) {
    let directory = (libc::O_RDONLY | libc::O_DIRECTORY) as u32;
    let cwd_id = files.of_path(images, &outside.cwd, directory);
    let root_id = files.of_path(images, &outside.root, directory);
    images.fs.insert(outside.stat.pid.0 as u32, pb::FsEntry { cwd_id, root_id, umask: outside.status.umask });
}

fn record_mm(
    images: &mut Images,
    files: &mut FileIds,
    outside: &Outside,
    identity: &Identity,
    policy: &Policy,
) -> Result<()> {
    let stat = &outside.stat;
    let comm = stat.comm_text();
    let holder = Holder { pid: stat.pid, comm: &comm, fd: None };
    let exe_file_id = program(images, files, outside, holder)?;
    let mut vmas = Vec::new();
    for mapping in outside.mappings.iter().filter(|mapping| !mapping.is("[vsyscall]")) {
        vmas.push(mem::to_entry(mapping, backing(images, files, (mapping, mapping.link(outside.seen())), holder)?));
    }
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
        mm_saved_auxv: outside.auxv.0.iter().flat_map(|(kind, value)| [*kind, *value]).collect(),
        vmas,
        dumpable: Some(identity.dumpable),
        thp_disabled: policy.thp_disabled.map(|_| true),
        ..Default::default()
    };
    images.mm.insert(stat.pid.0 as u32, entry);
    Ok(())
}

/// The id of the program's file.
fn program(images: &mut Images, files: &mut FileIds, outside: &Outside, holder: Holder<'_>) -> Result<u32> {
    let (exe, flags) = (&outside.exe, libc::O_RDONLY as u32);
    if !removed::is_removed(exe.as_os_str()) || exe.exists() {
        return Ok(files.of_path(images, exe, flags));
    }
    let link = crate::procfs::path(outside.seen(), "exe");
    files.of_object(images, (&link, removed::name(exe.as_os_str())), flags, holder)
}

/// The id that a mapping's entry refers to: its file or its shared memory.
fn backing(
    images: &mut Images,
    files: &mut FileIds,
    (mapping, link): (&Mapping, PathBuf),
    holder: Holder<'_>,
) -> Result<Option<u32>> {
    if shared::is_shown_by(mapping) {
        return Ok(Some(shared::id(mapping)));
    }
    if !mem::is_file(mapping) {
        return Ok(None);
    }
    // A shared mapping that may be made writable needs a writable descriptor, whatever its protection is now.
    let may_write = mapping.flags.as_ref().is_none_or(|flags| flags.has(b"mw"));
    let flags = if mapping.sharing == Sharing::Shared && may_write { libc::O_RDWR } else { libc::O_RDONLY };
    let flags = flags as u32;
    if mapping.deleted {
        return files.of_object(images, (&link, &mapping.name), flags, holder).map(Some);
    }
    Ok(Some(files.of_path(images, Path::new(&mapping.name), flags)))
}

fn task_core(
    outside: &Outside,
    state: &ThreadState,
    signals: &Signals,
    identity: &Identity,
    policy: &Policy,
) -> pb::TaskCoreEntry {
    pb::TaskCoreEntry {
        task_state: if outside.stop_signal.is_some() { STOPPED } else { ALIVE },
        exit_code: 0,
        personality: identity.personality,
        flags: outside.stat.flags,
        blk_sigset: outside.ended.as_ref().map_or(state.sigmask, Ended::blocked),
        comm: outside.stat.comm.as_bytes().to_vec(),
        timers: Some(signals.timers.clone()),
        rlimits: Some(identity.limits.clone()),
        signals_s: Some(outside.process_pending.clone()),
        oom_score_adj: outside.oom_score_adj,
        sigactions: signals.actions.clone(),
        child_subreaper: identity.subreaper.then_some(true),
        membarrier_registration_mask: policy.membarrier,
        ..Default::default()
    }
}

fn own_task(outside: &Outside, identity: &Identity, policy: &Policy, told: &Told) -> pb::PtyagentTask {
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
        ioprio: Some(outside.thread.ioprio),
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
        timer_slack_ns: Some(told.timerslack),
        xcomp_permissions: identity.xcomp_permissions,
        coredump_filter: outside.coredump_filter,
        autogroup_nice: outside.autogroup_nice,
        thp_disabled: policy.thp_disabled.map(|_| true),
        thp_disable_flags: policy.thp_disabled,
        memory_merge: policy.merge,
        mdwe: policy.mdwe,
        mlockall: policy.locks_later,
        cgroups: cgroup::to_entries(&outside.cgroups),
        vmas: outside.mappings.iter().filter_map(mem::to_own_entry).collect(),
        ..Default::default()
    }
}

/// Adds a zombie: its numbers, its name, whose it is and how it ended.
pub fn record_zombie(images: &mut Images, stat: &Stat, status: &Status) {
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
    // Its secure bits nobody can ask for.
    let creds = Some(identity::credentials(status, 0));
    let core = pb::CoreEntry {
        mtype: pb::core_entry::March::X8664 as i32,
        tc: Some(task),
        thread_core: Some(pb::ThreadCoreEntry { creds, ..Default::default() }),
        ..Default::default()
    };
    images.cores.insert(pid, core);
    images.own.get_or_insert_default().tasks.push(pb::PtyagentTask {
        pid: Some(pid),
        exit_status: Some(stat.exit_code as u32),
        exit_signal: Some(stat.exit_signal as u32),
        ..Default::default()
    });
}
