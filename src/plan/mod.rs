//! The plan of a restore: a totally ordered list of plain steps, made from images alone.
//!
//! Making it is the validation: images that contradict themselves have no plan, and nothing is created for them. It sees no live process,
//! so `--dry-run` prints it anywhere.

pub mod descriptors;
mod files;
pub mod memory;
pub mod sessions;
pub mod sharing;
pub mod sockets;
mod step;
mod tasks;

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::image::{Images, pb};
use crate::mem::pages::PAGE;
use crate::mem::{segment, shared, status};
use crate::task::leader;
use crate::task::record::{DEAD, STOPPED};
use crate::tty::record::is_hung_up;

pub use descriptors::Slots;
pub use step::{Birth, Step};
use tasks::validate_task;
pub use tasks::{Task, Tasks};

/// Everything that a restore will do.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub root: u32,
    pub steps: Vec<Step>,
    /// Under which number every stub has each file open.
    pub slots: Slots,
    /// The terminal whose master was outside the tree: the restore stands in for it.
    pub outside: Option<u32>,
}

/// What is wrong with the images, as an error.
pub(crate) fn inconsistent(dir: &Path, reason: impl Into<String>) -> Error {
    Error::image(dir, format!("{}; it is damaged or from an unknown program: dump again", reason.into()))
}

/// Makes the plan. `dir` is for messages.
pub fn plan(images: &Images, dir: &Path) -> Result<Plan> {
    let tasks = Tasks::new(images, dir)?;
    let slots = descriptors::slots(images, dir)?;
    files::validate(images, &tasks, dir)?;
    let outside = outside(images, dir)?;
    let mut steps = Vec::new();
    // Those that are hung up first: their index is free again for others.
    for index in indexes(images).into_iter().filter(|index| is_hung_up(*index)) {
        steps.push(Step::OpenTerminal { index });
        descriptors::open_slaves(images, index, &mut steps);
        steps.push(Step::HangUp { index });
    }
    for index in living(images) {
        steps.push(Step::OpenTerminal { index });
    }
    sockets::open_steps(images, dir, &mut steps)?;
    steps.extend(images.memfds.iter().map(|inode| Step::MakeMemoryFile { id: inode.inode_id }));
    descriptors::open_steps(images, &mut steps);
    sockets::join_steps(images, dir, &mut steps)?;
    for id in shared_objects(images, dir)? {
        steps.push(Step::MakeShared { id });
    }
    sessions::creation(images, &tasks, dir, &mut steps)?;
    sharing::validate(images, &steps, dir)?;
    let heirs = memory::heirs(images, &steps);
    memory::map_before_births(&heirs, &mut steps);
    sessions::groups(&tasks, dir, &mut steps)?;
    for ctty in images.own.iter().flat_map(|own| &own.cttys) {
        let (Some(leader), Some(tty)) = (ctty.sid, ctty.tty_info_id) else { continue };
        if let Some(pgid) = ctty.foreground_pgrp.filter(|pgid| *pgid != 0) {
            sessions::foreground(&tasks, leader, tty, pgid, &mut steps);
        }
    }
    for task in tasks.in_order() {
        if task.state == DEAD {
            steps.push(Step::Die { pid: task.pid, status: task.exit_status });
        }
    }
    for task in tasks.in_order().filter(|task| task.state != DEAD) {
        validate_task(images, task.pid, dir)?;
        if !steps.iter().any(|step| matches!(step, Step::Map { pid, .. } if *pid == task.pid)) {
            steps.push(Step::Map { pid: task.pid, from: heirs.get(&task.pid).copied() });
        }
        steps.push(Step::Build { pid: task.pid });
        let host = leader::host(images, task.pid);
        if host != task.pid {
            steps.push(Step::EndMainThread { pid: task.pid, host });
        }
        let threads = task.threads.iter().filter(|tid| **tid != host);
        steps.extend(threads.map(|tid| Step::CreateThread { pid: task.pid, tid: *tid }));
        steps.push(Step::Identify { pid: task.pid });
    }
    for index in living(images) {
        steps.push(Step::FillQueues { index });
        steps.push(Step::ArmTerminal { index });
    }
    let watches = |task: &&Task| !descriptors::epolls(images, task.pid).is_empty();
    for task in tasks.in_order().filter(watches) {
        steps.push(Step::FillEpoll { pid: task.pid });
    }
    files::lock_steps(images, &mut steps);
    steps.push(Step::HandOver);
    let_go(&tasks, &mut steps);
    Ok(Plan { root: tasks.root, steps, slots, outside })
}

