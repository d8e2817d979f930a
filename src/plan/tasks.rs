//! The tasks that a plan is made for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::Result;
use crate::image::{Images, pb};
use crate::mem::inherit;
use crate::task::leader;
use crate::task::record::STOPPED;

use super::inconsistent;

/// One task, as the order of creation needs it.
#[derive(Debug, Clone)]
pub struct Task {
    pub pid: u32,
    pub parent: Option<u32>,
    pub pgid: u32,
    pub sid: u32,
    pub state: u32,
    pub exit_status: u32,
    /// Without the leader.
    pub threads: Vec<u32>,
    /// The terminal that is its controlling terminal.
    pub ctty: Option<u32>,
}

/// The tree, checked: one root, no loops, every parent there.
#[derive(Debug)]
pub struct Tasks {
    pub root: u32,
    order: Vec<u32>,
    tasks: BTreeMap<u32, Task>,
}

impl Tasks {
    pub(super) fn new(images: &Images, dir: &Path) -> Result<Tasks> {
        let root = images.pstree.first().ok_or_else(|| inconsistent(dir, "it has no process"))?.pid;
        let mut tasks = BTreeMap::new();
        let mut order = Vec::new();
        let mut numbers = BTreeSet::new();
        for entry in &images.pstree {
            validate_threads(images, entry, &mut numbers, dir)?;
            let parent = (entry.pid != root).then_some(entry.ppid);
            if parent.is_some_and(|parent| !tasks.contains_key(&parent)) {
                return Err(inconsistent(dir, format!("the parent of process {} is missing", entry.pid)));
            }
            if entry.pid == 0 || entry.pid > i32::MAX as u32 {
                return Err(inconsistent(dir, format!("{} is no process id", entry.pid)));
            }
            let task = Task::of(images, entry, parent)
                .ok_or_else(|| inconsistent(dir, format!("process {} has no state", entry.pid)))?;
            if tasks.insert(entry.pid, task).is_some() {
                return Err(inconsistent(dir, format!("process {} is there twice", entry.pid)));
            }
            order.push(entry.pid);
        }
        Ok(Tasks { root, order, tasks })
    }

    /// Parents before their children.
    pub fn in_order(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.order.iter().filter_map(|pid| self.tasks.get(pid))
    }

    pub fn get(&self, pid: u32) -> Option<&Task> {
        self.tasks.get(&pid)
    }

    pub fn children(&self, pid: u32) -> impl Iterator<Item = &Task> {
        self.in_order().filter(move |task| task.parent == Some(pid))
    }
}

impl Task {
    fn of(images: &Images, entry: &pb::PstreeEntry, parent: Option<u32>) -> Option<Task> {
        let core = images.cores.get(&entry.pid)?.tc.as_ref()?;
        Some(Task {
            pid: entry.pid,
            parent,
            pgid: entry.pgid,
            sid: entry.sid,
            state: core.task_state,
            exit_status: core.exit_code,
            threads: entry.threads.iter().copied().filter(|tid| *tid != entry.pid).collect(),
            ctty: images.own_task(entry.pid).and_then(|own| own.ctty_tty_id),
        })
    }

    pub fn is_stopped(&self) -> bool {
        self.state == STOPPED
    }
}

/// Checks that a living task has all its parts and that they refer to what is there.
pub(super) fn validate_task(images: &Images, pid: u32, dir: &Path) -> Result<()> {
    let missing = |what: &str| inconsistent(dir, format!("process {pid} has no {what}"));
    let core = images.cores.get(&pid).ok_or_else(|| missing("registers"))?;
    if leader::exit_status(images, pid).is_none() {
        core.thread_info.as_ref().ok_or_else(|| missing("registers"))?;
    } else if leader::host(images, pid) == pid || core.tc.as_ref().is_none_or(|task| task.task_state == STOPPED) {
        return Err(missing("thread that lives"));
    }
    core.thread_core.as_ref().ok_or_else(|| missing("thread state"))?;
    let mm = images.mm.get(&pid).ok_or_else(|| missing("memory map"))?;
    images.fs.get(&pid).ok_or_else(|| missing("directories"))?;
    images.pagemaps.get(&pid).ok_or_else(|| missing("page map"))?;
    inherit::stored(images, pid, &[]).ok_or_else(|| missing("pages that it has in common with another"))?;
    images.reg(mm.exe_file_id).ok_or_else(|| missing("executable"))?;
    let mut end = 0;
    for vma in &mm.vmas {
        if vma.start < end || vma.start >= vma.end || vma.start % 4096 != 0 || vma.end % 4096 != 0 {
            return Err(inconsistent(dir, format!("process {pid} has a mapping at {:#x} that cannot be", vma.start)));
        }
        end = vma.end;
        let by_file = crate::mem::status::FILE_PRIVATE | crate::mem::status::FILE_SHARED;
        let file = images.file(vma.shmid as u32).filter(|file| file.reg.is_some() || file.memfd.is_some());
        if vma.status & by_file != 0 && file.is_none() {
            return Err(missing("file for a mapping"));
        }
    }
    Ok(())
}

/// Checks that every thread of a process has a number of its own, and registers.
fn validate_threads(images: &Images, entry: &pb::PstreeEntry, numbers: &mut BTreeSet<u32>, dir: &Path) -> Result<()> {
    for tid in entry.threads.iter().copied().filter(|tid| *tid != entry.pid) {
        let inconsistent = |what: &str| inconsistent(dir, format!("thread {tid} of process {} {what}", entry.pid));
        let core = images.cores.get(&tid).ok_or_else(|| inconsistent("has no registers"))?;
        if core.thread_info.is_none() || core.thread_core.is_none() {
            return Err(inconsistent("has no state"));
        }
        let is_process = images.pstree.iter().any(|process| process.pid == tid);
        if tid == 0 || tid > i32::MAX as u32 || is_process || !numbers.insert(tid) {
            return Err(inconsistent("has a number that cannot be"));
        }
    }
    Ok(())
}
