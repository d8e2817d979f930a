//! The story of a dump: survey, freeze, infect, collect, drain the queues, write, then let go or kill.
//!
//! Nothing is stopped before the target directory is known to be usable. The images appear in it by one rename, after everything is on
//! disk; only then is a session killed. A session that is to run on does so as soon as everything is read. Whatever fails before gives the
//! session back everything: dropping a captured process makes its parasite put back what it holds, and leave.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::capture::{self, Allowed, Captured, Tree};
use crate::error::{Error, Refusal, Result};
use crate::files::memfd;
use crate::ids::Pid;
use crate::image::{CommitReport, Images, Overwrite, Writer, pb};
use crate::inject::batch::{Ask, Batch};
use crate::mem::copy::{self, Access, Stash, Wish};
use crate::mem::pages::{PAGE, PageMap, PageRange, Wanted};
use crate::mem::{self, inherit, segment, shared, status};
use crate::sys::process::pidfd_send_signal;
use crate::task::survey::{self, SurveyMode};
use crate::tty::drain::{self, Drained};

/// What becomes of the session once its images are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Kill,
    LeaveRunning,
    LeaveStopped,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub root: Pid,
    pub dir: PathBuf,
    pub after: After,
    pub overwrite: Overwrite,
    pub allowed: Allowed,
}

/// What a dump did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub root: Pid,
    pub dir: PathBuf,
    pub tasks: usize,
    pub terminals: usize,
    /// Microseconds from the freeze until everything was read, when the session ran on or could have.
    pub frozen_us: u64,
    /// Microseconds of the whole dump.
    pub total_us: u64,
    pub pages: u64,
    /// Of all images.
    pub bytes: u64,
    /// The most physical memory that this process has had, in KiB; absent where the kernel does not tell.
    pub controller_peak_kib: Option<u64>,
    /// State that was not carried because the user allowed it.
    pub losses: Vec<String>,
}

/// Dumps the tree rooted at a process.
pub fn dump(request: &Request) -> Result<Report> {
    let start = Instant::now();
    let mut writer = Writer::create(&request.dir, request.overwrite)?;
    let mut stash = Stash::new(expected_size(request.root));
    let mut frozen_at = start;
    let mut session = capture::take(request.root, SurveyMode::Dump, &request.allowed, || frozen_at = Instant::now())?;
    tracing::debug!(frozen_us = micros(frozen_at), "captured");
    drain::refuse_states(&session.images)?;
    let pending = read_pages(&mut writer, &mut session, &mut stash)?;
    tracing::debug!(frozen_us = micros(frozen_at), "pages read");
    read_shared(&mut writer, &mut session)?;
    refuse_unplannable(&session.images, request)?;
    let drained = drain::drain(&mut session.processes, &mut session.images, &session.readers)?;
    stamp(&mut session.images);
    tracing::debug!(frozen_us = micros(frozen_at), "queues drained");
    let (tasks, terminals) = (session.images.pstree.len(), session.images.tty_info.len());
    let Tree { processes, images, .. } = session;
    let pages = images.stored_pages();
    let mut losses = losses(&images);
    let (frozen_us, commit) = match request.after {
        After::Kill => {
            let captured_us = micros(frozen_at);
            let commit = commit(writer, &images, &stash, pending)?;
            kill(processes, &images)?;
            losses.extend(segment::remove(&images));
            (captured_us, commit)
        }
        After::LeaveRunning | After::LeaveStopped => {
            let frozen_us = let_go(processes, &images, &drained, request.after, frozen_at)?;
            (frozen_us, commit(writer, &images, &stash, pending)?)
        }
    };
    Ok(Report {
        root: request.root,
        dir: request.dir.clone(),
        tasks,
        terminals,
        frozen_us,
        total_us: micros(start),
        pages,
        bytes: commit.bytes,
        controller_peak_kib: peak_memory_kib(),
        losses,
    })
}

/// What the images do not hold, one sentence each.
fn losses(images: &Images) -> Vec<String> {
    let noted = |loss: &pb::PtyagentLoss| match (loss.pid, loss.fd) {
        (Some(pid), Some(fd)) => format!("process {pid}, descriptor {fd}: {}", loss.text()),
        _ => loss.text().to_owned(),
    };
    images.own.iter().flat_map(|own| &own.losses).map(noted).chain(drain::losses(images)).collect()
}

