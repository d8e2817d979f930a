//! Building one task from inside: memory, identity, signals, descriptors; and the state that it is let go with.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Result, Subject};
use crate::files::restore::Opened;
use crate::files::{epoll, pidfd};
use crate::image::{Images, pb};
use crate::inject::batch::{Ask, Batch};
use crate::inject::{ThreadState, restart};
use crate::mem::give;
use crate::mem::inherit::{self, Stored};
use crate::mem::pages::PageRange;
use crate::mem::restore::{self as memory, Backing, Reads};
use crate::mem::shared::{self, Made};
use crate::mem::vdso::{self, Fit, Vdsos};
use crate::mem::{self, layout, policy};
use crate::plan::{Plan, sharing};
use crate::procfs::{self, Mapping};
use crate::task::cpu::Processor;
use crate::task::identity::{self, Credentials};
use crate::task::thread::{self, Affinity};
use crate::task::{modes, regs, signals, timers};

use super::pin;
use super::stubs::Stub;

/// Calls of one batch, at most: they have to fit the region.
const CALLS: usize = 2000;

/// What the restore has by itself, which stubs inherit.
#[derive(Debug)]
pub struct Inherited {
    pub limits: [(u64, u64); 16],
    pub last_cap: u32,
    pub credentials: pb::CredsEntry,
    pub affinity: Affinity,
}

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
    let Means { images, plan, shared, vdsos, inherited, .. } = *means;
    let pid = stub.pid.0 as u32;
    let missing = || Error::Gone(stub.pid);
    let core = images.cores.get(&pid).ok_or_else(missing)?;
    let mm = images.mm.get(&pid).ok_or_else(missing)?;
    let mm = &*recorded(vdsos, mm, pid);
    unmap_inherited(stub, shared)?;
    finish_memory(stub, images, mm)?;
    attributes(stub, images, plan, core, inherited)?;
    let holders = sharing::table_holders(images, pid);
    // What a table does not hold is closed, and those that are built later have use for it.
    if holders.last() == Some(&pid) { descriptors(stub, images, plan, pid, &holders) } else { Ok(()) }
}

/// Builds the memory of a task, but for what [`build`] does last: protection, advice and locks.
///
/// `from` is the task that made this one and whose memory was built before: what the two have in common is kept.
pub fn map_memory(stub: &mut Stub, means: &Means<'_>, from: Option<u32>) -> Result<()> {
    let Means { images, plan, opened, shared, vdsos, inherited: Inherited { affinity, .. } } = *means;
    let pid = stub.pid.0 as u32;
    let mm = images.mm.get(&pid).ok_or(Error::Gone(stub.pid))?;
    let mm = &*recorded(vdsos, mm, pid);
    let kept = from.map_or_else(Vec::new, |from| inherit::kept(images, from, pid));
    let group = clear(stub, mm, vdsos, shared, &kept)?;
    // A task that keeps mappings of its program has the right link to it already, and could not be given another one.
    set_layout(stub, plan, mm, if from.is_some() { Program::Inherited } else { Program::Set })?;
    map(stub, images, plan, shared, mm, &kept)?;
    if let Some(from) = from {
        let dropped = inherit::dropped(images, from, pid, &kept);
        run_all(stub, inherit::addresses(&dropped), "dropping pages of the parent", memory::drop_pages)?;
    }
    read(stub, images, plan, opened, affinity, mm, &kept)?;
    lead_vdso(stub, vdsos, group)
}

/// The recorded memory map; where this kernel's vDSO is another one, the recorded vDSO is memory like any other.
fn recorded<'a>(vdsos: &Vdsos, mm: &'a pb::MmEntry, pid: u32) -> Cow<'a, pb::MmEntry> {
    match vdsos.fit(pid) {
        Fit::Moved { .. } => Cow::Borrowed(mm),
        Fit::Kept => Cow::Owned(vdso::as_plain(mm)),
    }
}

/// Where a task's link to its program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Set,
    Inherited,
}

fn run(stub: &mut Stub, batch: Batch, operation: &'static str) -> Result<()> {
    let subject = Subject::Pid(stub.pid);
    stub.tracee.ask(batch)?.all_done(operation, subject)
}

