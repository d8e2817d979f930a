//! Reading a live tree into images: freeze, infect, collect. What a dump and an inspection have in common.
//!
//! The pages and the queues are left to the dump: they are read last.

mod inside;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::{Error, Refusal, Result};
use crate::files::dump as file_records;
use crate::files::dump::{FileIds, Table};
use crate::files::kind::Descriptor;
use crate::files::ofd::{self, OfdTable};
use crate::files::outside::{LetGoOf, Mapped};
use crate::files::removed::Removed;
use crate::files::socket::Sockets;
use crate::files::socket::flight::Flight;
use crate::files::{locks, outside};
use crate::ids::{Pid, Tid};
use crate::image::Images;
use crate::inject::Infected;
use crate::mem;
use crate::procfs::{Mapping, Stat, Status};
use crate::sys::ptrace;
use crate::task::deadline::Waits;
use crate::task::directories::Owner;
use crate::task::freeze::{Frozen, FrozenProcess, freeze};
use crate::task::record::{self, Outside};
use crate::task::survey::{Survey, SurveyMode, recheck, refuse_outsiders, refuse_threads, refuse_unsupported, survey};
use crate::task::thread::ThreadFacts;
use crate::task::{directories, semaphores, sharing};
use crate::trace::{StopReason, Stopped};
use crate::tty::reader;
use crate::tty::record::{self as tty_records, Terminals};

/// A process that is stopped, known, and has the parasite in it.
#[derive(Debug)]
pub struct Captured {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub tracee: Infected,
    /// The thread that has the parasite in it: the leader, or another where that has ended.
    pub host: Tid,
    /// The other threads, about to go on with what they were doing.
    threads: Vec<Stopped>,
    /// As they were before the parasite came.
    pub mappings: Vec<Mapping>,
}

/// What the user allows a dump to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// What becomes of connections that lead out of the tree.
    pub let_go: LetGoOf,
    /// How many bytes of content each removed file may have.
    pub removed_bytes: u64,
}

impl Default for Allowed {
    fn default() -> Allowed {
        Allowed { let_go: LetGoOf::default(), removed_bytes: 1 << 20 }
    }
}

