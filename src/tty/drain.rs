//! The queues of a session's terminals: who drains each, how they are recorded, how they are put back.
//!
//! A terminal is drained by the parasite of a process that can read it, see `reader`. The bytes go into memory of that process, where its parasite
//! keeps them: should the controller die, the parasite puts them back. Drained last, put back first.
//!
//! Refused: input of a terminal with an outside master that could not be put back (TIOCSTI is not allowed), unless it is certain that there
//! is none; a terminal that nobody can read.

use crate::capture::Captured;
use crate::error::{Context, Errno, Error, Refusal, Result, Subject};
use crate::ids::{Pid, PtyIndex};
use crate::image::{Images, pb};
use crate::inject::batch::{Arg, Ask, Batch};
use crate::parasite_side::queue as side;
use crate::wire;

use super::device;
use super::queue::{Cursor, End, Flow, Line, Queues};
use super::reader::{Job, open_ctty, unread};
use super::record::{info_id, path_of};
use super::state::Peer;

/// Drains of one process lie one behind the other.
#[derive(Debug)]
pub struct Drained {
    job: Job,
    offset: u64,
}

/// What cannot be carried of a terminal, and what to do about it. A line discipline that is not the usual one has state and queues of its own.
fn refusal(tty: &pb::PtyagentTty) -> Option<(String, &'static str)> {
    let index = tty.tty_info_id.unwrap_or(0) / 2;
    if let Some(discipline) = tty.line_discipline.filter(|discipline| *discipline != 0) {
        let kind = format!("line discipline {discipline} on {}", path_of(index));
        return Some((kind, "set it back to N_TTY (ldattach -d, or end the program that uses it), then dump again"));
    }
    let reason = device::device_of(index).and_then(|_| device::refusal(tty))?;
    Some((format!("terminal {}: {reason}", path_of(index)), "end the program that uses it, then dump again"))
}

/// Refuses a terminal whose state cannot be carried.
pub fn refuse_states(images: &Images) -> Result<()> {
    for tty in images.own.iter().flat_map(|own| &own.ttys) {
        let Some((kind, remedy)) = refusal(tty) else { continue };
        let id = tty.tty_info_id.unwrap_or(0);
        let has = |entry: &&pb::FdinfoEntry| {
            images
                .files
                .iter()
                .any(|file| file.id == entry.id && file.tty.as_ref().is_some_and(|tty| tty.tty_info_id == id))
        };
        let found = images.fdinfo.iter().find_map(|(pid, table)| Some((*pid, table.iter().find(has)?.fd)));
        let (pid, fd) = found.unwrap_or_default();
        return Err(Error::Refused(Refusal {
            pid: Pid(pid as i32),
            comm: images.comm(pid),
            fd: Some(fd as i32),
            kind,
            remedy: remedy.into(),
        }));
    }
    Ok(())
}

/// State that is not looked for, one sentence each.
pub fn losses(images: &Images) -> Vec<String> {
    let fresh = images.own.iter().flat_map(|own| &own.ttys).filter(|tty| tty.slave_never_opened == Some(true));
    let loss = |tty: &pb::PtyagentTty| {
        let index = tty.tty_info_id.unwrap_or(0) / 2;
        format!("input typed ahead for /dev/pts/{index}, which nobody has opened yet, is not carried if there is any")
    };
    let lines = images.own.iter().flat_map(|own| &own.ttys).filter(|tty| tty.modem_bits.is_some());
    let stop = |tty: &pb::PtyagentTty| {
        let path = path_of(tty.tty_info_id.unwrap_or(0) / 2);
        format!("whether a ^S has stopped the output of {path} cannot be seen; it will run")
    };
    fresh.map(loss).chain(lines.map(stop)).collect()
}

/// Signals of O_ASYNC are off while the queues are worked on: each process switches its own descriptions off, and its parasite switches
/// them on again should the controller die. The first holder of a description is the one that does it.
struct Asynchronous {
    pid: u32,
    fd: u32,
    flags: u32,
}