/// Runs a list of additions to batches in as many batches as they need.
fn run_all<T>(
    stub: &mut Stub,
    items: impl IntoIterator<Item = T>,
    operation: &'static str,
    mut add: impl FnMut(&mut Batch, T),
) -> Result<()> {
    let mut batch = Batch::new();
    for item in items {
        add(&mut batch, item);
        if batch.len() >= CALLS {
            run(stub, std::mem::take(&mut batch), operation)?;
        }
    }
    if batch.is_empty() { Ok(()) } else { run(stub, batch, operation) }
}

/// Unmaps everything but the parasite, the vDSO and what is kept, and moves the vDSO to where it was or out of the way; yields where its
/// mappings begin.
fn clear(stub: &mut Stub, mm: &pb::MmEntry, vdsos: &Vdsos, made: &Made, kept: &[PageRange]) -> Result<u64> {
    let mappings = procfs::maps::read(stub.pid)?;
    let group: Vec<Range<u64>> = mappings.iter().filter(|mapping| vdso::is_group(mapping)).map(range).collect();
    let (Some(first), Some(last)) = (group.first().cloned(), group.last().cloned()) else {
        return Err(Error::failed("this kernel gives processes no vDSO, which a restore needs; boot without vdso=0"));
    };
    let len = last.end - first.start;
    let region = stub.tracee.region();
    let mut keep = vec![region.clone(), first.start..last.end];
    keep.extend(made.ranges().chain(inherit::addresses(kept)));
    keep.sort_by_key(|range| range.start);
    let recorded = || mm.vmas.iter().map(|vma| vma.start..vma.end);
    let hole = || layout::hole(keep.iter().cloned().chain(recorded()), len);
    let target = match vdsos.fit(stub.pid.0 as u32) {
        Fit::Moved { to } => to,
        Fit::Kept if !vdsos.sealed => hole().ok_or_else(|| no_room(stub.pid))?,
        Fit::Kept if recorded().any(|range| range.start < last.end && first.start < range.end) => {
            return Err(Error::failed(format!(
                "this kernel seals its vDSO, which happens to lie where process {} has memory; restore again",
                stub.pid
            )));
        }
        Fit::Kept => first.start,
    };
    let overlap = target < last.end && first.start < target + len && target != first.start;
    let via = if overlap { hole() } else { None };
    let mut batch = Batch::new();
    memory::unmap_all_but(&mut batch, &keep);
    memory::move_vdso(&mut batch, &group, target, via);
    run(stub, batch, "clearing the memory")?;
    stub.tracee.vdso_moved(target.wrapping_sub(first.start) as i64)?;
    Ok(target)
}

fn no_room(pid: crate::ids::Pid) -> Error {
    Error::failed(format!("there is no room for this kernel's vDSO beside the memory of process {pid}"))
}

/// Leads the functions of a vDSO of another kernel to this kernel's, whose mappings begin at `group`.
fn lead_vdso(stub: &Stub, vdsos: &Vdsos, group: u64) -> Result<()> {
    for (address, bytes) in vdsos.patches(stub.pid.0 as u32, group)? {
        stub.tracee.mem().write_all_at(&bytes, address).during("writing the vDSO", Subject::Pid(stub.pid))?;
    }
    Ok(())
}

fn range(mapping: &Mapping) -> Range<u64> {
    mapping.start.0..mapping.end.0
}

fn map(stub: &mut Stub, images: &Images, plan: &Plan, made: &Made, mm: &pb::MmEntry, kept: &[PageRange]) -> Result<()> {
    let runs = runs(images, stub.pid)?;
    let pid = stub.pid.0 as u32;
    let by_file = mem::status::FILE_PRIVATE | mem::status::FILE_SHARED;
    let vmas = mm.vmas.iter().filter(|vma| memory::is_made(vma));
    let parts = vmas.flat_map(|vma| inherit::parts(vma, kept).into_iter().map(move |part| (vma, part)));
    run_all(stub, parts, "mapping memory", |batch, (vma, part)| {
        let fd = if vma.status & by_file != 0 { plan.slots.files.get(&(vma.shmid as u32)) } else { None };
        let inherited = if shared::is_view(vma) { made.address(vma.shmid as u32) } else { None };
        let content = memory::content(&part, runs);
        let kind = memory::Kind::of(own_vma(images, pid, vma));
        memory::map(batch, &part, &Backing { fd: fd.copied().unwrap_or(-1), inherited, content, kind });
    })?;
    // What was kept is as the maker had it.
    let vmas = mm.vmas.iter().filter(|vma| memory::is_made(vma));
    let kept = vmas.flat_map(|vma| inherit::within(vma, kept).map(move |range| (vma, range)));
    run_all(stub, kept, "protecting memory", |batch, (vma, range)| memory::open_up(batch, vma, range))
}