/// Surveys a tree, freezes it, and captures it. `frozen_at` is called at the moment of the freeze.
///
/// Where the parasite of a controller that died is still in a process, it is waited for. A tree at work changes between two looks at it: what
/// the looks disagree on (a process that has ended) is looked at again, and a refusal counts when it is found twice. A parent in vfork is given
/// time, since its child is about to start its program.
pub fn take(root: Pid, mode: SurveyMode, allowed: &Allowed, mut frozen_at: impl FnMut()) -> Result<Tree> {
    let start = Instant::now();
    let mut refused = None;
    loop {
        let error = match take_once(root, mode, allowed, &mut frozen_at) {
            Err(error) => error,
            done => return done,
        };
        let patience = match &error {
            Error::Leaving(_) => LEAVING,
            Error::Gone(pid) if *pid != root => MOVING,
            Error::InVfork(_) => MOVING,
            Error::Refused(_) => {
                let text = Some(error.to_string());
                let again = refused == text;
                refused = text;
                if again { Duration::ZERO } else { MOVING }
            }
            _ => Duration::ZERO,
        };
        if start.elapsed() >= patience {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A parasite without a controller notices that after three seconds; after more where it shares the processor with many others.
const LEAVING: Duration = Duration::from_secs(30);
/// How long a tree may go on changing under the looks at it.
const MOVING: Duration = Duration::from_secs(3);

fn take_once(root: Pid, mode: SurveyMode, allowed: &Allowed, frozen_at: &mut impl FnMut()) -> Result<Tree> {
    let before = survey(root, mode)?;
    let waits = Waits::of(&before);
    frozen_at();
    let frozen = freeze(root, &waits)?;
    tracing::debug!(processes = frozen.processes.len(), "frozen");
    // What changed between the survey and the freeze has not been checked yet.
    let now = recheck(&before)?;
    tracing::debug!(changes = now.changes.len(), "rechecked");
    if mode == SurveyMode::Dump && !now.changes.is_empty() {
        refuse_unsupported(&now.fresh)?;
        refuse_threads(&now.fresh)?;
        refuse_outsiders(&now.fresh)?;
    }
    capture(frozen, &now.fresh, &waits, mode, allowed)
}

/// A captured tree: its processes, parents first, and what is known of it.
#[derive(Debug)]
pub struct Tree {
    pub processes: Vec<Captured>,
    pub images: Images,
    /// Memory files that are still to be read, by their shmid.
    pub memfds: Vec<(u32, File)>,
    /// Who is to drain each terminal; for a dump alone.
    pub readers: Vec<reader::Job>,
}

/// A process in the middle of the capture.
struct Known {
    pid: Pid,
    pidfd: OwnedFd,
    /// Its memory.
    mem: File,
    host: Stopped,
    threads: Vec<(Stopped, ThreadFacts)>,
    outside: Outside,
    descriptors: Vec<Descriptor>,
    comm: String,
}

/// Captures a frozen tree, of which `survey` was read since the freeze. On an error every process is released and runs on.
pub fn capture(frozen: Frozen, survey: &Survey, waits: &Waits, mode: SurveyMode, allowed: &Allowed) -> Result<Tree> {
    let zombies = frozen.zombies.clone();
    let look = |process| look(process, survey, waits);
    let known = frozen.processes.into_iter().map(look).collect::<Result<Vec<Known>>>()?;
    let mut tables: Vec<Table<'_>> = known.iter().map(Known::table).collect();
    let flight = Flight::find(&tables, mode)?;
    tables.push(flight.table());
    let ofds = ofd::group(
        tables.iter().flat_map(|table| table.descriptors.iter().map(|one| (table.pid, table.seen.into(), one))),
    )?;
    let sockets = Sockets::find(&tables, &ofds, mode, &allowed.let_go)?;
    let stats: Vec<&Stat> = known.iter().map(|known| &known.outside.stat).collect();
    let terminals = Terminals::find(&tables, &ofds, &stats)?;
    let mut images = Images::default();
    if mode == SurveyMode::Dump {
        let mappings: Vec<Mapped<'_>> = known.iter().map(Known::mapped).collect();
        let lost = outside::refuse_shared(&tables, &mappings, &allowed.let_go.pipes)?;
        images.own.get_or_insert_default().losses.extend(lost);
        locks::refuse_waiters(&tables)?;
        locks::refuse_mapped_leases(&tables, &mappings)?;
        flight.refuse_hidden(&tables, &sockets)?;
        known.iter().try_for_each(refuse_without_vdso)?;
        refuse_directories(&known)?;
    }
    sharing::record(&mut images, &known.iter().map(|known| (known.pid, known.host.tid())).collect::<Vec<_>>())?;
    let removed = Removed::new((mode == SurveyMode::Dump).then_some(allowed.removed_bytes));
    let mut ids = FileIds::after(&ofds, removed);
    let tree = known.iter().map(|known| known.pid).chain(zombies.iter().copied()).collect();
    record_files(&mut images, &mut ids, &tables, &ofds, &tree, &terminals, &sockets)?;
    flight.record(&mut images, &sockets, &ofds)?;
    drop(tables);
    drop(flight);
    tracing::debug!("files recorded");
    let processes = inside::infect_and_ask(known, &mut images, &mut ids, &terminals, mode)?;
    for pid in zombies {
        record::record_zombie(&mut images, &Stat::read(pid)?, &Status::read(pid)?);
    }
    semaphores::record(&mut images, &processes.iter().map(|process| (process.pid, process.host)).collect::<Vec<_>>())?;
    sort_parents_first(&mut images, survey.root);
    // A shell whose job has just ended is in the background for a moment, which another look settles.
    let readers = if mode == SurveyMode::Dump { reader::jobs(&images)? } else { Vec::new() };
    Ok(Tree { processes, images, memfds: ids.memfds.sources, readers })
}

impl Known {
    fn mapped(&self) -> Mapped<'_> {
        (self.pid, &self.comm, &self.outside.mappings)
    }

    fn table(&self) -> Table<'_> {
        let (seen, pidfd) = (Pid(self.host.tid().0), self.pidfd.as_fd());
        Table { pid: self.pid, seen, comm: &self.comm, pidfd, descriptors: &self.descriptors }
    }
}

/// Adds what only a tracer is told to what the survey says of a process.
fn look(process: FrozenProcess, survey: &Survey, waits: &Waits) -> Result<Known> {
    let FrozenProcess { pid, pidfd, host, threads } = process;
    let stop_signal = match host.reason() {
        StopReason::GroupStop(signal) => Some(signal),
        _ => None,
    };
    let facts = survey.task(pid).ok_or(Error::Gone(pid))?;
    let alive = facts.alive().ok_or(Error::Gone(pid))?;
    if alive.maps.iter().any(is_parasite) {
        return Err(Error::Leaving(pid));
    }
    let mem = crate::inject::open_mem(host.tid())?;
    let outside = Outside::read(facts, alive, stop_signal, ThreadFacts::read(pid, host.tid(), &host, &mem, waits)?)?;
    let with_facts = |thread: Stopped| {
        let facts = ThreadFacts::read(pid, host.tid(), &thread, &mem, waits)?;
        Ok((thread, facts))
    };
    let threads = threads.into_iter().map(with_facts).collect::<Result<_>>()?;
    let descriptors = alive.descriptors.clone();
    let comm = outside.stat.comm_text();
    Ok(Known { pid, pidfd, mem, host, threads, outside, descriptors, comm })
}

fn refuse_directories(known: &[Known]) -> Result<()> {
    let hosts: Vec<Tid> = known.iter().map(|known| known.host.tid()).collect();
    let mut owners = Vec::new();
    for (known, facts) in known.iter().flat_map(|known| known.threads.iter().map(move |(_, facts)| (known, facts))) {
        let owner = |directories| Owner { pid: known.pid, tid: facts.tid, comm: &known.comm, directories };
        owners.extend(facts.directories.as_ref().map(owner));
    }
    directories::refuse_unsupported(&owners, &hosts)
}

/// A restore works from the vDSO's tail and cannot take the vDSO away in the end.
fn refuse_without_vdso(known: &Known) -> Result<()> {
    if mem::has_vdso(&known.outside.mappings) {
        return Ok(());
    }
    Err(Error::Refused(Refusal {
        pid: known.pid,
        comm: known.comm.clone(),
        fd: None,
        kind: "it has unmapped its vDSO".into(),
        remedy: "end the program that did so, then dump again".into(),
    }))
}

fn is_parasite(mapping: &Mapping) -> bool {
    use std::os::unix::ffi::OsStrExt;
    mapping.name.as_bytes().starts_with(b"/memfd:ptyagent")
}

fn record_files(
    images: &mut Images,
    ids: &mut FileIds,
    tables: &[Table<'_>],
    ofds: &OfdTable,
    tree: &BTreeSet<Pid>,
    terminals: &Terminals,
    sockets: &Sockets,
) -> Result<()> {
    let tty_ids: BTreeMap<_, _> =
        terminals.of_ofd.iter().map(|(ofd, (index, peer))| (*ofd, tty_records::info_id(*index, *peer))).collect();
    file_records::record(images, ids, tables, ofds, tree, &tty_ids, sockets)?;
    images.locks = locks::record(tables, ofds)?;
    Ok(())
}

/// Orders the tree so that each process comes behind its parent, siblings by their number.
fn sort_parents_first(images: &mut Images, root: Pid) {
    let mut rest = std::mem::take(&mut images.pstree);
    rest.sort_by_key(|entry| entry.pid);
    let mut next = vec![root.0 as u32];
    while let Some(pid) = next.pop() {
        if let Some(at) = rest.iter().position(|entry| entry.pid == pid) {
            images.pstree.push(rest.remove(at));
        }
        next.extend(rest.iter().rev().filter(|entry| entry.ppid == pid).map(|entry| entry.pid));
    }
    let own = images.own.get_or_insert_default();
    own.root_pid = Some(root.0 as u32);
    own.tasks.sort_by_key(|task| task.pid);
    own.threads.sort_by_key(|thread| thread.tid);
    if let Some(entry) = images.pstree.first_mut() {
        // The root's parent is not part of the image.
        entry.ppid = 0;
    }
}

/// Gives the processes back everything and lets them run on, each with its threads. They leave side by side.
pub fn release(processes: Vec<Captured>) -> Result<()> {
    let (mut tracees, mut threads) = (Vec::new(), Vec::new());
    for process in processes {
        tracees.push(process.tracee);
        threads.push(process.threads);
    }
    for (stopped, threads) in Infected::cure_all(tracees)?.into_iter().zip(threads) {
        threads.into_iter().try_for_each(Stopped::release)?;
        stopped.release()?;
    }
    Ok(())
}

impl Captured {
    /// The thread whose directory of /proc shows the process.
    pub fn seen(&self) -> Pid {
        Pid(self.host.0)
    }

    /// The process was killed: nothing is put back, and its threads are reaped, the leader last, which only ends when all others have.
    pub fn reap_killed(self) {
        let tids: Vec<Tid> = self.threads.iter().map(Stopped::tid).collect();
        self.tracee.forget_killed();
        self.threads.into_iter().for_each(Stopped::forget_killed);
        for tid in tids.into_iter().chain([self.host, self.pid.into()]) {
            let _ = ptrace::wait(tid, ptrace::WaitMode::Block);
        }
    }
}

impl Tree {
    /// Lets the whole tree run on.
    pub fn release(self) -> Result<()> {
        release(self.processes)
    }
}
