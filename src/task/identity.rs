//! Credentials, limits, and what prctl keeps for a task.
//!
//! /proc/PID/status tells most of it outside; what only `current` may ask is asked inside by prctl. On the way back everything is set
//! inside, the credentials last but for what a change of credentials resets (dumpable, the parent-death signal).

use std::time::Duration;

use crate::error::{Context, Result, Subject};
use crate::ids::Pid;
use crate::image::pb;
use crate::inject::batch::{Answers, Batch, Buffer, CallId};
use crate::procfs::{self, Status, attributes};

/// SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP: while the identity is being put together, no uid change may drop a capability.
const SECBITS_WHILE_SETTING: i32 = (1 << 4) | (1 << 2);
/// The kernel's _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
const RLIMITS: i32 = 16;
const RLIMIT_SIZE: usize = 16;
const PERSONALITY_QUERY: u64 = 0xffff_ffff;
/// arch_prctl(2), Linux 5.16: extended state that is used only after asking for it (AMX).
const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
/// The bits that one may ask for: AMX tiles.
const ASKED_FOR: u64 = 1 << 18;

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    limits: Vec<Buffer>,
    personality: CallId,
    dumpable: CallId,
    xcomp_permissions: (CallId, Buffer),
    subreaper: Buffer,
    brk: CallId,
}

/// Adds the questions to a task's batch.
pub fn ask(batch: &mut Batch) -> Asked {
    let limits = (0..RLIMITS)
        .map(|which| {
            let old = batch.output(RLIMIT_SIZE);
            batch.call(libc::SYS_prlimit64, [0u64.into(), which.into(), 0u64.into(), old.into()]);
            old
        })
        .collect();
    let prctl_into = |batch: &mut Batch, option: i32| {
        let value = batch.output(8);
        (batch.call(libc::SYS_prctl, [option.into(), value.into()]), value)
    };
    let permissions = batch.output(8);
    let ask_permissions = [ARCH_GET_XCOMP_PERM.into(), permissions.into()];
    Asked {
        limits,
        personality: batch.call(libc::SYS_personality, [PERSONALITY_QUERY.into()]),
        dumpable: batch.call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]),
        xcomp_permissions: (batch.call(libc::SYS_arch_prctl, ask_permissions), permissions),
        subreaper: prctl_into(batch, libc::PR_GET_CHILD_SUBREAPER).1,
        brk: batch.call(libc::SYS_brk, [0u64.into()]),
    }
}

/// What the task answered.
#[derive(Debug)]
pub struct Identity {
    pub limits: pb::TaskRlimitsEntry,
    pub personality: u32,
    pub dumpable: i32,
    /// XCR0 bits that the process may use; none where the kernel asks for no permission.
    pub xcomp_permissions: Option<u64>,
    pub subreaper: bool,
    pub brk: u64,
}

impl Asked {
    pub fn answers(&self, answers: &Answers) -> Result<Identity> {
        let get = |call: CallId, operation: &'static str| answers.result(call).during(operation, Subject::None);
        let limits = self
            .limits
            .iter()
            .map(|old| pb::RlimitEntry { cur: answers.u64(*old, 0), max: answers.u64(*old, 8) })
            .collect();
        Ok(Identity {
            limits: pb::TaskRlimitsEntry { rlimits: limits },
            personality: get(self.personality, "asking for the personality")? as u32,
            dumpable: get(self.dumpable, "asking for the dumpable flag")? as i32,
            xcomp_permissions: answers
                .result(self.xcomp_permissions.0)
                .is_ok()
                .then(|| answers.u64(self.xcomp_permissions.1, 0)),
            subreaper: answers.u32(self.subreaper, 0) != 0,
            brk: get(self.brk, "asking for the break")? as u64,
        })
    }
}

impl Identity {
    /// A dumpable flag of 2 is the kernel's to give, not a program's: it comes back as 0.
    pub fn loss(&self, pid: u32) -> Option<pb::PtyagentLoss> {
        let text = "its cores, which root alone could read, will not be written at all any more (dumpable is 2)";
        (self.dumpable > 1).then(|| pb::PtyagentLoss { pid: Some(pid), fd: None, text: Some(text.to_owned()) })
    }
}

