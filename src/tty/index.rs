//! Getting pseudoterminals with wanted indexes.
//!
//! The kernel gives out the lowest free index. So masters are opened until every wanted one has come up or has been passed by, all in one sweep;
//! what comes up in between is held until the end of the sweep and then closed. The sweep is bounded by `kernel.pty.max` and by the limit of open
//! files, and by nothing else. The index of a hung up slave stays taken until its last descriptor is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, PtyIndex};
use crate::procfs::{self, FdInfo, Stat, fdinfo, tree};
use crate::sys::{file, tty};

/// What is done where an index belongs to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// It is an error.
    Fail,
    /// The lowest free one is taken instead.
    Other,
}

/// Opens a master for each wanted index, locked as the kernel makes them; those that fell back have another index.
pub fn open_masters(wanted: &BTreeMap<u32, Fallback>) -> Result<BTreeMap<u32, OwnedFd>> {
    // Nobody else is disturbed by a sweep that cannot succeed.
    if let Some((index, _)) = wanted.iter().find(|(index, fallback)| **fallback == Fallback::Fail && exists(**index)) {
        return Err(taken(PtyIndex(*index)));
    }
    let (mut found, mut held) = (BTreeMap::new(), BTreeMap::new());
    let mut missing: BTreeSet<u32> = wanted.keys().copied().collect();
    while let Some(last) = missing.last().copied() {
        let (index, master) = match open_master(last) {
            Ok(opened) => opened,
            Err(_) if missing.iter().all(|index| wanted.get(index) == Some(&Fallback::Other)) => break,
            Err(error) => return Err(error),
        };
        match missing.remove(&index) {
            true => found.insert(index, master),
            false => held.insert(index, master),
        };
        let passed = missing.iter().find(|one| **one < index && wanted.get(one) == Some(&Fallback::Fail));
        if let Some(passed) = passed {
            return Err(taken(PtyIndex(*passed)));
        }
        if index > last {
            break;
        }
    }
    for index in missing {
        let other = held.pop_first().map_or_else(|| open_master(index), Ok)?;
        found.insert(index, other.1);
    }
    drop(held);
    found.into_iter().map(|(index, master)| Ok((index, low(master)?))).collect()
}

/// A sweep leaves high numbers, which the files of the session will need.
fn low(master: OwnedFd) -> Result<OwnedFd> {
    file::duplicate_from(master.as_fd(), 3).during("copying a descriptor", Subject::None)
}

fn exists(index: u32) -> bool {
    std::fs::exists(format!("/dev/pts/{index}")).unwrap_or(false)
}

/// A new master and its index. `wanted` is for messages.
fn open_master(wanted: u32) -> Result<(u32, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOSPC => Error::failed(format!(
            "the system has no pseudoterminal left on the way to /dev/pts/{wanted}; raise kernel.pty.max or close some terminals, or restore with --pts-index any"
        )),
        Errno::EMFILE | Errno::ENFILE => Error::failed(format!(
            "getting /dev/pts/{wanted} takes as many open files; raise the limit with ulimit -n, or restore with --pts-index any"
        )),
        errno => Error::sys("opening", Subject::Path("/dev/ptmx".into()), errno),
    })?;
    let index = tty::get_index(master.as_fd()).during("asking for the index", Subject::None)?;
    Ok((index, master))
}

/// The error for an index that somebody else has, with their names where /proc tells them.
fn taken(index: PtyIndex) -> Error {
    const NAMED: usize = 3;
    let holders = holders(index);
    let mut names: Vec<String> = holders.iter().take(NAMED).map(Holder::to_string).collect();
    if holders.len() > NAMED {
        names.push(format!("{} more", holders.len() - NAMED));
    }
    let by = match names.is_empty() {
        true => "by a process that is not to be seen from here".to_owned(),
        false => format!("by {}", names.join(", ")),
    };
    Error::failed(format!(
        "terminal /dev/pts/{index} is in use {by}; end that, or restore with --pts-index any or --pts-index private"
    ))
}

/// A process that keeps an index taken.
struct Holder {
    pid: Pid,
    comm: String,
    how: &'static str,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}), {}", self.pid, self.comm, self.how)
    }
}

/// Everybody with a descriptor of either side or with the terminal as their controlling one, masters first: who holds it decides.
fn holders(index: PtyIndex) -> Vec<Holder> {
    let mut found: Vec<(u8, Holder)> = Vec::new();
    for pid in tree::all().unwrap_or_default() {
        let Ok(stat) = Stat::read(pid) else { continue };
        let controlling = stat.tty.and_then(super::record::index_of) == Some(index);
        let Some((rank, how)) = hold(pid, index).or(controlling.then_some((2, "which it controls"))) else { continue };
        found.push((rank, Holder { pid, comm: stat.comm_text(), how }));
    }
    found.sort_by_key(|(rank, holder)| (*rank, holder.pid));
    found.into_iter().map(|(_, holder)| holder).collect()
}

/// How a process has the terminal open, if it has.
fn hold(pid: Pid, index: PtyIndex) -> Option<(u8, &'static str)> {
    let ours = std::fs::metadata("/dev/pts").ok()?.dev();
    // Nothing tells from which instance a master is: that of its process's mount namespace, as a rule.
    let mounts = |name: &str| std::fs::read_link(Path::new("/proc").join(name).join("ns/mnt")).ok();
    let sees_ours = mounts(&pid.to_string()) == mounts("self");
    let slave = format!("/dev/pts/{index}");
    let of_slave = [slave.clone().into_bytes(), format!("{slave} (deleted)").into_bytes()];
    let mut best = None;
    for fd in fdinfo::list(pid).ok()? {
        let Ok(link) = fdinfo::link(pid, fd) else { continue };
        if link.as_bytes().ends_with(b"ptmx") {
            if sees_ours && FdInfo::read(pid, fd).is_ok_and(|info| info.tty_index == Some(index)) {
                return Some((0, "which has its master open"));
            }
        } else if of_slave.iter().any(|path| path == link.as_bytes()) {
            let device = std::fs::metadata(procfs::path(pid, &format!("fd/{fd}"))).ok()?.dev();
            best = (device == ours).then_some((1, "which has it open")).or(best);
        }
    }
    best
}
