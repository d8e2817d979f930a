//! Building one task from inside: identity, signals, descriptors; and the state that it is let go with.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::files::restore::Opened;
use crate::files::{epoll, pidfd};
use crate::ids::Pid;
use crate::image::{Images, pb};
use crate::inject::batch::{Ask, Batch};
use crate::inject::{ThreadState, restart};
use crate::mem::shared::Made;
use crate::mem::vdso::Vdsos;
use crate::plan::{Plan, sharing};
use crate::task::cpu::Processor;
use crate::task::identity::{self, Credentials};
use crate::task::{modes, regs, signals, thread, timers};

use super::inherited::Inherited;
use super::memory;
use super::stubs::Stub;

/// What tasks are built from.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    pub images: &'a Images,
    pub plan: &'a Plan,
    pub opened: &'a Opened,
    pub shared: &'a Made,
    pub vdsos: &'a Vdsos,
    pub inherited: &'a Inherited,
}

/// Builds a task up to the point where only its threads, its credentials and its registers are missing.
pub fn build(stub: &mut Stub, means: &Means<'_>) -> Result<()> {
    let Means { images, plan, inherited, .. } = *means;
    let pid = stub.pid.0 as u32;
    let missing = || Error::Gone(stub.pid);
    let core = images.cores.get(&pid).ok_or_else(missing)?;
    memory::finish(stub, means)?;
    attributes(stub, images, plan, core, inherited)?;
    let holders = sharing::table_holders(images, pid);
    // What a table does not hold is closed, and those that are built later have use for it.
    if holders.last() == Some(&pid) { descriptors(stub, images, plan, pid, &holders) } else { Ok(()) }
}

fn attributes(
    stub: &mut Stub,
    images: &Images,
    plan: &Plan,
    core: &pb::CoreEntry,
    inherited: &Inherited,
) -> Result<()> {
    let pid = stub.pid.0 as u32;
    let own = images.own_task(pid).cloned().unwrap_or_default();
    let mut batch = Batch::new();
    signals::restore_actions(&mut batch, core);
    identity::restore_attributes(&mut batch, core, &own, &inherited.limits);
    if let Some(fs) = images.fs.get(&pid) {
        let slot = |id: u32| plan.slots.files.get(&id).copied().unwrap_or(-1);
        let root_is_ours = images.reg(fs.root_id).is_some_and(|root| root.name == b"/");
        if !root_is_ours {
            let dot = batch.input(b".\0");
            batch.must(libc::SYS_fchdir, [slot(fs.root_id).into()]);
            batch.must(libc::SYS_chroot, [dot.into()]);
        }
        batch.must(libc::SYS_fchdir, [slot(fs.cwd_id).into()]);
        batch.must(libc::SYS_umask, [u64::from(fs.umask.unwrap_or(0o022)).into()]);
    }
    let own = images.own_thread(pid).cloned().unwrap_or_default();
    thread::restore(&mut batch, core, &own, &inherited.affinity);
    stub.run(batch, "setting the attributes")
}

/// Puts copies of the inherited files under the recorded numbers and closes everything else.
fn descriptors(stub: &mut Stub, images: &Images, plan: &Plan, pid: u32, holders: &[u32]) -> Result<()> {
    let table = crate::plan::descriptors::table(images, pid);
    pidfd::open_inside(&mut stub.tracee, images, &plan.slots, &table)?;
    let mut batch = Batch::new();
    let mut at = 0u64;
    for entry in table {
        let slot = plan.slots.files.get(&entry.id).copied().unwrap_or(-1);
        let flags = if entry.flags & 1 != 0 { libc::O_CLOEXEC } else { 0 };
        let fd = u64::from(entry.fd);
        if at < fd {
            batch.must(libc::SYS_close_range, [at.into(), (fd - 1).into(), 0u64.into()]);
        }
        batch.must(libc::SYS_dup3, [slot.into(), fd.into(), flags.into()]);
        at = fd + 1;
    }
    let slot = |id| plan.slots.files.get(&id).map(|slot| u64::from(slot.unsigned_abs()));
    let needed: BTreeSet<u32> = holders.iter().flat_map(|pid| epoll::needed(images, *pid)).collect();
    for kept in needed.into_iter().filter_map(slot) {
        if at < kept {
            batch.must(libc::SYS_close_range, [at.into(), (kept - 1).into(), 0u64.into()]);
        }
        at = kept + 1;
    }
    batch.must(libc::SYS_close_range, [at.into(), u64::from(u32::MAX).into(), 0u64.into()]);
    stub.run(batch, "setting up the descriptors")
}

