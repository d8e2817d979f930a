//! The memory of a task, built from inside.

use std::borrow::Cow;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Result, Subject};
use crate::files::restore::Opened;
use crate::image::{Images, pb};
use crate::inject::batch::{Ask, Batch};
use crate::mem::give;
use crate::mem::inherit::{self, Stored};
use crate::mem::pages::PageRange;
use crate::mem::restore::{self, Backing, Reads};
use crate::mem::shared::Made;
use crate::mem::vdso::{self, Fit, Vdsos};
use crate::mem::{self, layout, policy};
use crate::plan::Plan;
use crate::procfs::{self, Mapping};
use crate::task::thread::Affinity;

use super::build::Means;
use super::inherited::Inherited;
use super::pin;
use super::stubs::{CALLS, Stub};

/// Builds the memory of a task, but for what [`finish`] does: protection, advice and locks.
///
/// `from` is the task that made this one and whose memory was built before: what the two have in common is kept.
pub fn build(stub: &mut Stub, means: &Means<'_>, from: Option<u32>) -> Result<()> {
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
        stub.run_all(inherit::addresses(&dropped), "dropping pages of the parent", restore::drop_pages)?;
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
    restore::unmap_all_but(&mut batch, &keep);
    restore::move_vdso(&mut batch, &group, target, via);
    stub.run(batch, "clearing the memory")?;
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
    let vmas = mm.vmas.iter().filter(|vma| restore::is_made(vma));
    let parts = vmas.flat_map(|vma| inherit::parts(vma, kept).into_iter().map(move |part| (vma, part)));
    stub.run_all(parts, "mapping memory", |batch, (vma, part)| {
        let fd = if vma.status & by_file != 0 { plan.slots.files.get(&(vma.shmid as u32)) } else { None };
        let inherited = made.address(&part);
        let content = restore::content(&part, runs);
        let kind = restore::Kind::of(own_vma(images, pid, vma));
        restore::map(batch, &part, &Backing { fd: fd.copied().unwrap_or(-1), inherited, content, kind });
    })?;
    // What was kept is as the maker had it.
    let vmas = mm.vmas.iter().filter(|vma| restore::is_made(vma));
    let kept = vmas.flat_map(|vma| inherit::within(vma, kept).map(move |range| (vma, range)));
    stub.run_all(kept, "protecting memory", |batch, (vma, range)| restore::open_up(batch, vma, range))
}

/// What was inherited has done its work; the objects live on in the mappings that show them.
fn unmap_inherited(stub: &mut Stub, made: &Made) -> Result<()> {
    stub.run_all(made.ranges(), "unmapping shared memory", restore::unmap)
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
    let skip = mm.vmas.iter().filter(|vma| !restore::is_made(vma)).map(|vma| vma.start..vma.end);
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
            reads.push(restore::read_pages(&mut batch, fd, run.range.start, run.range.pages, run.offset));
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

/// Takes what was inherited only for the making away, and sets what comes last: guards, protection, advice, locks and policies.
pub fn finish(stub: &mut Stub, means: &Means<'_>) -> Result<()> {
    let Means { images, shared, vdsos, .. } = *means;
    let pid = stub.pid.0 as u32;
    let mm = images.mm.get(&pid).ok_or(Error::Gone(stub.pid))?;
    let mm = &*recorded(vdsos, mm, pid);
    unmap_inherited(stub, shared)?;
    let runs = runs(images, stub.pid)?;
    let guards = images.own_task(pid).map_or(&[][..], |own| &own.guards);
    stub.run_all(guards, "guarding memory", restore::guard)?;
    let vmas = mm.vmas.iter().filter(|vma| restore::is_made(vma));
    stub.run_all(vmas, "protecting memory", |batch, vma| {
        restore::finish(batch, vma, own_vma(images, pid, vma), restore::content(vma, runs));
    })?;
    for vmas in mm.vmas.chunks(CALLS) {
        let mut batch = Batch::new();
        let made = vmas.iter().filter(|vma| restore::is_made(vma));
        made.for_each(|vma| restore::lock_now(&mut batch, vma, own_vma(images, pid, vma)));
        if !batch.is_empty() {
            stub.tracee.ask(batch)?;
        }
    }
    let core = images.cores.get(&pid).ok_or(Error::Gone(stub.pid))?;
    let mut batch = Batch::new();
    policy::restore(&mut batch, core, &images.own_task(pid).cloned().unwrap_or_default());
    if batch.is_empty() { Ok(()) } else { stub.run(batch, "setting what holds for the memory as a whole") }
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
    restore::set_mm(&mut batch, mm, exe);
    match stub.run(batch, "setting the memory layout") {
        Err(Error::Sys { errno: nix::errno::Errno::EPERM, .. }) => {
            // Without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE /proc/PID/exe stays ours; everything else may be set.
            let mut batch = Batch::new();
            restore::set_mm(&mut batch, mm, None);
            stub.run(batch, "setting the memory layout")
        }
        result => result,
    }
}
