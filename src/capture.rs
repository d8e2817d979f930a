//! Reading a live tree into images: freeze, infect, collect. What a dump and an inspection have in common.
//!
//! The pages and the queues are left to the dump: they are read last.

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
use crate::files::transfer::{self, Caller};
use crate::files::{locks, outside};
use crate::ids::{Pid, Tid};
use crate::image::Images;
use crate::inject::batch::{Ask, Batch};
use crate::inject::rest::Transfer;
use crate::inject::{Arrival, Entry, Infected, Placement, ThreadState, Visit, restart, rseq};
use crate::mem::policy::{self, Policy};
use crate::mem::{self, layout};
use crate::procfs::{Mapping, Stat};
use crate::sys::ptrace;
use crate::task::deadline::Waits;
use crate::task::directories::Owner;
use crate::task::freeze::{Frozen, FrozenProcess, freeze};
use crate::task::record::{self, Inside, Outside};
use crate::task::survey::{
    IN_VFORK, Survey, SurveyMode, recheck, refuse_outsiders, refuse_threads, refuse_unsupported, survey,
};
use crate::task::thread::{self, ThreadFacts};
use crate::task::{cpu, directories, identity, seccomp, sharing, signals, timers};
use crate::trace::{StopReason, Stopped};
use crate::tty::record::{self as tty_records, Terminals};
use crate::wire;

/// A process that is stopped, known, and has the parasite in it.
#[derive(Debug)]
pub struct Captured {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub tracee: Infected,
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
            Error::Refused(refusal) if refusal.kind.starts_with(IN_VFORK) => MOVING,
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

/// A parasite without a controller notices that after three seconds at most.
const LEAVING: Duration = Duration::from_secs(10);
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
}

/// A process in the middle of the capture.
struct Known {
    pid: Pid,
    pidfd: OwnedFd,
    leader: Stopped,
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
    let ofds = ofd::group(tables.iter().flat_map(|table| table.descriptors.iter().map(|one| (table.pid, one))))?;
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
    sharing::record(&mut images, &known.iter().map(|known| known.pid).collect::<Vec<Pid>>())?;
    let removed = Removed::new((mode == SurveyMode::Dump).then_some(allowed.removed_bytes));
    let mut ids = FileIds::after(&ofds, removed);
    let tree = known.iter().map(|known| known.pid).chain(zombies.iter().copied()).collect();
    record_files(&mut images, &mut ids, &tables, &ofds, &tree, &terminals, &sockets)?;
    flight.record(&mut images, &sockets, &ofds)?;
    drop(tables);
    drop(flight);
    tracing::debug!("files recorded");
    let processes = infect_and_ask(known, &mut images, &mut ids, &terminals, mode)?;
    for pid in zombies {
        record::record_zombie(&mut images, &Stat::read(pid)?);
    }
    sort_parents_first(&mut images, survey.root);
    Ok(Tree { processes, images, memfds: ids.memfds.sources })
}

impl Known {
    fn mapped(&self) -> Mapped<'_> {
        (self.pid, &self.comm, &self.outside.mappings)
    }

    fn table(&self) -> Table<'_> {
        Table { pid: self.pid, comm: &self.comm, pidfd: self.pidfd.as_fd(), descriptors: &self.descriptors }
    }
}

/// Adds what only a tracer is told to what the survey says of a process.
fn look(process: FrozenProcess, survey: &Survey, waits: &Waits) -> Result<Known> {
    let FrozenProcess { pid, pidfd, leader, threads } = process;
    let stop_signal = match leader.reason() {
        StopReason::GroupStop(signal) => Some(signal),
        _ => None,
    };
    let facts = survey.task(pid).ok_or(Error::Gone(pid))?;
    let alive = facts.alive().ok_or(Error::Gone(pid))?;
    if alive.maps.iter().any(is_parasite) {
        return Err(Error::Leaving(pid));
    }
    let mem = crate::inject::open_mem(pid)?;
    let outside = Outside::read(facts, alive, stop_signal, ThreadFacts::read(pid, &leader, &mem, waits)?)?;
    let with_facts = |thread: Stopped| {
        let facts = ThreadFacts::read(pid, &thread, &mem, waits)?;
        Ok((thread, facts))
    };
    let threads = threads.into_iter().map(with_facts).collect::<Result<_>>()?;
    let descriptors = alive.descriptors.clone();
    let comm = outside.stat.comm_text();
    Ok(Known { pid, pidfd, leader, threads, outside, descriptors, comm })
}