/// Adds the calls that set limits, personality and the other plain attributes of a process.
///
/// `current` are the limits (soft, hard) that the task has already: what is as it should be is not set, because raising a hard limit
/// needs CAP_SYS_RESOURCE.
pub fn restore_attributes(batch: &mut Batch, core: &pb::CoreEntry, own: &pb::PtyagentTask, current: &[(u64, u64)]) {
    let task = core.tc.as_ref();
    let limits = task.and_then(|task| task.rlimits.as_ref());
    for (which, limit) in (0u64..).zip(limits.into_iter().flat_map(|limits| &limits.rlimits)) {
        if current.get(which as usize) == Some(&(limit.cur, limit.max)) {
            continue;
        }
        let new = batch.input(&[limit.cur.to_ne_bytes(), limit.max.to_ne_bytes()].concat());
        batch.must(libc::SYS_prlimit64, [0u64.into(), which.into(), new.into(), 0u64.into()]);
    }
    if let Some(task) = task {
        batch.must(libc::SYS_personality, [u64::from(task.personality).into()]);
    }
    if own.child_subreaper == Some(true) {
        batch.must(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER.into(), 1u64.into()]);
    }
    for bit in (0..64u64).filter(|bit| own.xcomp_permissions.unwrap_or(0) & ASKED_FOR & (1 << bit) != 0) {
        batch.must(libc::SYS_arch_prctl, [ARCH_REQ_XCOMP_PERM.into(), bit.into()]);
    }
}

/// The credentials of a thread, from its status and its secure bits, which prctl alone tells.
pub fn credentials(status: &Status, secbits: u32) -> pb::CredsEntry {
    let words = |set: u64| vec![set as u32, (set >> 32) as u32];
    pb::CredsEntry {
        uid: status.uid.real,
        gid: status.gid.real,
        euid: status.uid.effective,
        egid: status.gid.effective,
        suid: status.uid.saved,
        sgid: status.gid.saved,
        fsuid: status.uid.fs,
        fsgid: status.gid.fs,
        cap_inh: words(status.capabilities.inheritable),
        cap_prm: words(status.capabilities.permitted),
        cap_eff: words(status.capabilities.effective),
        cap_bnd: words(status.capabilities.bounding),
        secbits,
        groups: status.groups.clone(),
        ..Default::default()
    }
}

/// Whether a task can be given other credentials than the ones it was created with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// They are what the restore runs with: nothing is set.
    Inherited,
    Set,
}

/// Adds the calls that set a thread's credentials, and what a change of them resets.
pub fn restore_credentials(
    batch: &mut Batch,
    core: &pb::CoreEntry,
    creds: &pb::CredsEntry,
    own: &pb::PtyagentThread,
    mode: Credentials,
    last_cap: u32,
) {
    if mode == Credentials::Set {
        set_ids(batch, creds);
        set_capabilities(batch, creds, last_cap);
    }
    set_ambient(batch, own.cap_ambient.unwrap_or(0));
    if own.no_new_privs == Some(true) {
        batch.must(
            libc::SYS_prctl,
            [libc::PR_SET_NO_NEW_PRIVS.into(), 1u64.into(), 0u64.into(), 0u64.into(), 0u64.into()],
        );
    }
    let pdeath_sig = core.thread_core.as_ref().and_then(|thread| thread.pdeath_sig).unwrap_or(0);
    batch.must(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), u64::from(pdeath_sig).into()]);
}

/// Adds the call that sets the dumpable flag of the process, which every change of credentials in any of its threads resets.
pub fn restore_dumpable(batch: &mut Batch, own: &pb::PtyagentTask) {
    if let Some(dumpable) = own.dumpable {
        batch.must(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), u64::from(dumpable == 1).into()]);
    }
}

