//! What a session is, as far as one can see from outside, while it runs.
//!
//! 1. The root: a process that exists, that we may look at and that code can run in.
//! 2. The tree below it, scanned until two scans agree; then the facts of each process, zombies included.
//! 3. For a dump: everything that cannot be carried is refused, while nothing is stopped yet.
//!
//! All of it reads /proc and stops nothing, so any of it may be stale by the time of the freeze: [`recheck`] reads again what is cheap to
//! read, says what has changed and yields the fresh facts.

mod refusals;
mod threads;

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::error::{Error, Result};
use crate::files::kind::Descriptor;
use crate::ids::{Pid, Tid};
use crate::procfs::attributes::{self, Cgroup, PosixTimer};
use crate::procfs::{self, Auxv, Mapping, Namespaces, Stat, Status, fdinfo, maps, tree};

pub use refusals::{in_vfork, refuse_outsiders, refuse_unsupported, waits_in_vfork};
pub use threads::refuse_threads;

/// What the survey is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SurveyMode {
    /// Everything that a dump cannot carry is refused; mappings come with their flags.
    Dump,
    /// Only what makes running code in the processes impossible is refused.
    Inspect,
}

/// A process and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    pub root: Pid,
    /// Parents before their children.
    pub tasks: Vec<TaskFacts>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFacts {
    pub pid: Pid,
    pub stat: Stat,
    pub status: Status,
    /// The thread that the kernel shows the process through: its leader, or another one where that has ended and is a zombie.
    pub body: Tid,
    /// Ascending; the leader's thread is among them.
    pub threads: Vec<Tid>,
    pub life: Life,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Ended and not yet waited for; the code is in wait status form.
    Zombie {
        exit_code: i32,
    },
    Alive(Box<Alive>),
}

/// What only a living process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    pub maps: Vec<Mapping>,
    pub descriptors: Vec<Descriptor>,
    pub namespaces: Namespaces,
    pub auxv: Auxv,
    /// The links exe, cwd and root of /proc/PID.
    pub exe: OsString,
    pub cwd: OsString,
    pub root: OsString,
    pub personality: Option<u32>,
    pub oom_score_adj: Option<i32>,
    pub coredump_filter: Option<u32>,
    /// `None` where the kernel does not tell.
    pub timers: Option<Vec<PosixTimer>>,
    pub cgroups: Vec<Cgroup>,
}

/// Whether [`Alive::maps`] get their flags, which makes the kernel walk the page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MapDetail {
    Flags,
    Plain,
}

/// What was known before a reading.
#[derive(Debug, Clone, Copy)]
enum Known<'a> {
    Nothing(MapDetail),
    Survey(&'a Survey),
}

impl TaskFacts {
    pub fn alive(&self) -> Option<&Alive> {
        match &self.life {
            Life::Alive(alive) => Some(alive),
            Life::Zombie { .. } => None,
        }
    }

    /// Whether its main thread has ended while others run on.
    pub fn has_lost_leader(&self) -> bool {
        self.body != Tid::from(self.pid)
    }

    /// For messages.
    pub fn comm(&self) -> String {
        self.stat.comm_text()
    }
}

impl Survey {
    pub fn task(&self, pid: Pid) -> Option<&TaskFacts> {
        self.tasks.iter().find(|task| task.pid == pid)
    }

    /// The processes that are not zombies.
    pub fn living(&self) -> impl Iterator<Item = (&TaskFacts, &Alive)> {
        self.tasks.iter().filter_map(|task| Some((task, task.alive()?)))
    }

    /// Every descriptor of the tree, as [`crate::files::ofd::group`] takes them.
    pub fn descriptors(&self) -> impl Iterator<Item = (Pid, Tid, &Descriptor)> {
        self.living()
            .flat_map(|(task, alive)| alive.descriptors.iter().map(|descriptor| (task.pid, task.body, descriptor)))
    }

    pub fn contains(&self, pid: Pid) -> bool {
        self.task(pid).is_some()
    }
}

/// Looks at the tree below `root` and refuses what `mode` says. Nothing is stopped or changed.
///
/// [`Error::Failed`]: no such process, or no right to look at one; [`Error::Refused`]: everything else that stands in the way.
pub fn survey(root: Pid, mode: SurveyMode) -> Result<Survey> {
    refusals::refuse_root(root)?;
    let detail = match mode {
        SurveyMode::Dump => MapDetail::Flags,
        SurveyMode::Inspect => MapDetail::Plain,
    };
    let survey = collect(root, enumerate(root)?, Known::Nothing(detail))?;
    for task in &survey.tasks {
        refusals::refuse_uninjectable(&survey, task)?;
    }
    if mode == SurveyMode::Dump {
        refuse_unsupported(&survey)?;
        refuse_threads(&survey)?;
        refuse_outsiders(&survey)?;
    }
    Ok(survey)
}