/// What was inherited has done its work; the objects live on in the mappings that show them.
fn unmap_inherited(stub: &mut Stub, made: &Made) -> Result<()> {
    run_all(stub, made.ranges(), "unmapping shared memory", memory::unmap)
}

/// The runs of pages that an image has of a task.
fn runs(images: &Images, pid: crate::ids::Pid) -> Result<&[pb::PagemapEntry]> {
    images.pagemaps.get(&(pid.0 as u32)).map(|pagemap| pagemap.entries.as_slice()).ok_or(Error::Gone(pid))
}

/// Reads the task's pages straight from the image, but for what it has kept. Of much memory this process copies a half.
fn read(
    stub: &mut Stub,
    images: &Images,
    plan: &Plan,
    opened: &Opened,
    affinity: &Affinity,
    mm: &pb::MmEntry,
    kept: &[PageRange],
) -> Result<()> {
    let pid = stub.pid.0 as u32;
    let stored = inherit::stored(images, pid, kept).ok_or(Error::Gone(stub.pid))?;
    let skip = mm.vmas.iter().filter(|vma| !memory::is_made(vma)).map(|vma| vma.start..vma.end);
    let skip: Vec<Range<u64>> = skip.collect();
    let wanted = |stored: &Stored| !skip.iter().any(|range| range.contains(&stored.range.start));
    let inside: Vec<Stored> = stored.into_iter().filter(wanted).collect();
    let (inside, outside) = give::split(inside);
    if outside.is_empty() {
        return read_inside(stub, plan, &inside);
    }
    let file = |pid| plan.slots.pages.get(&pid).and_then(|slot| opened.get(*slot));
    let number = stub.pid;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            pin::unpin(affinity);
            give::copy(number, &outside, file)
        });
        let read = read_inside(stub, plan, &inside);
        let given = other.join().unwrap_or_else(|_| Err(Error::failed("a copying thread failed")));
        read.and(given)
    })
}

fn read_inside(stub: &mut Stub, plan: &Plan, runs: &[Stored]) -> Result<()> {
    for runs in runs.chunks(CALLS) {
        let mut batch = Batch::new();
        let mut reads: Vec<Reads> = Vec::new();
        for run in runs {
            let fd = plan.slots.pages.get(&run.pid).copied().ok_or(Error::Gone(stub.pid))?;
            reads.push(memory::read_pages(&mut batch, fd, run.range.start, run.range.pages, run.offset));
        }
        let answers = stub.tracee.ask(batch)?;
        for (call, expected) in reads.iter().flat_map(|reads| &reads.expected) {
            let got = answers.result(*call).during("reading the pages", Subject::Pid(stub.pid))?;
            if got as u64 != *expected {
                return Err(Error::failed(format!(
                    "the pages of process {} ended {} bytes early; the image is incomplete",
                    stub.pid,
                    *expected as i64 - got
                )));
            }
        }
    }
    Ok(())
}

fn finish_memory(stub: &mut Stub, images: &Images, mm: &pb::MmEntry) -> Result<()> {
    let runs = runs(images, stub.pid)?;
    let pid = stub.pid.0 as u32;
    let guards = images.own_task(pid).map_or(&[][..], |own| &own.guards);
    run_all(stub, guards, "guarding memory", memory::guard)?;
    let vmas = mm.vmas.iter().filter(|vma| memory::is_made(vma));
    run_all(stub, vmas, "protecting memory", |batch, vma| {
        memory::finish(batch, vma, own_vma(images, pid, vma), memory::content(vma, runs));
    })?;
    for vmas in mm.vmas.chunks(CALLS) {
        let mut batch = Batch::new();
        let made = vmas.iter().filter(|vma| memory::is_made(vma));
        made.for_each(|vma| memory::lock_now(&mut batch, vma, own_vma(images, pid, vma)));
        if !batch.is_empty() {
            stub.tracee.ask(batch)?;
        }
    }
    let core = images.cores.get(&pid).ok_or(Error::Gone(stub.pid))?;
    let mut batch = Batch::new();
    policy::restore(&mut batch, core, &images.own_task(pid).cloned().unwrap_or_default());
    if batch.is_empty() { Ok(()) } else { run(stub, batch, "setting what holds for the memory as a whole") }
}