/// Stopped tasks stop again first, children before their parents, so that what a stop tells the parent is taken from it. After that a
/// signal is real: a child that is let go may end at once, and its parent must hear of it.
fn let_go(tasks: &Tasks, steps: &mut Vec<Step>) {
    let living = || tasks.in_order().rev().filter(|task| task.state != DEAD);
    for Task { pid, .. } in living().filter(|task| task.state == STOPPED) {
        steps.extend([Step::QueueSignals { pid: *pid }, Step::Release { pid: *pid }]);
    }
    let others = || living().filter(|task| task.state != STOPPED);
    steps.extend(others().map(|task| Step::QueueSignals { pid: task.pid }));
    steps.extend(others().map(|task| Step::Release { pid: task.pid }));
}

/// What all terminals are known as, ascending.
fn indexes(images: &Images) -> BTreeSet<u32> {
    images.tty_info.iter().map(|tty| tty.id / 2).collect()
}

fn living(images: &Images) -> impl Iterator<Item = u32> {
    indexes(images).into_iter().filter(|index| !is_hung_up(*index))
}

/// The objects of shared memory; all stored pages have to lie inside. First segments that have no key any more, so that others can have it.
fn shared_objects(images: &Images, dir: &Path) -> Result<Vec<u32>> {
    let vmas = images.mm.values().flat_map(|mm| &mm.vmas).filter(|vma| shared::is_view(vma));
    let ids: BTreeSet<u32> = vmas.map(|vma| vma.shmid as u32).collect();
    for id in &ids {
        let missing = || inconsistent(dir, format!("shared memory {id} has no page map"));
        let pagemap = images.shmem_pagemaps.get(id).ok_or_else(missing)?;
        let size = shared::size(images, *id);
        let end = |run: &pb::PagemapEntry| run.vaddr.saturating_add(run.pages().saturating_mul(PAGE));
        if pagemap.entries.iter().any(|run| end(run) > size) {
            return Err(inconsistent(dir, format!("shared memory {id} has pages behind its end")));
        }
    }
    for vma in images.mm.values().flat_map(|mm| &mm.vmas).filter(|vma| vma.status & status::SYSVIPC != 0) {
        let missing = || inconsistent(dir, format!("System V segment {} is missing", vma.shmid));
        let entry = segment::of(images, vma.shmid as u32).ok_or_else(missing)?;
        if vma.pgoff.saturating_add(vma.end.saturating_sub(vma.start)) > segment::size(entry) {
            return Err(inconsistent(dir, format!("System V segment {} ends before its mapping", vma.shmid)));
        }
    }
    let is_removed = |id: &u32| segment::of(images, *id).is_some_and(segment::is_removed);
    let (mut first, others): (Vec<u32>, Vec<u32>) = ids.into_iter().partition(is_removed);
    first.extend(others);
    Ok(first)
}

/// The one terminal whose master was outside the tree.
fn outside(images: &Images, dir: &Path) -> Result<Option<u32>> {
    let mut found = None;
    for tty in images.own.iter().flat_map(|own| &own.ttys).filter(|tty| tty.external == Some(true)) {
        let id = tty.tty_info_id.unwrap_or(0);
        if found.replace(id / 2).is_some() {
            return Err(Error::image(
                dir,
                "it has two terminals whose other side was outside; only one can be continued here",
            ));
        }
    }
    Ok(found)
}