/// The root and all below it, parents first. Scans until two scans agree, at most ten times: a busy tree is caught by [`recheck`].
pub fn enumerate(root: Pid) -> Result<Vec<Pid>> {
    let mut before = scan(root)?;
    for _ in 1..10 {
        let now = scan(root)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before)
}

fn scan(root: Pid) -> Result<Vec<Pid>> {
    let (mut found, mut seen, mut waiting) = (Vec::new(), BTreeSet::from([root]), vec![root]);
    while let Some(pid) = waiting.pop() {
        let children = match tree::children(pid) {
            Ok(children) => children,
            Err(Error::Gone(_)) if pid != root => continue,
            Err(error) => return Err(error),
        };
        found.push(pid);
        waiting.extend(children.into_iter().rev().filter(|child| seen.insert(*child)));
    }
    Ok(found)
}

/// As many processes are worth a second thread.
const MANY: usize = 8;

fn collect(root: Pid, pids: Vec<Pid>, known: Known<'_>) -> Result<Survey> {
    if pids.len() < MANY {
        return Ok(Survey { root, tasks: collect_part(root, &pids, known)? });
    }
    let (first, second) = pids.split_at(pids.len() / 2);
    let tasks = std::thread::scope(|scope| {
        let other = scope.spawn(|| collect_part(root, second, known));
        let mut tasks = collect_part(root, first, known)?;
        tasks.extend(other.join().map_err(|_| Error::failed("a reading thread failed"))??);
        Ok::<_, Error>(tasks)
    })?;
    Ok(Survey { root, tasks })
}

fn collect_part(root: Pid, pids: &[Pid], known: Known<'_>) -> Result<Vec<TaskFacts>> {
    let mut tasks = Vec::new();
    for pid in pids.iter().copied() {
        match facts(pid, known) {
            Ok(task) => tasks.push(task),
            Err(Error::Gone(_)) if pid != root => {}
            Err(error) => return Err(refusals::explain_denial(pid, error)),
        }
    }
    Ok(tasks)
}

fn facts(pid: Pid, known: Known<'_>) -> Result<TaskFacts> {
    let (stat, threads) = (Stat::read(pid)?, tree::threads(pid)?);
    if !stat.state.is_dead() {
        let status = Status::read(pid)?;
        return match alive(pid, pid, known) {
            Ok(alive) => {
                Ok(TaskFacts { pid, stat, status, body: pid.into(), threads, life: Life::Alive(Box::new(alive)) })
            }
            // It may have died since its stat was read.
            Err(error) => match Stat::read(pid)? {
                now if now.state.is_dead() => Ok(facts_of_dead(now, status, threads)),
                _ => Err(error),
            },
        };
    }
    let Some(body) = tree::first_living(pid, &threads) else {
        return Ok(facts_of_dead(stat, Status::read(pid)?, threads));
    };
    // The directory of any thread shows its whole process.
    let seen = Pid(body.0);
    let stat = stat.of_leader(Stat::read(seen)?);
    let life = Life::Alive(Box::new(alive(pid, seen, known)?));
    Ok(TaskFacts { pid, stat, status: Status::read(seen)?, body, threads, life })
}

fn facts_of_dead(stat: Stat, status: Status, threads: Vec<Tid>) -> TaskFacts {
    let life = Life::Zombie { exit_code: stat.exit_code };
    TaskFacts { pid: stat.pid, body: stat.pid.into(), stat, status, threads, life }
}

/// `seen` is the thread whose directory of /proc shows the process.
fn alive(pid: Pid, seen: Pid, known: Known<'_>) -> Result<Alive> {
    let before = match known {
        Known::Nothing(_) => None,
        Known::Survey(survey) => survey.task(pid).and_then(TaskFacts::alive),
    };
    let pid = seen;
    let maps = match known {
        Known::Nothing(MapDetail::Flags) => maps::read_with_flags(pid)?,
        Known::Nothing(MapDetail::Plain) | Known::Survey(_) => maps::read(pid)?,
    };
    Ok(Alive {
        maps,
        descriptors: descriptors(pid, before.map_or(&[], |before| &before.descriptors))?,
        namespaces: Namespaces::read(pid)?,
        auxv: Auxv::read(pid)?,
        exe: procfs::readlink("reading the program's path", pid, "exe")?,
        cwd: procfs::readlink("reading the working directory", pid, "cwd")?,
        root: procfs::readlink("reading the root directory", pid, "root")?,
        personality: attributes::personality(pid)?,
        oom_score_adj: attributes::oom_score_adj(pid)?,
        coredump_filter: attributes::coredump_filter(pid)?,
        timers: attributes::timers(pid)?,
        cgroups: attributes::cgroups(pid)?,
    })
}

