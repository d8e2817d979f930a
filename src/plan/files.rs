//! What files need beside their descriptors: their locks, and the content of those that have no name.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::Result;
use crate::image::{Images, lock, pb};
use crate::task::record::DEAD;

use super::{Step, Tasks, descriptors, inconsistent};

/// Adds the steps that take all locks.
pub(super) fn lock_steps(images: &Images, steps: &mut Vec<Step>) {
    let holders: BTreeSet<u32> = images.locks.iter().map(|lock| lock.pid as u32).collect();
    steps.extend(holders.into_iter().map(|pid| Step::TakeLocks { pid }));
}

/// Checks that every lock has a living task that has the file open, every removed file its content and every memory file its page map.
pub(super) fn validate(images: &Images, tasks: &Tasks, dir: &Path) -> Result<()> {
    validate_locks(images, tasks, dir)?;
    validate_removed(images, dir)?;
    validate_memfds(images, dir)
}

fn validate_memfds(images: &Images, dir: &Path) -> Result<()> {
    for file in images.files.iter().filter_map(|file| file.memfd.as_ref()) {
        let missing = |what: &str| inconsistent(dir, format!("the memory file {} has no {what}", file.inode_id));
        let inode = images.memfd(file).ok_or_else(|| missing("inode"))?;
        let pagemap = images.shmem_pagemaps.get(&inode.shmid).ok_or_else(|| missing("page map"))?;
        if pagemap.entries.iter().any(|run| run.vaddr >= inode.size) {
            return Err(missing("room for its pages"));
        }
    }
    Ok(())
}

fn validate_locks(images: &Images, tasks: &Tasks, dir: &Path) -> Result<()> {
    let is_open = |lock: &pb::FileLockEntry| {
        let pid = lock.pid as u32;
        let alive = tasks.get(pid).is_some_and(|task| task.state != DEAD);
        alive && descriptors::table(images, pid).iter().any(|entry| entry.fd == lock.fd as u32)
    };
    match images.locks.iter().find(|lock| !is_open(lock) || lock::name(lock.flag).is_none()) {
        Some(lock) => Err(inconsistent(dir, format!("process {} has a lock that cannot be", lock.pid))),
        None => Ok(()),
    }
}

fn validate_removed(images: &Images, dir: &Path) -> Result<()> {
    let is_there = |remap: &pb::RemapFilePathEntry| {
        // CRIU's default is the first of the enumeration.
        let ghost = remap.remap_type == Some(pb::RemapType::Ghost as i32);
        ghost && images.ghosts.contains_key(&remap.remap_id) && images.reg(remap.orig_id).is_some()
    };
    match images.remaps.iter().find(|remap| !is_there(remap)) {
        Some(remap) => Err(inconsistent(dir, format!("the removed file {} cannot be made again", remap.orig_id))),
        None => Ok(()),
    }
}