fn asynchronous(images: &Images) -> Vec<Asynchronous> {
    let mut found = Vec::new();
    for file in &images.files {
        let Some(tty) = file.tty.as_ref().filter(|tty| tty.flags & libc::O_ASYNC as u32 != 0) else { continue };
        let holder = |(pid, table): (&u32, &Vec<pb::FdinfoEntry>)| {
            table.iter().find(|entry| entry.id == file.id).map(|entry| (*pid, entry.fd))
        };
        if let Some((pid, fd)) = images.fdinfo.iter().find_map(holder) {
            found.push(Asynchronous { pid, fd, flags: tty.flags });
        }
    }
    found
}

fn set_flags<'a>(batch: &mut Batch, ofds: impl Iterator<Item = &'a Asynchronous>, without: u32) {
    for ofd in ofds {
        let flags = u64::from(ofd.flags & !without);
        batch.call(libc::SYS_fcntl, [u64::from(ofd.fd).into(), libc::F_SETFL.into(), flags.into()]);
    }
}

/// Drains the terminals and records what was in them.
pub fn drain(processes: &mut [Captured], images: &mut Images, all: &[Job]) -> Result<Vec<Drained>> {
    let mut drained = Vec::new();
    let noisy = asynchronous(images);
    for process in processes.iter_mut() {
        let own = |ofd: &&Asynchronous| ofd.pid == process.pid.0 as u32;
        if noisy.iter().any(|ofd| own(&ofd)) {
            let (mut batch, mut undo) = (Batch::new(), Batch::new());
            set_flags(&mut undo, noisy.iter().filter(own), 0);
            set_flags(&mut batch, noisy.iter().filter(own), libc::O_ASYNC as u32);
            process.tracee.set_undo(&undo, wire::UNDO_OFFSET)?;
            process.tracee.ask(batch)?.all_done("switching signals off", Subject::Pid(process.pid))?;
        }
    }
    for process in processes.iter_mut() {
        let jobs: Vec<Job> = all.iter().filter(|job| job.pid == process.pid).cloned().collect();
        if jobs.len() as u64 > wire::HOLDS {
            return Err(Error::failed(format!(
                "process {} holds more than {} terminals; it cannot be dumped",
                process.pid,
                wire::HOLDS
            )));
        }
        let own: Vec<&Asynchronous> = noisy.iter().filter(|ofd| ofd.pid == process.pid.0 as u32).collect();
        drain_in(process, jobs, images, &own, &mut drained)?;
    }
    Ok(drained)
}

fn drain_in(
    process: &mut Captured,
    jobs: Vec<Job>,
    images: &mut Images,
    noisy: &[&Asynchronous],
    drained: &mut Vec<Drained>,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (mut batch, mut undo) = (Batch::new(), Batch::new());
    let mut calls = Vec::new();
    for (job, offset) in jobs.into_iter().zip((wire::HOLD_OFFSET..).step_by(wire::HOLD_SIZE as usize)) {
        // Only the first fields are inputs; the rest of the hold is zero, as the region was made.
        let lender = job.lender.map_or(0, |pid| pid.0);
        process.tracee.write(offset, &[job.slave, job.master, lender].map(i32::to_ne_bytes).concat())?;
        calls.push(batch.operate(wire::OP_QUEUE_DRAIN, offset));
        undo.operate(wire::OP_QUEUE_PUT_BACK, offset);
        drained.push(Drained { job, offset });
    }
    set_flags(&mut undo, noisy.iter().copied(), 0);
    process.tracee.set_undo(&undo, wire::UNDO_OFFSET)?;
    let answers = process.tracee.ask(batch)?;
    let first = drained.len() - calls.len();
    for (drained, call) in drained[first..].iter().zip(calls) {
        match answers.result(call) {
            Ok(_) => record(process, drained, images)?,
            Err(Errno::EPERM) => refuse_unless_empty(process, &drained.job, images)?,
            Err(Errno::EBADF) if drained.job.is_unopened() || drained.job.lender.is_some() => {
                return Err(unread(images, drained.job.index));
            }
            Err(errno) => {
                let subject = Subject::Path(path_of(drained.job.index.0).into());
                return Err(Error::sys("reading the queues", subject, errno));
            }
        }
    }
    Ok(())
}