fn descriptors(pid: Pid, before: &[Descriptor]) -> Result<Vec<Descriptor>> {
    let mut descriptors = Vec::new();
    for fd in fdinfo::list(pid)? {
        descriptors.extend(match before.iter().find(|descriptor| descriptor.fd == fd) {
            Some(before) => Descriptor::read_again(pid, before)?,
            None => Descriptor::read(pid, fd)?,
        });
    }
    Ok(descriptors)
}

/// One way in which a tree is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Appeared(Pid),
    Vanished(Pid),
    /// It has become a zombie.
    Ended(Pid),
    /// Its number belongs to another process now, or it runs another program.
    Replaced(Pid),
    Threads(Pid),
    Descriptors(Pid),
    Maps(Pid),
    /// Parent, session, process group or controlling terminal.
    Kinship(Pid),
}

/// The outcome of [`recheck`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recheck {
    /// The facts of now, with the mapping flags of before for the mappings that are the same.
    pub fresh: Survey,
    /// Empty when the tree is what it was. Otherwise `fresh` needs [`refuse_unsupported`] and its companions again.
    pub changes: Vec<Change>,
}

/// Reads the tree again, to be called when everything in it is stopped and nothing is infected yet. File positions and states are not changes.
///
/// The flags of the mappings are not read again; new mappings have none.
pub fn recheck(before: &Survey) -> Result<Recheck> {
    // One scan is enough: what is stopped makes no children.
    let mut fresh = collect(before.root, scan(before.root)?, Known::Survey(before))?;
    let mut changes = Vec::new();
    for task in &mut fresh.tasks {
        match before.task(task.pid) {
            Some(known) => changes.extend(compare(known, task)),
            None => changes.push(Change::Appeared(task.pid)),
        }
    }
    let vanished = before.tasks.iter().filter(|task| !fresh.contains(task.pid));
    changes.extend(vanished.map(|task| Change::Vanished(task.pid)));
    Ok(Recheck { fresh, changes })
}

fn compare(before: &TaskFacts, now: &mut TaskFacts) -> Vec<Change> {
    let pid = now.pid;
    let mut changes = Vec::new();
    let kinship = |stat: &Stat| (stat.ppid, stat.pgrp, stat.session, stat.tty);
    if before.stat.start_time != now.stat.start_time {
        return vec![Change::Replaced(pid)];
    }
    if kinship(&before.stat) != kinship(&now.stat) {
        changes.push(Change::Kinship(pid));
    }
    if (&before.threads, before.body) != (&now.threads, now.body) {
        changes.push(Change::Threads(pid));
    }
    let (before, now) = match (&before.life, &mut now.life) {
        (Life::Alive(before), Life::Alive(now)) => (before, now),
        (Life::Alive(_), Life::Zombie { .. }) => return [changes, vec![Change::Ended(pid)]].concat(),
        _ => return changes,
    };
    if before.auxv != now.auxv || before.exe != now.exe {
        changes.push(Change::Replaced(pid));
    }
    if !before.descriptors.iter().map(lasting).eq(now.descriptors.iter().map(lasting)) {
        changes.push(Change::Descriptors(pid));
    }
    if !carry_flags(&before.maps, &mut now.maps) {
        changes.push(Change::Maps(pid));
    }
    changes
}

/// A descriptor without what an ordinary read or write changes.
fn lasting(descriptor: &Descriptor) -> Descriptor {
    let mut descriptor = descriptor.clone();
    descriptor.info.pos = 0;
    descriptor.stat.size = 0;
    descriptor.info.extra.clear();
    descriptor
}

/// Copies the flags of mappings that are the same; yields whether all are.
fn carry_flags(before: &[Mapping], now: &mut [Mapping]) -> bool {
    let mut old = before.iter().peekable();
    let mut same = before.len() == now.len();
    for mapping in now {
        while old.next_if(|known| known.start < mapping.start).is_some() {}
        match old.peek().filter(|known| known.is_same_range(mapping)) {
            Some(known) => (mapping.flags, mapping.protection_key) = (known.flags.clone(), known.protection_key),
            None => same = false,
        }
    }
    same
}

#[cfg(test)]
mod tests;
