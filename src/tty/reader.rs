//! Who reads a terminal's queues: the kernel gives nothing to a background process of the session that the terminal controls.
//!
//! 1. The holder of the master does. Where its holders are all in the background, another process borrows the master (pidfd_getfd, which takes the
//!    right to attach to its holder).
//! 2. Where the master is outside, a process that has the slave open does. Where those are all in the background, one in the foreground opens /dev/tty.
//!
//! What is borrowed or opened is closed before the process runs on, and never where a seccomp filter could object.
//!
//! Refused: a terminal that nobody in the tree can read.

use crate::error::{Error, Refusal, Result};
use crate::ids::{Pid, PtyIndex};
use crate::image::{Images, pb};
use crate::inject::batch::{Batch, CallId};

use super::record::{info_id, path_of};
use super::state::Peer;

/// A terminal that is to be drained, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub index: PtyIndex,
    pub pid: Pid,
    /// Descriptor numbers in the process; -1 where it has none.
    pub slave: i32,
    pub master: i32,
    /// The process whose descriptor the master is, where that is another one.
    pub lender: Option<Pid>,
}

impl Job {
    /// Whether the process has no descriptor of the terminal and opens /dev/tty.
    pub fn is_unopened(&self) -> bool {
        self.slave < 0 && self.master < 0
    }
}

/// Opens /dev/tty as a drain does. It is for the same batch to close it.
pub fn open_ctty(batch: &mut Batch) -> CallId {
    let path = batch.input(b"/dev/tty\0");
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    batch.call(libc::SYS_openat, [libc::AT_FDCWD.into(), path.into(), flags.into()])
}

/// Chooses who drains each terminal; one that is hung up is left out. Errors: a refusal where nobody can read one.
pub fn jobs(images: &Images) -> Result<Vec<Job>> {
    // Opening the slave of a master for the first time could not be undone.
    let own = images
        .own
        .iter()
        .flat_map(|own| &own.ttys)
        .filter(|tty| tty.hung_up != Some(true) && tty.slave_never_opened != Some(true));
    let mut indexes: Vec<u32> = own.filter_map(|tty| tty.tty_info_id).map(|id| id / 2).collect();
    indexes.dedup();
    indexes.into_iter().filter_map(|index| job(images, PtyIndex(index)).transpose()).collect()
}

/// A process of the tree, as a reader of one terminal.
struct Candidate {
    pid: Pid,
    master: Option<i32>,
    slave: Option<i32>,
    /// The terminal controls it, and its group is not the foreground one.
    behind: bool,
    /// The terminal controls it, and its group is the foreground one.
    in_front: bool,
    /// It lives, and no seccomp filter looks at what it calls.
    is_free: bool,
}

fn candidates(images: &Images, index: PtyIndex) -> Vec<Candidate> {
    let slave_id = info_id(index, Peer::Slave);
    let foreground = images.own_tty(slave_id).and_then(|tty| tty.foreground_pgrp);
    let files = |peer: Peer| -> Vec<u32> {
        let id = info_id(index, peer);
        let is_peer = |file: &&pb::FileEntry| file.tty.as_ref().is_some_and(|tty| tty.tty_info_id == id);
        images.files.iter().filter(is_peer).map(|file| file.id).collect()
    };
    let (masters, slaves) = (files(Peer::Master), files(Peer::Slave));
    let number = |pid: u32, files: &[u32]| {
        let files_id = images.ids.get(&pid).map_or(pid, |ids| ids.files_id);
        let table = images.fdinfo.get(&files_id)?;
        table.iter().find(|entry| files.contains(&entry.id)).map(|entry| entry.fd as i32)
    };
    let candidate = |entry: &pb::PstreeEntry| {
        let own = images.own_task(entry.pid);
        let is_ctty = own.is_some_and(|own| own.ctty_tty_id == Some(slave_id));
        let thread = images.cores.get(&entry.pid).and_then(|core| core.thread_core.as_ref());
        let is_filtered = thread.is_some_and(|thread| thread.seccomp_filter.is_some());
        let is_foreground = Some(entry.pgid) == foreground;
        Candidate {
            pid: Pid(entry.pid as i32),
            master: number(entry.pid, &masters),
            slave: number(entry.pid, &slaves),
            behind: is_ctty && !is_foreground,
            in_front: is_ctty && is_foreground,
            is_free: !is_filtered && own.is_some_and(|own| own.exit_status.is_none()),
        }
    };
    images.pstree.iter().map(candidate).collect()
}

fn job(images: &Images, index: PtyIndex) -> Result<Option<Job>> {
    let all = candidates(images, index);
    let job = |reader: &Candidate, master: Option<i32>, lender: Option<Pid>| {
        let (slave, master) = (reader.slave.unwrap_or(-1), master.unwrap_or(-1));
        Ok(Some(Job { index, pid: reader.pid, slave, master, lender }))
    };
    let mut holders = all.iter().filter(|one| one.master.is_some());
    if let Some(reader) = holders.clone().find(|one| !one.behind) {
        return job(reader, reader.master, None);
    }
    if let Some(lender) = holders.next() {
        let borrower = all.iter().find(|one| one.in_front && one.is_free);
        return match borrower.or_else(|| all.iter().find(|one| !one.behind && one.is_free)) {
            Some(reader) => job(reader, lender.master, Some(lender.pid)),
            None => Err(unread(images, index)),
        };
    }
    let Some(record) = images.own_tty(info_id(index, Peer::Slave)) else { return Ok(None) };
    // An open raises the outputs of a serial line.
    let opens = |one: &&Candidate| one.in_front && one.is_free && record.modem_bits.is_none();
    let front = all.iter().find(|one| one.in_front && one.slave.is_some()).or_else(|| all.iter().find(opens));
    match front.or_else(|| all.iter().find(|one| !one.behind && one.slave.is_some())) {
        Some(reader) => job(reader, None, None),
        None => Err(unread(images, index)),
    }
}

/// The refusal of a terminal that only its background can read.
pub fn unread(images: &Images, index: PtyIndex) -> Error {
    let all = candidates(images, index);
    let holder = all.iter().find(|one| one.master.or(one.slave).is_some());
    let holder = holder.or_else(|| all.iter().find(|one| one.behind || one.in_front));
    let (pid, fd) = holder.map_or((Pid(0), None), |one| (one.pid, one.master.or(one.slave)));
    Error::Refused(Refusal {
        pid,
        comm: images.comm(pid.0 as u32),
        fd,
        kind: format!("terminal {}, that no process in its foreground can read", path_of(index.0)),
        remedy: "bring the process to the foreground of that terminal (fg), then dump again".into(),
    })
}
