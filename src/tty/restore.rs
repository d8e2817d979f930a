//! Opening terminals again and giving them their state.
//!
//! The restore holds both peers of every pseudoterminal until the tasks have theirs. The index is asked for by opening ptmx until it comes up:
//! the kernel gives out the lowest free one. A slave whose master was closed gets a master that is closed at the end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::PtyIndex;
use crate::image::{Images, pb};
use crate::sys::tty;

use super::record::{info_id, real_index};
use super::state::{self, Peer, Size};

/// Which index a restored pseudoterminal gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexPolicy {
    /// The recorded one, or an error.
    Exact,
    /// The recorded one where it is free, else another, which is reported.
    Any,
}

/// Both peers of a pseudoterminal in the hands of the restore.
#[derive(Debug)]
pub struct Pair {
    pub master: OwnedFd,
    /// Our own description of the slave, for settings; none where nobody has ever opened it.
    pub slave: Option<OwnedFd>,
    /// The index that it has now.
    pub index: PtyIndex,
}

impl Pair {
    /// What settings go through: those of the slave can be reached through the master.
    fn settings(&self) -> BorrowedFd<'_> {
        self.slave.as_ref().unwrap_or(&self.master).as_fd()
    }
}

/// All pseudoterminals, by their recorded index.
#[derive(Debug, Default)]
pub struct Pairs {
    pairs: BTreeMap<u32, Pair>,
    moved: Vec<(u32, u32)>,
}

impl Pairs {
    pub fn get(&self, index: u32) -> Result<&Pair> {
        self.pairs.get(&index).ok_or_else(|| Error::failed(format!("pseudoterminal {index} is not in the images")))
    }

    /// Recorded index and present index of each that has another one now.
    pub fn moved(&self) -> impl Iterator<Item = (u32, u32)> {
        self.moved.iter().copied()
    }

    /// Closes the stand-in for a master that was closed.
    pub fn hang_up(&mut self, index: u32) {
        self.pairs.remove(&index);
    }

    /// Closes everything but the master that is to be relayed.
    pub fn let_go(&mut self, outside: Option<u32>) {
        self.pairs.retain(|index, _| Some(*index) == outside);
        self.pairs.values_mut().for_each(|pair| pair.slave = None);
    }

    /// Opens one and sets its state, all but what would get in the way of opening it again.
    pub fn open(&mut self, images: &Images, index: u32, policy: IndexPolicy) -> Result<()> {
        let record = images.own_tty(info_id(PtyIndex(index), Peer::Slave));
        let master_record = images.own_tty(info_id(PtyIndex(index), Peer::Master));
        let outside = master_record.is_some_and(|master| master.external == Some(true));
        // The user's terminal is a new one in any case: its index is kept where that is possible.
        let policy = if outside { IndexPolicy::Any } else { policy };
        let master = open_index(PtyIndex(real_index(index)), policy)?;
        let now = tty::get_index(master.as_fd()).during("asking for the index", Subject::None)?;
        tty::set_lock(master.as_fd(), false).during("unlocking the pty", Subject::None)?;
        let slave = if master_record.is_some_and(|master| master.slave_never_opened == Some(true)) {
            None
        } else {
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            Some(tty::open_peer(master.as_fd(), flags).during("opening the slave", Subject::None)?)
        };
        let pair = Pair { master, slave, index: PtyIndex(now) };
        if now != real_index(index) {
            self.moved.push((real_index(index), now));
        }
        let living = [record, master_record].into_iter().flatten().find(|record| record.termios.is_some());
        if let Some(record) = living {
            let size = if outside { Size::Outside } else { Size::Recorded };
            state::restore(pair.settings(), record, size)?;
            state::restore_node(&format!("/dev/pts/{now}"), record)?;
        }
        self.pairs.insert(index, pair);
        Ok(())
    }