/// What only our own image says of a mapping.
fn own_vma<'a>(images: &'a Images, pid: u32, vma: &pb::VmaEntry) -> Option<&'a pb::PtyagentVma> {
    images.own_task(pid)?.vmas.iter().find(|own| own.start == Some(vma.start))
}

/// Sets the fields of the mm, before anything is mapped: the program link cannot be changed while the old program is mapped (EBUSY), and the task
/// may have been one of this very program. The kernel does not ask whether there is anything at the addresses (kernel/sys.c).
fn set_layout(stub: &mut Stub, plan: &Plan, mm: &pb::MmEntry, program: Program) -> Result<()> {
    let exe = plan.slots.files.get(&mm.exe_file_id).copied().filter(|_| program == Program::Set);
    let mut batch = Batch::new();
    memory::set_mm(&mut batch, mm, exe);
    match run(stub, batch, "setting the memory layout") {
        Err(Error::Sys { errno: nix::errno::Errno::EPERM, .. }) => {
            // Without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE /proc/PID/exe stays ours; everything else may be set.
            let mut batch = Batch::new();
            memory::set_mm(&mut batch, mm, None);
            run(stub, batch, "setting the memory layout")
        }
        result => result,
    }
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
    run(stub, batch, "setting the attributes")
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
    run(stub, batch, "setting up the descriptors")
}

/// Gives a task its credentials, after which it may do less.
pub fn identify(stub: &mut Stub, images: &Images, inherited: &Inherited) -> Result<()> {
    let pid = stub.pid.0 as u32;
    let core = images.cores.get(&pid).ok_or(Error::Gone(stub.pid))?;
    let own = images.own_task(pid).cloned().unwrap_or_default();
    let own_thread = images.own_thread(pid).cloned().unwrap_or_default();
    let mut batch = Batch::new();
    modes::restore(&mut batch, &own_thread);
    credentials(&mut batch, images, core, &own_thread, inherited);
    identity::restore_dumpable(&mut batch, &own);
    if !batch.is_empty() {
        run(stub, batch, "setting the credentials")?;
    }
    identity::restore_outside(stub.pid, &own)
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
pub fn queue_signals(stub: &mut Stub, core: &pb::CoreEntry, stopped_children: &[u32]) -> Result<()> {
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
    let pid = stub.pid.0 as u32;
    thread::restore_pending(&mut batch, core, pid, pid);
    signals::restore_pending(&mut batch, core, stub.pid.0);
    if batch.is_empty() { Ok(()) } else { run(stub, batch, "putting the pending signals back") }
}

/// The last batch before a task is let go.
pub fn start_timers(stub: &mut Stub, core: &pb::CoreEntry) -> Result<()> {
    let mut batch = Batch::new();
    signals::restore_timers(&mut batch, core);
    if !batch.is_empty() {
        run(stub, batch, "starting the timers")?;
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
    let info = core.thread_info.as_ref().ok_or(Error::Gone(crate::ids::Pid(tid as i32)))?;
    let xstate = match images.own_thread(tid).and_then(|own| own.xstate.as_ref()) {
        Some(xstate) => here.lay_out(images, tid, xstate, xstate_len)?,
        None => regs::from_fp_entry(&info.fpregs, xstate_len),
    };
    let mask =
        core.thread_core.as_ref().and_then(|thread| thread.blk_sigset).or(core.tc.as_ref().map(|task| task.blk_sigset));
    let regs = restart::in_a_new_task(&regs::from_entry(&info.gpregs));
    let rest = images.own_thread(tid).and_then(thread::rest);
    Ok(ThreadState { regs, rest, xstate, sigmask: mask.unwrap_or(0) })
}