/// Gives a task its credentials, after which it may do less.
pub fn identify(stub: &mut Stub, images: &Images, inherited: &Inherited) -> Result<()> {
    let pid = stub.pid.0 as u32;
    let host = stub.host.0 as u32;
    let core = images.cores.get(&host).ok_or(Error::Gone(stub.pid))?;
    let own = images.own_task(pid).cloned().unwrap_or_default();
    let own_thread = images.own_thread(host).cloned().unwrap_or_default();
    let mut batch = Batch::new();
    modes::restore(&mut batch, &own_thread);
    credentials(&mut batch, images, core, &own_thread, inherited);
    identity::restore_dumpable(&mut batch, &own);
    if !batch.is_empty() {
        stub.run(batch, "setting the credentials")?;
    }
    identity::restore_outside(Pid(stub.host.0), &own)
}

/// Adds the calls that set a thread's credentials.
pub fn credentials(
    batch: &mut Batch,
    images: &Images,
    core: &pb::CoreEntry,
    own: &pb::PtyagentThread,
    inherited: &Inherited,
) {
    let recorded = core.thread_core.as_ref().and_then(|thread| thread.creds.as_ref());
    let Some(creds) = recorded.or_else(|| images.creds.get(&own.pid.unwrap_or(0))) else { return };
    let mode = if same(creds, &inherited.credentials) { Credentials::Inherited } else { Credentials::Set };
    identity::restore_credentials(batch, core, creds, own, mode, inherited.last_cap);
}

/// Whether a task has just the credentials that its stub has.
fn same(one: &pb::CredsEntry, other: &pb::CredsEntry) -> bool {
    let sorted = |creds: &pb::CredsEntry| {
        let mut creds = creds.clone();
        creds.groups.sort_unstable();
        creds
    };
    sorted(one) == sorted(other)
}

/// Gives a task its own pending signals instead of what its creation left, and takes the reports of its stopped children, which the program
/// had before the dump.
pub fn queue_signals(stub: &mut Stub, images: &Images, stopped_children: &[u32]) -> Result<()> {
    let (pid, host) = (stub.pid.0 as u32, stub.host.0 as u32);
    let core = |tid: u32| images.cores.get(&tid).ok_or(Error::Gone(Pid(tid as i32)));
    let (core, host_core) = (core(pid)?, core(host)?);
    let mut batch = Batch::new();
    let info = batch.output(128);
    for child in stopped_children {
        let flags = libc::WSTOPPED | libc::WNOHANG;
        batch.call(
            libc::SYS_waitid,
            [(libc::P_PID as i32).into(), u64::from(*child).into(), info.into(), flags.into(), 0u64.into()],
        );
    }
    signals::discard_pending(&mut batch);
    stub.tracee.ask(batch)?;
    let mut batch = Batch::new();
    signals::with_room(&mut batch, core, |batch| {
        thread::restore_pending(batch, host_core, pid, host);
        signals::restore_pending(batch, core, stub.pid.0);
    });
    if batch.is_empty() { Ok(()) } else { stub.run(batch, "putting the pending signals back") }
}

/// The last batch before a task is let go.
pub fn start_timers(stub: &mut Stub, core: &pb::CoreEntry) -> Result<()> {
    let mut batch = Batch::new();
    signals::restore_timers(&mut batch, core);
    if !batch.is_empty() {
        stub.run(batch, "starting the timers")?;
    }
    timers::restore(&mut stub.tracee, stub.pid, core)
}

/// The registers, extended state and signal mask that a thread goes on with.
pub fn last_state(
    images: &Images,
    core: &pb::CoreEntry,
    tid: u32,
    here: &Processor,
    xstate_len: usize,
) -> Result<ThreadState> {
    let info = core.thread_info.as_ref().ok_or(Error::Gone(Pid(tid as i32)))?;
    let xstate = match images.own_thread(tid).and_then(|own| own.xstate.as_ref()) {
        Some(xstate) => here.lay_out(images, tid, xstate, xstate_len)?,
        None => regs::from_fp_entry(&info.fpregs, &here.layout(), xstate_len)?,
    };
    let mask =
        core.thread_core.as_ref().and_then(|thread| thread.blk_sigset).or(core.tc.as_ref().map(|task| task.blk_sigset));
    let regs = restart::in_a_new_task(&thread::registers(info, images.own_thread(tid)));
    let rest = images.own_thread(tid).and_then(thread::rest);
    Ok(ThreadState { regs, rest, xstate, sigmask: mask.unwrap_or(0) })
}