    /// A description of a peer for a task.
    pub fn describe(&self, file: &pb::TtyFileEntry) -> Result<OwnedFd> {
        let pair = self.get(file.tty_info_id / 2)?;
        let flags = file.flags as i32;
        if file.tty_info_id % 2 == 1 {
            let copy = pair.master.try_clone().during("copying a descriptor", Subject::None)?;
            let flags = OFlag::from_bits_retain(flags & !libc::O_ASYNC);
            nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFL(flags))
                .during("setting the flags of a master", Subject::None)?;
            return Ok(copy);
        }
        // Opened by its path where that leads to it, so that the descriptor shows the path as it did.
        let path = format!("/dev/pts/{}", pair.index);
        let again = flags & !libc::O_ASYNC | libc::O_NOCTTY | libc::O_CLOEXEC;
        if flags & LARGEFILE == 0 {
            // It came from TIOCGPTPEER: open(2) sets this flag always.
            let again = flags & !libc::O_ASYNC | libc::O_NOCTTY;
            return tty::open_peer_as(pair.master.as_fd(), again)
                .during("opening the slave", Subject::Path(path.into()));
        }
        match open(Path::new(&path), OFlag::from_bits_retain(again), Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(_) => {
                tty::open_peer(pair.master.as_fd(), again).during("opening the slave", Subject::Path(path.into()))
            }
        }
    }

    /// Sets locks, exclusive mode and the rest that had to wait.
    pub fn arm(&self, images: &Images, index: u32) -> Result<()> {
        let pair = self.get(index)?;
        if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Slave)) {
            state::arm_slave(pair.settings(), record)?;
        } else if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Master)) {
            // The slave was closed: its locked settings are known through the master.
            let locked_only = pb::PtyagentTty { termios_locked: record.termios_locked.clone(), ..Default::default() };
            state::arm_slave(pair.settings(), &locked_only)?;
        }
        if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Master)) {
            state::arm_master(pair.master.as_fd(), record)?;
        }
        Ok(())
    }

    /// The slave of a terminal, as the service descriptor of a session.
    pub fn service(&self, tty_info_id: u32) -> Result<BorrowedFd<'_>> {
        Ok(self.get(tty_info_id / 2)?.settings())
    }

    /// Takes a master out, for the relay.
    pub fn take_master(&mut self, index: u32) -> Option<OwnedFd> {
        self.pairs.remove(&index).map(|pair| pair.master)
    }
}

/// O_LARGEFILE as the kernel keeps it, which libc calls 0 on x86-64.
const LARGEFILE: i32 = 0o100_000;

fn open_ptmx() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open("/dev/ptmx", flags, Mode::empty()).map_err(|errno| match errno {
        nix::errno::Errno::ENOSPC => {
            Error::failed("no pseudoterminal is left; raise kernel.pty.max or close some terminals")
        }
        errno => Error::sys("opening", Subject::Path("/dev/ptmx".into()), errno),
    })
}

/// Opens masters until the index comes up, holding those below it meanwhile.
fn open_index(wanted: PtyIndex, policy: IndexPolicy) -> Result<OwnedFd> {
    let mut held = Vec::new();
    loop {
        let master = open_ptmx()?;
        let index = tty::get_index(master.as_fd()).during("asking for the index", Subject::None)?;
        if index == wanted.0 {
            return Ok(master);
        }
        if index > wanted.0 {
            return match policy {
                IndexPolicy::Exact => Err(taken(wanted)),
                IndexPolicy::Any => Ok(held.into_iter().next().unwrap_or(master)),
            };
        }
        held.push(master);
    }
}

/// The error for an index that somebody else has, with their name where /proc tells it.
fn taken(index: PtyIndex) -> Error {
    let holder = crate::procfs::tree::all()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| crate::procfs::Stat::read(pid).ok())
        .find(|stat| stat.tty.and_then(super::record::index_of) == Some(index));
    let by = holder.map_or(String::new(), |stat| format!(" by process {} ({})", stat.pid, stat.comm_text()));
    Error::failed(format!("terminal /dev/pts/{index} is in use{by}; close it, or restore with --pts-index any"))
}