/// Nothing can be put back into this terminal. In raw mode the kernel says whether anything waits; a half-typed canonical line it hides.
fn refuse_unless_empty(process: &mut Captured, job: &Job, images: &Images) -> Result<()> {
    const ICANON: u32 = 2;
    let termios = images.own_tty(info_id(job.index, Peer::Slave)).and_then(|tty| tty.termios.as_ref());
    let raw = termios.and_then(|termios| termios.c_lflag).is_some_and(|lflag| lflag & ICANON == 0);
    let mut batch = Batch::new();
    let count = batch.output(4);
    let opened = job.is_unopened().then(|| open_ctty(&mut batch));
    let slave = opened.map_or(Arg::from(job.slave), Arg::from);
    let asked = batch.call(libc::SYS_ioctl, [slave, crate::sys::tty::FIONREAD.into(), count.into()]);
    if let Some(opened) = opened {
        batch.call(libc::SYS_close, [opened.into()]);
    }
    let answers = process.tracee.ask(batch)?;
    answers.result(asked).during("asking for unread input", Subject::Fd(job.pid, job.slave))?;
    if raw && answers.u32(count, 0) == 0 {
        return Ok(());
    }
    Err(Error::Refused(Refusal {
        pid: job.pid,
        comm: images.comm(job.pid.0 as u32),
        fd: Some(job.slave).filter(|fd| *fd >= 0),
        kind: format!("unread input of {} that could not be put back without TIOCSTI", path_of(job.index.0)),
        remedy: "dump as root, or set dev.tty.legacy_tiocsti to 1".into(),
    }))
}

fn record(process: &Captured, drained: &Drained, images: &mut Images) -> Result<()> {
    let bytes = process.tracee.read(drained.offset, size_of::<side::Hold>());
    let hold = crate::tty::queue::hold_from_bytes(&bytes)?;
    let queues = Queues::from_hold(&hold)?;
    let job = &drained.job;
    let peer = if job.master >= 0 { Peer::Master } else { Peer::Slave };
    let id = info_id(job.index, peer);
    let slave_id = info_id(job.index, Peer::Slave);
    let input: Vec<u8> =
        queues.lines.iter().flat_map(|line| line.bytes.clone()).chain(queues.partial.clone()).collect();
    for (tty_id, data) in [(slave_id, input), (info_id(job.index, Peer::Master), queues.output.clone())] {
        if !data.is_empty() {
            images.tty_data.push(pb::TtyDataEntry { tty_id, data });
        }
    }
    let own = images.own.get_or_insert_default();
    if let Some(record) = own.ttys.iter_mut().find(|tty| tty.tty_info_id == Some(id)) {
        record.flow = Some(flow_entry(queues.flow) as i32);
        record.packet_status = (queues.status != 0).then_some(u32::from(queues.status));
        record.master_stopped = queues.master_stopped.then_some(true);
        record.queue = Some(to_entry(&queues));
    }
    Ok(())
}

/// Puts everything back into the terminals that it came from, and switches the signals on again.
pub fn put_back(processes: &mut [Captured], images: &Images, drained: &[Drained]) -> Result<()> {
    return_bytes(processes, drained)?;
    let noisy = asynchronous(images);
    for process in processes.iter_mut() {
        let mut batch = Batch::new();
        set_flags(&mut batch, noisy.iter().filter(|ofd| ofd.pid == process.pid.0 as u32), 0);
        if !batch.is_empty() {
            process.tracee.ask(batch)?.all_done("switching signals on again", Subject::Pid(process.pid))?;
            process.tracee.clear_undo()?;
        }
    }
    Ok(())
}

fn return_bytes(processes: &mut [Captured], drained: &[Drained]) -> Result<()> {
    for process in processes.iter_mut() {
        let mut batch = Batch::new();
        for drained in drained.iter().filter(|drained| drained.job.pid == process.pid) {
            batch.operate(wire::OP_QUEUE_PUT_BACK, drained.offset);
        }
        if !batch.is_empty() {
            let answers = process.tracee.ask(batch)?;
            process.tracee.clear_undo()?;
            answers.all_done("putting back what was unread", Subject::Pid(process.pid))?;
        }
    }
    Ok(())
}

