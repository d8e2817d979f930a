//! What the processes are asked inside: the parasite goes into each, its host answers on the way in, the other threads in visits.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::{Captured, Known};
use crate::error::{Error, Refusal, Result};
use crate::files::dump::FileIds;
use crate::files::kind::Descriptor;
use crate::files::transfer::{self, Caller};
use crate::ids::{Pid, Tid};
use crate::image::Images;
use crate::inject::batch::{Ask, Batch};
use crate::inject::rest::Transfer;
use crate::inject::{Arrival, Entry, Infected, Placement, ThreadState, Visit, restart, rseq};
use crate::mem::policy::{self, Policy};
use crate::mem::{self, layout};
use crate::sys::ptrace;
use crate::task::record::{self, Inside, Outside};
use crate::task::survey::SurveyMode;
use crate::task::thread::{self, ThreadFacts};
use crate::task::{cpu, identity, seccomp, signals, timers};
use crate::trace::Stopped;
use crate::tty::record::{self as tty_records, Terminals};
use crate::wire;

/// A process on the way in, and what its host is asked there.
struct Entering {
    pid: Pid,
    pidfd: OwnedFd,
    host: Tid,
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
pub(super) fn infect_and_ask(
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
        let Entering {
            pid,
            pidfd,
            host,
            guests,
            descriptors,
            outside,
            signals,
            identity,
            policy,
            thread,
            timers,
            ttys,
        } = one;
        let mappings = outside.mappings.clone();
        let mut captured = Captured { pid, pidfd, tracee, host, threads: Vec::new(), mappings };
        let comm = outside.stat.comm_text();
        let mut signals = signals.answers(&answers);
        signals.timers.posix = timers.answers(&answers)?;
        let locks_later = policy::locks_later(outside.seen(), &outside.status, captured.tracee.region().start)?;
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
    let Known { pid, pidfd, mem, host, threads: guests, outside, descriptors, .. } = known;
    let mut batch = Batch::new();
    let signals = signals::ask(&mut batch);
    let identity = identity::ask(&mut batch);
    let policy = policy::ask(&mut batch);
    let thread = thread::ask(&mut batch, &outside.thread);
    let threads = guests.iter().map(|(thread, _)| thread.tid()).chain([host.tid()]).collect();
    let timers = timers::ask(&mut batch, &outside.timers, threads);
    let ttys = terminals.ask(pid, &mut batch);
    let tid = host.tid();
    let arrival = arrival((&pidfd, &mem), host, &guests, &outside, &descriptors, batch)?;
    Ok((
        arrival,
        Entering {
            pid,
            pidfd,
            host: tid,
            guests,
            descriptors,
            outside,
            signals,
            identity,
            policy,
            thread,
            timers,
            ttys,
        },
    ))
}

/// Asks a thread that is not the host; yields it about to go on.
fn visit(
    captured: &mut Captured,
    stopped: Stopped,
    facts: &ThreadFacts,
    outside: &Outside,
    descriptors: &[Descriptor],
) -> Result<(Stopped, ThreadState, thread::Told)> {
    let pending = facts.pending(stopped.sigmask()?, &outside.process_pending);
    let Captured { pid, pidfd, tracee, .. } = captured;
    let left = |transfer: &Transfer| {
        transfer::left(&Caller { pidfd, descriptors, filtered: !facts.filters.is_empty() }, transfer)
    };
    suspend_filters(&stopped, facts)?;
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
    (pidfd, mem): (&OwnedFd, &File),
    host: Stopped,
    guests: &[(Stopped, ThreadFacts)],
    outside: &Outside,
    descriptors: &[Descriptor],
    first: Batch,
) -> Result<Arrival> {
    let pid = outside.stat.pid;
    for (thread, facts) in guests.iter().map(|(thread, facts)| (thread, facts)).chain([(&host, &outside.thread)]) {
        if let Some(config) = facts.rseq.place() {
            rseq::abort_section(thread, mem, pid, &config)?;
        }
    }
    let comm = outside.stat.comm_text();
    seccomp::refuse_harmful(pid, &comm, &outside.thread.filters, &first)?;
    suspend_filters(&host, &outside.thread)?;
    for (_, facts) in guests {
        let mut batch = Batch::new();
        thread::ask(&mut batch, facts);
        seccomp::refuse_harmful_calls(pid, &comm, &facts.filters, batch.plain_calls())?;
    }
    let base = layout::hole(layout::ranges(&outside.mappings), wire::REGION_SIZE)
        .ok_or_else(|| Error::failed(format!("process {pid} has no room for the parasite in its address space")))?;
    let pending = outside.thread.pending(host.sigmask()?, &outside.process_pending);
    let places = mem::places(&outside.mappings);
    let left = |transfer: &Transfer| {
        transfer::left(&Caller { pidfd, descriptors, filtered: !outside.thread.filters.is_empty() }, transfer)
    };
    let others = guests.iter().map(|(thread, _)| Ok((thread.tid(), thread.regs()?))).collect::<Result<_>>()?;
    let entry = Entry { pid, pidfd, places, base, placement: Placement::Free, pending, left: &left, others };
    Arrival::new(host, &entry, first)
}

/// While the thread is in our hands.
fn suspend_filters(thread: &Stopped, facts: &ThreadFacts) -> Result<()> {
    if facts.filters.is_empty() {
        return Ok(());
    }
    thread.set_options(ptrace::OPTIONS | ptrace::OPTION_SUSPEND_SECCOMP)
}
