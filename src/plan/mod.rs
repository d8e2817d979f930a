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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::image::{Images, pb};
use crate::mem::pages::PAGE;
use crate::mem::{inherit, segment, shared, status};
use crate::task::record::{DEAD, STOPPED};
use crate::tty::record::is_hung_up;

pub use descriptors::Slots;
use sockets::SocketStep;

/// How a task gets its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Birth {
    /// Made by the restore itself: the root.
    Root,
    /// A child of the task that makes it.
    Child { maker: u32 },
    /// Made by a helper that leads its session, with the helper's parent as its own.
    Sibling { maker: u32 },
}

/// One step. Numbers are process ids, file ids (`slot` tells where they are open) and terminal ids of the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    OpenTerminal {
        index: u32,
    },
    /// Memory that tasks share is made by the restore, and they inherit it.
    MakeShared {
        id: u32,
    },
    MakeMemoryFile {
        id: u64,
    },
    OpenPipe {
        pipe: u32,
    },
    OpenFile {
        id: u32,
    },
    Socket(SocketStep),
    Create {
        pid: u32,
        birth: Birth,
    },
    /// A task that only stands for a number: it never runs.
    CreateHelper {
        pid: u32,
        maker: u32,
    },
    StartSession {
        pid: u32,
    },
    TakeTerminal {
        leader: u32,
        tty: u32,
    },
    /// Opened in the task, so that it is the task's controlling terminal.
    OpenDevTty {
        pid: u32,
        id: u32,
    },
    JoinGroup {
        pid: u32,
        pgid: u32,
    },
    EndHelper {
        pid: u32,
        maker: u32,
    },
    SetForeground {
        leader: u32,
        tty: u32,
        pgid: u32,
    },
    /// The memory of a task with its pages; where `from` made the task, what the two have in common stays as it was born with it.
    Map {
        pid: u32,
        from: Option<u32>,
    },
    Build {
        pid: u32,
    },
    /// Of a built process, which still may choose numbers.
    CreateThread {
        pid: u32,
        tid: u32,
    },
    /// Its credentials, after which a process may do less.
    Identify {
        pid: u32,
    },
    Die {
        pid: u32,
        status: u32,
    },
    /// The terminal's master, which was closed before the dump, is closed again.
    HangUp {
        index: u32,
    },
    FillQueues {
        index: u32,
    },
    ArmTerminal {
        index: u32,
    },
    /// What its epoll instances watch, when all that is in its final state.
    FillEpoll {
        pid: u32,
    },
    /// Of files that it has open: a process loses its locks on a file with the first descriptor that it closes.
    TakeLocks {
        pid: u32,
    },
    /// Owners of O_ASYNC, and nothing stays open in the restore itself but what it relays.
    HandOver,
    /// Its own pending signals, instead of those that its making and its children's stops have left.
    QueueSignals {
        pid: u32,
    },
    Release {
        pid: u32,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::OpenTerminal { index } => write!(f, "open terminal {index}"),
            Step::MakeShared { id } => write!(f, "make shared memory {id}"),
            Step::MakeMemoryFile { id } => write!(f, "make memory file {id}"),
            Step::OpenPipe { pipe } => write!(f, "open pipe {pipe}"),
            Step::OpenFile { id } => write!(f, "open file {id}"),
            Step::Socket(step) => step.fmt(f),
            Step::Create { pid, birth: Birth::Root } => write!(f, "create process {pid}"),
            Step::Create { pid, birth: Birth::Child { maker } } => write!(f, "create process {pid} in {maker}"),
            Step::Create { pid, birth: Birth::Sibling { maker } } => write!(f, "create process {pid} beside {maker}"),
            Step::CreateHelper { pid, maker } => write!(f, "create helper {pid} in {maker}"),
            Step::StartSession { pid } => write!(f, "start session {pid}"),
            Step::TakeTerminal { leader, tty } => write!(f, "give session {leader} its controlling terminal {tty}"),
            Step::OpenDevTty { pid, id } => write!(f, "open /dev/tty as file {id} in process {pid}"),
            Step::JoinGroup { pid, pgid } => write!(f, "put process {pid} into group {pgid}"),
            Step::EndHelper { pid, .. } => write!(f, "end helper {pid}"),
            Step::SetForeground { tty, pgid, .. } => {
                write!(f, "make group {pgid} the foreground group of terminal {tty}")
            }
            Step::Map { pid, from: None } => write!(f, "build the memory of process {pid}"),
            Step::Map { pid, from: Some(from) } => {
                write!(f, "build the memory of process {pid}, in part as born from {from}")
            }
            Step::Build { pid } => write!(f, "build process {pid}: descriptors, signals"),
            Step::CreateThread { pid, tid } => write!(f, "create thread {tid} of process {pid}"),
            Step::Identify { pid } => write!(f, "give process {pid} its credentials"),
            Step::Die { pid, status } => write!(f, "end process {pid} with status {status:#x}"),
            Step::HangUp { index } => write!(f, "hang up pseudoterminal {index}"),
            Step::FillEpoll { pid } => write!(f, "fill the epoll instances of process {pid}"),
            Step::TakeLocks { pid } => write!(f, "take the file locks of process {pid}"),
            Step::HandOver => write!(f, "set the owners of files and let go of them"),
            Step::FillQueues { index } => write!(f, "put back what is unread in terminal {index}"),
            Step::ArmTerminal { index } => write!(f, "lock terminal {index} as it was"),
            Step::QueueSignals { pid } => write!(f, "queue the pending signals of process {pid}"),
            Step::Release { pid } => write!(f, "let process {pid} go on"),
        }
    }
}

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
        steps.extend(task.threads.iter().map(|tid| Step::CreateThread { pid: task.pid, tid: *tid }));
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

/// Checks that a living task has all its parts and that they refer to what is there.
fn validate_task(images: &Images, pid: u32, dir: &Path) -> Result<()> {
    let missing = |what: &str| inconsistent(dir, format!("process {pid} has no {what}"));
    let core = images.cores.get(&pid).ok_or_else(|| missing("registers"))?;
    core.thread_info.as_ref().ok_or_else(|| missing("registers"))?;
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
    fn new(images: &Images, dir: &Path) -> Result<Tasks> {
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