fn refuse_directories(known: &[Known]) -> Result<()> {
    let leaders: Vec<Pid> = known.iter().map(|known| known.pid).collect();
    let mut owners = Vec::new();
    for (known, facts) in known.iter().flat_map(|known| known.threads.iter().map(move |(_, facts)| (known, facts))) {
        let owner = |directories| Owner { pid: known.pid, tid: facts.tid, comm: &known.comm, directories };
        owners.extend(facts.directories.as_ref().map(owner));
    }
    directories::refuse_unsupported(&owners, &leaders)
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

/// A process on the way in, and what its leader is asked there.
struct Entering {
    pid: Pid,
    pidfd: OwnedFd,
    guests: Vec<(Stopped, ThreadFacts)>,
    descriptors: Vec<Descriptor>,
    outside: Outside,
    signals: signals::Asked,
    identity: identity::Asked,
    policy: policy::Asked,
    thread: thread::Asked,
    timers: timers::Asked,
    ttys: Vec<tty_records::Asked>,
}

/// Brings the parasite into every process, asks each of them on the way in, then their other threads, and records the answers.
fn infect_and_ask(
    known: Vec<Known>,
    images: &mut Images,
    ids: &mut FileIds,
    terminals: &Terminals,
    mode: SurveyMode,
) -> Result<Vec<Captured>> {
    let (mut arrivals, mut entering) = (Vec::new(), Vec::new());
    for known in known {
        let (arrival, one) = arrive(known, terminals)?;
        arrivals.push(arrival);
        entering.push(one);
    }
    let entered = Infected::infect_all(arrivals)?;
    tracing::debug!("infected and asked");
    let (mut records, layout) = (tty_records::Records::new(), cpu::layout());
    let mut processes = Vec::new();
    for (one, (tracee, answers)) in entering.into_iter().zip(entered) {
        let Entering { pid, pidfd, guests, descriptors, outside, signals, identity, policy, thread, timers, ttys } =
            one;
        let mappings = outside.mappings.clone();
        let mut captured = Captured { pid, pidfd, tracee, threads: Vec::new(), mappings };
        let comm = outside.stat.comm_text();
        let mut signals = signals.answers(&answers);
        signals.timers.posix = timers.answers(&answers)?;
        let locks_later = policy::locks_later(pid, &outside.status, captured.tracee.region().start)?;
        let inside = Inside {
            signals,
            identity: identity.answers(&answers)?,
            policy: Policy { locks_later, ..policy.answers(&answers) },
            told: thread.answers(&answers, &outside.thread, pid, &comm)?,
        };
        for tty in &ttys {
            tty.answers(&answers, &mut records)?;
        }
        let state = recordable(&captured, captured.tracee.original(), &comm, mode)?;
        record::record(images, ids, &outside, &state, inside, &layout)?;
        for (stopped, facts) in guests {
            let (stopped, state, told) = visit(&mut captured, stopped, &facts, &outside, &descriptors)?;
            captured.threads.push(stopped);
            let state = recordable(&captured, &state, &comm, mode)?;
            record::record_thread(images, captured.pid, &facts, &state, &told, &layout)?;
        }
        processes.push(captured);
    }
    tty_records::record(images, ids, terminals, records);
    Ok(processes)
}

fn arrive(known: Known, terminals: &Terminals) -> Result<(Arrival, Entering)> {
    let Known { pid, pidfd, leader, threads: guests, outside, descriptors, .. } = known;
    let mut batch = Batch::new();
    let signals = signals::ask(&mut batch);
    let identity = identity::ask(&mut batch);
    let policy = policy::ask(&mut batch);
    let thread = thread::ask(&mut batch, &outside.thread);
    let timers = timers::ask(&mut batch, &outside.timers);
    let ttys = terminals.ask(pid, &mut batch);
    let arrival = arrival(&pidfd, leader, &guests, &outside, &descriptors, batch)?;
    Ok((
        arrival,
        Entering { pid, pidfd, guests, descriptors, outside, signals, identity, policy, thread, timers, ttys },
    ))
}

/// Asks a thread that is not the leader; yields it about to go on.
fn visit(
    captured: &mut Captured,
    stopped: Stopped,
    facts: &ThreadFacts,
    outside: &Outside,
    descriptors: &[Descriptor],
) -> Result<(Stopped, ThreadState, thread::Told)> {
    let pending = facts.pending(stopped.sigmask()?, &outside.process_pending);
    let Captured { pid, pidfd, tracee, .. } = captured;
    let left =
        |transfer: &Transfer| transfer::left(&Caller { pidfd, descriptors, filters: &outside.filters }, transfer);
    let mut guest = tracee.visit(stopped, &Visit { pending, left: &left })?;
    let mut batch = Batch::new();
    let asked = thread::ask(&mut batch, facts);
    let told = asked.answers(&guest.ask(batch)?, facts, *pid, &outside.stat.comm_text())?;
    let state = guest.original().clone();
    Ok((guest.leave()?, state, told))
}

/// The state that the images keep: a call that the kernel has restarted before gets its own number back.
fn recordable(captured: &Captured, state: &ThreadState, comm: &str, mode: SurveyMode) -> Result<ThreadState> {
    let mut state = state.clone();
    if !restart::is_restarted(&state.regs) {
        return Ok(state);
    }
    match restart::number(&state.regs, captured.tracee.mem()) {
        Some(number) => state.regs.orig_rax = number as u64,
        None if mode == SurveyMode::Inspect => {}
        None => {
            return Err(Error::Refused(Refusal {
                pid: captured.pid,
                comm: comm.to_owned(),
                fd: None,
                kind: "it sleeps in a system call that was interrupted before, and its code does not say which".into(),
                remedy: "wait until it wakes up, then dump again".into(),
            }));
        }
    }
    Ok(state)
}

fn arrival(
    pidfd: &OwnedFd,
    leader: Stopped,
    guests: &[(Stopped, ThreadFacts)],
    outside: &Outside,
    descriptors: &[Descriptor],
    first: Batch,
) -> Result<Arrival> {
    let pid = outside.stat.pid;
    let mem = crate::inject::open_mem(pid)?;
    for (thread, facts) in guests.iter().map(|(thread, facts)| (thread, facts)).chain([(&leader, &outside.thread)]) {
        if let Some(config) = facts.rseq.place() {
            rseq::abort_section(thread, &mem, pid, &config)?;
        }
    }
    if !outside.filters.is_empty() {
        seccomp::refuse_harmful(pid, &outside.stat.comm_text(), &outside.filters, &first)?;
        leader.set_options(ptrace::OPTIONS | ptrace::OPTION_SUSPEND_SECCOMP)?;
    }
    let base = layout::hole(layout::ranges(&outside.mappings), wire::REGION_SIZE)
        .ok_or_else(|| Error::failed(format!("process {pid} has no room for the parasite in its address space")))?;
    let pending = outside.thread.pending(leader.sigmask()?, &outside.process_pending);
    let places = mem::places(&outside.mappings);
    let left =
        |transfer: &Transfer| transfer::left(&Caller { pidfd, descriptors, filters: &outside.filters }, transfer);
    let others = guests.iter().map(|(thread, _)| Ok((thread.tid(), thread.regs()?))).collect::<Result<_>>()?;
    let entry = Entry { pid, pidfd, places, base, placement: Placement::Free, pending, left: &left, others };
    Arrival::new(leader, &entry, first)
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
    /// The process was killed: nothing is put back, and its threads are reaped, the leader last, which only ends when all others have.
    pub fn reap_killed(self) {
        let tids: Vec<Tid> = self.threads.iter().map(Stopped::tid).collect();
        self.tracee.forget_killed();
        self.threads.into_iter().for_each(Stopped::forget_killed);
        for tid in tids.into_iter().chain([self.pid.into()]) {
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