fn set_ids(batch: &mut Batch, creds: &pb::CredsEntry) {
    let id = |value: u32| u64::from(value).into();
    batch.must(libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), SECBITS_WHILE_SETTING.into()]);
    let groups: Vec<u8> = creds.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let list = batch.input(&groups);
    batch.must(libc::SYS_setgroups, [creds.groups.len().into(), list.into()]);
    batch.must(libc::SYS_setresgid, [id(creds.gid), id(creds.egid), id(creds.sgid)]);
    batch.call(libc::SYS_setfsgid, [id(creds.fsgid)]);
    batch.must(libc::SYS_setresuid, [id(creds.uid), id(creds.euid), id(creds.suid)]);
    batch.call(libc::SYS_setfsuid, [id(creds.fsuid)]);
}

fn set_capabilities(batch: &mut Batch, creds: &pb::CredsEntry, last_cap: u32) {
    let has = |set: &[u32], cap: u32| set.get(cap as usize / 32).is_some_and(|word| word & (1 << (cap % 32)) != 0);
    for cap in (0..=last_cap).filter(|cap| !has(&creds.cap_bnd, *cap)) {
        batch.must(libc::SYS_prctl, [libc::PR_CAPBSET_DROP.into(), u64::from(cap).into()]);
    }
    batch.must(libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), u64::from(creds.secbits).into()]);
    let header = batch.input(&[CAPABILITY_VERSION, 0].map(u32::to_ne_bytes).concat());
    let word = |set: &[u32], n: usize| set.get(n).copied().unwrap_or(0).to_ne_bytes();
    let sets: Vec<u8> = (0..2)
        .flat_map(|n| [word(&creds.cap_eff, n), word(&creds.cap_prm, n), word(&creds.cap_inh, n)].concat())
        .collect();
    let data = batch.input(&sets);
    batch.must(libc::SYS_capset, [header.into(), data.into()]);
}

/// Ambient capabilities are a subset of the permitted and inheritable ones, so they come after these. prctl(2) PR_CAP_AMBIENT, Linux 4.3.
fn set_ambient(batch: &mut Batch, wanted: u64) {
    let mut ambient = |operation: i32, cap: u64| {
        batch.must(
            libc::SYS_prctl,
            [libc::PR_CAP_AMBIENT.into(), operation.into(), cap.into(), 0u64.into(), 0u64.into()],
        );
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0);
    for cap in (0..64u64).filter(|cap| wanted & (1 << cap) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, cap);
    }
}

/// What is written from outside: the core dump filter, the nice value of the session, and the oom score, which a privileged restore may lower.
pub fn restore_outside(pid: Pid, own: &pb::PtyagentTask) -> Result<()> {
    restore_autogroup(pid, own.autogroup_nice.unwrap_or(0))?;
    if let Some(filter) = own.coredump_filter {
        let path = format!("/proc/{pid}/coredump_filter");
        std::fs::write(&path, format!("{filter:#x}")).during("setting the core dump filter", Subject::Pid(pid))?;
    }
    let Some(wanted) = own.oom_score_adj else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    let current = std::fs::read_to_string(&path).during("reading the oom score", Subject::Pid(pid))?;
    if current.trim().parse() == Ok(wanted) {
        return Ok(());
    }
    std::fs::write(&path, wanted.to_string())
        .during("setting the oom score (lowering it needs CAP_SYS_RESOURCE)", Subject::Pid(pid))
}

/// The processes of a session have one nice value in common, which the first of them sets. Without CAP_SYS_ADMIN one of all is set in 100 ms.
fn restore_autogroup(pid: Pid, nice: i32) -> Result<()> {
    const TRIES: usize = 50;
    let current = attributes::autogroup_nice(pid)?;
    if current.is_none_or(|current| current == nice) {
        return Ok(());
    }
    let path = procfs::path(pid, "autogroup");
    let mut tries = 0;
    loop {
        match std::fs::write(&path, nice.to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.during("setting the nice value of the session", Subject::Pid(pid)),
        }
    }
}