/// Refuses what a restore would find no plan for, while nothing is lost yet.
fn refuse_unplannable(images: &Images, request: &Request) -> Result<()> {
    let Err(error) = crate::plan::plan(images, &request.dir) else { return Ok(()) };
    let reason = match error {
        Error::Image { reason, .. } => reason.split(';').next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    };
    Err(Error::Refused(Refusal {
        pid: request.root,
        comm: crate::procfs::Stat::read(request.root).map(|stat| stat.comm_text()).unwrap_or_default(),
        fd: None,
        kind: format!("its tree could not be made again: {reason}"),
        remedy: "dump a tree that has all of it, or end that process".into(),
    }))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The peak of this process, for the reports.
pub(crate) fn peak_memory_kib() -> Option<u64> {
    crate::procfs::attributes::peak_memory_kib(Pid(std::process::id() as i32)).ok().flatten()
}

/// Pages that were read and are still to be written.
struct Pending {
    id: u32,
    place: std::ops::Range<usize>,
}

/// Reads the pages of every process, into the stash where they fit, else straight into the image; yields what is to be written.
fn read_pages(writer: &mut Writer, session: &mut Tree, stash: &mut Stash) -> Result<Vec<Pending>> {
    // Everything is compared before anything is read: reading may part what is shared.
    let memories = compare(session)?;
    let stored: Vec<Vec<PageRange>> =
        memories.iter().map(|memory| inherit::subtract(&memory.all, &memory.common)).collect();
    let wish = |(memory, ranges)| {
        let Memory { seen, access, .. }: &Memory = memory;
        Wish { pid: *seen, ranges, access: *access }
    };
    let wishes: Vec<Wish<'_>> = memories.iter().zip(stored.iter().map(Vec::as_slice)).map(wish).collect();
    let places = stash.read_all(&wishes)?;
    let mut pending = Vec::new();
    for ((Memory { pid, seen, common, access, .. }, ranges), place) in memories.into_iter().zip(&stored).zip(places) {
        let id = pid.0 as u32;
        match place {
            Some(place) => pending.push(Pending { id, place }),
            None => {
                let file = writer.pages_file(id)?;
                writer.set_pages(id, copy::copy(seen, ranges, access, &file)?);
            }
        }
        session.images.pagemaps.insert(id, inherit::to_pagemap(id, ranges, &common));
    }
    Ok(pending)
}

/// Which pages a process has, which of them are its parent's too, and how they are to be read.
struct Memory {
    pid: Pid,
    /// The thread whose directory of /proc shows it.
    seen: Pid,
    all: Vec<PageRange>,
    common: Vec<PageRange>,
    access: Access,
}

/// Finds the pages of every process, and those that children have in common with their parents.
fn compare(session: &mut Tree) -> Result<Vec<Memory>> {
    let mut memories: Vec<Memory> = Vec::new();
    for process in &session.processes {
        let (pid, id) = (process.pid, process.pid.0 as u32);
        let mut map = PageMap::open(process.seen())?;
        record_guards(&mut session.images, id, &map);
        let all = own_pages(process, &mut map)?;
        let mut memory = Memory { pid, seen: process.seen(), all, common: Vec::new(), access: Access::Pin };
        let parent = parent(&session.images, id);
        let theirs = parent.and_then(|parent| memories.iter_mut().find(|memory| memory.pid.0 as u32 == parent));
        if let Some(theirs) = theirs {
            let candidates = inherit::candidates(&theirs.all, &memory.all, &process.mappings);
            memory.common = inherit::common(theirs.seen, memory.seen, &candidates)?;
            if !memory.common.is_empty() {
                (theirs.access, memory.access) = (Access::Leave, Access::Leave);
                own_task(&mut session.images, id).into_iter().for_each(|own| own.pages_of = parent);
            }
        }
        memories.push(memory);
    }
    Ok(memories)
}

fn parent(images: &Images, pid: u32) -> Option<u32> {
    images.pstree.iter().find(|entry| entry.pid == pid).map(|entry| entry.ppid).filter(|parent| *parent != 0)
}

fn own_task(images: &mut Images, pid: u32) -> Option<&mut pb::PtyagentTask> {
    images.own.as_mut()?.tasks.iter_mut().find(|task| task.pid == Some(pid))
}

/// Copies the memory that the tree shares, each object once.
fn read_shared(writer: &mut Writer, session: &mut Tree) -> Result<()> {
    let tree = || session.processes.iter().map(|process| (process.seen(), process.mappings.as_slice()));
    segment::record(&mut session.images, tree())?;
    let objects = shared::objects(tree());
    shared::refuse_outside(&objects, &session.processes.iter().map(|process| process.pid).collect())?;
    // Files of pages are numbered by their processes; these come behind.
    let mut id = session.processes.iter().map(|process| process.pid.0 as u32).max().unwrap_or(0);
    for object in objects {
        id += 1;
        let file = writer.pages_file(id)?;
        let (ranges, digest) = object.copy(&file)?;
        writer.set_pages(id, digest);
        session.images.shmem_pagemaps.insert(object.id, inherit::to_pagemap(id, &ranges, &[]));
    }
    for (shmid, source) in session.memfds.drain(..) {
        id += 1;
        let file = writer.pages_file(id)?;
        let (ranges, digest) = memfd::copy(&source, &file)?;
        writer.set_pages(id, digest);
        session.images.shmem_pagemaps.insert(shmid, inherit::to_pagemap(id, &ranges, &[]));
    }
    Ok(())
}

/// Writes what the stash holds, and then everything else.
fn commit(mut writer: Writer, images: &Images, stash: &Stash, pending: Vec<Pending>) -> Result<CommitReport> {
    let open = |Pending { id, place }| Ok((id, place, writer.pages_file(id)?));
    let files = pending.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    for (id, digest) in stash.write_all(&files)? {
        writer.set_pages(id, digest);
    }
    drop(files);
    writer.commit(images)
}

/// How many bytes of its own a tree may have, at a glance: what is resident and not shared.
fn expected_size(root: Pid) -> u64 {
    let size = |pid: &Pid| {
        let text = std::fs::read_to_string(crate::procfs::path(*pid, "statm")).ok()?;
        let mut fields = text.split(' ').skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
        let resident = fields.next()?;
        Some(resident.saturating_sub(fields.next()?) + ROOM_TO_GROW)
    };
    let pages: u64 = survey::enumerate(root).unwrap_or_default().iter().filter_map(size).sum();
    pages * PAGE
}

/// Pages that a process may get between the glance and the freeze, written file pages among them.
const ROOM_TO_GROW: u64 = 128;

/// The pages that have content of the process's own.
fn own_pages(process: &Captured, map: &mut PageMap) -> Result<Vec<PageRange>> {
    let mut ranges = Vec::new();
    for mapping in &process.mappings {
        let status = mem::status_of(mapping);
        let wanted = if status & status::VDSO != 0 {
            Wanted::All
        } else if status & status::VVAR != 0 || mapping.is("[vsyscall]") {
            continue;
        } else if status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0 {
            Wanted::Own
        } else {
            continue;
        };
        map.find(mapping.start.0, mapping.end.0, wanted, &mut ranges)?;
    }
    Ok(ranges)
}

fn record_guards(images: &mut Images, pid: u32, map: &PageMap) {
    let range =
        |range: &PageRange| pb::PtyagentRange { start: Some(range.start), end: Some(range.start + range.pages * PAGE) };
    if let Some(task) = own_task(images, pid) {
        task.guards = map.guards().iter().map(range).collect();
    }
}

/// Fills in what the directory says about itself.
fn stamp(images: &mut Images) {
    images.inventory = pb::InventoryEntry {
        img_version: 2,
        fdinfo_per_id: Some(true),
        root_ids: Some(crate::task::sharing::outside()),
        ..Default::default()
    };
    let uname = nix::sys::utsname::uname().ok();
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let own = images.own.get_or_insert_default();
    own.format_version = Some(crate::image::own::FORMAT_VERSION);
    own.vdso = mem::vdso::Image::ours().ok().map(|image| image.record());
    own.writer = Some(format!("ptyagent {}", env!("CARGO_PKG_VERSION")));
    let mut kernel = pb::PtyagentKernel {
        release: text(uname.as_ref().map(|uname| uname.release())),
        version: text(uname.as_ref().map(|uname| uname.version())),
        machine: text(uname.as_ref().map(|uname| uname.machine())),
        page_size: Some(PAGE as u32),
        ..Default::default()
    };
    crate::task::cpu::record(&mut kernel);
    own.kernel = Some(kernel);
}

/// Gives everything back and lets the session go; yields for how many microseconds it had been stopped.
fn let_go(
    processes: Vec<Captured>,
    images: &Images,
    drained: &[Drained],
    after: After,
    frozen_at: Instant,
) -> Result<u64> {
    let mut processes = processes;
    drain::put_back(&mut processes, images, drained)?;
    if after == After::LeaveStopped {
        for process in &processes {
            signal(process, libc::SIGSTOP)?;
        }
    }
    capture::release(processes)?;
    Ok(micros(frozen_at))
}

/// Kills all, children first, and lets each parent reap its children before it dies itself: nothing but the root is left for others to reap,
/// so that all other numbers are free at once.
fn kill(processes: Vec<Captured>, images: &Images) -> Result<()> {
    let mut rest = processes;
    let dead = images.pstree.iter().rev().map(|entry| entry.pid as i32);
    for pid in dead {
        if let Some(at) = rest.iter().position(|process| process.pid.0 == pid) {
            let process = rest.remove(at);
            signal(&process, libc::SIGKILL)?;
            process.reap_killed();
        }
        let parent = images.pstree.iter().find(|entry| entry.pid as i32 == pid).map(|entry| entry.ppid as i32);
        if let Some(parent) = rest.iter_mut().find(|process| Some(process.pid.0) == parent) {
            let mut batch = Batch::new();
            batch.call(libc::SYS_wait4, [pid.into(), 0u64.into(), libc::__WALL.into(), 0u64.into()]);
            parent.tracee.ask(batch)?;
        }
    }
    Ok(())
}

fn signal(process: &Captured, signal: i32) -> Result<()> {
    use std::os::fd::AsFd;
    match pidfd_send_signal(process.pidfd.as_fd(), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(Error::of_pid("signalling", process.pid, errno)),
    }
}