fn flow_entry(flow: Flow) -> pb::PtyagentFlow {
    match flow {
        Flow::Runs => pb::PtyagentFlow::Running,
        Flow::Ioctl => pb::PtyagentFlow::Tcooff,
        Flow::Character => pb::PtyagentFlow::Xoff,
        Flow::Unknown => pb::PtyagentFlow::Unknown,
    }
}

fn to_entry(queues: &Queues) -> pb::PtyagentQueue {
    let line = |line: &Line| pb::PtyagentLine {
        data: Some(line.bytes.clone()),
        terminator: Some(match line.end {
            End::Newline => pb::PtyagentTerminator::Newline,
            End::Eof => pb::PtyagentTerminator::Eof,
            End::Eol => pb::PtyagentTerminator::Veol,
            End::Eol2 => pb::PtyagentTerminator::Veol2,
        } as i32),
    };
    let some = |bytes: &Vec<u8>| (!bytes.is_empty()).then(|| bytes.clone());
    pb::PtyagentQueue {
        lines: queues.lines.iter().map(line).collect(),
        partial: some(&queues.partial),
        lnext: queues.lnext.then_some(true),
        unprocessed: some(&queues.flip),
        output: some(&queues.output),
        canonical: Some(queues.termios.c_lflag & 2 != 0),
        ring_full: queues.full.then_some(true),
        held_echo: some(&queues.echo),
        column: queues.cursor.map(|cursor| cursor.column),
        canon_column: queues.cursor.map(|cursor| cursor.line),
        erasing: queues.cursor.map(|cursor| cursor.erasing),
    }
}

/// What is to be put into a restored terminal, where anything was recorded.
pub fn recorded(images: &Images, index: PtyIndex) -> Option<Queues> {
    let record = |peer: Peer| images.own_tty(info_id(index, peer));
    let holder = [Peer::Master, Peer::Slave].into_iter().filter_map(record).find(|tty| tty.queue.is_some())?;
    let queue = holder.queue.as_ref()?;
    let termios = [Peer::Slave, Peer::Master].into_iter().filter_map(record).find_map(|tty| tty.termios.as_ref())?;
    let line = |line: &pb::PtyagentLine| Line {
        bytes: line.data.clone().unwrap_or_default(),
        end: match line.terminator() {
            pb::PtyagentTerminator::Newline | pb::PtyagentTerminator::None => End::Newline,
            pb::PtyagentTerminator::Veol => End::Eol,
            pb::PtyagentTerminator::Veol2 => End::Eol2,
            pb::PtyagentTerminator::Eof => End::Eof,
        },
    };
    Some(Queues {
        termios: super::state::to_termios2(termios),
        lines: queue.lines.iter().map(line).collect(),
        partial: queue.partial.clone().unwrap_or_default(),
        lnext: queue.lnext == Some(true),
        full: queue.ring_full == Some(true),
        flip: queue.unprocessed.clone().unwrap_or_default(),
        output: queue.output.clone().unwrap_or_default(),
        echo: queue.held_echo.clone().unwrap_or_default(),
        cursor: queue.column.map(|column| Cursor {
            column,
            line: queue.canon_column.unwrap_or(0),
            erasing: queue.erasing == Some(true),
        }),
        flow: match holder.flow() {
            pb::PtyagentFlow::Running | pb::PtyagentFlow::Unknown => Flow::Runs,
            pb::PtyagentFlow::Tcooff => Flow::Ioctl,
            pb::PtyagentFlow::Xoff => Flow::Character,
        },
        master_stopped: holder.master_stopped == Some(true),
        packet: record(Peer::Master).is_some_and(|master| master.packet == Some(true)),
        status: holder.packet_status.unwrap_or(0) as u8,
    })
}

/// Fills a restored terminal, of which this process holds the slave, and the master unless it is -1.
pub fn fill(images: &Images, index: PtyIndex, slave: i32, master: i32) -> Result<()> {
    let Some(queues) = recorded(images, index) else { return Ok(()) };
    let mut hold = queues.to_hold(slave, master)?;
    match side::put_back(&mut hold) {
        0 => Ok(()),
        raw => {
            let errno = Errno::from_raw(-raw as i32);
            Err(Error::sys("putting back what was unread", Subject::Path(path_of(index.0).into()), errno))
        }
    }
}
