//! Opening terminals again and giving them their state.
//!
//! The restore holds both peers of every pseudoterminal until the tasks have theirs. A slave whose master was closed gets a master that is closed
//! at the end.

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

use super::device;
use super::index::{self, Fallback};
use super::record::{info_id, path_of, real_index};
use super::state::{self, Peer};

/// Which index a restored pseudoterminal gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexPolicy {
    /// The recorded one, or an error.
    Exact,
    /// The recorded one where it is free, else another, which is reported.
    Any,
}

/// A terminal in the hands of the restore, of a pseudoterminal both peers.
#[derive(Debug)]
pub struct Pair {
    /// None where it is no pseudoterminal.
    pub master: Option<OwnedFd>,
    /// Our own description of the slave, for settings; none where nobody has ever opened it.
    pub slave: Option<OwnedFd>,
    /// The index that it has now.
    pub index: PtyIndex,
}

impl Pair {
    /// What settings go through: those of the slave can be reached through the master.
    fn settings(&self) -> Result<BorrowedFd<'_>> {
        self.slave.as_ref().map_or_else(|| self.master(), |slave| Ok(slave.as_fd()))
    }

    fn master(&self) -> Result<BorrowedFd<'_>> {
        let master = self.master.as_ref().map(AsFd::as_fd);
        master.ok_or_else(|| Error::failed("the images name the master of a terminal that has none"))
    }
}

/// All terminals, by what they were known as.
#[derive(Debug, Default)]
pub struct Pairs {
    pairs: BTreeMap<u32, Pair>,
    /// Masters that wait for their turn; none before the first one is asked for.
    masters: Option<BTreeMap<u32, OwnedFd>>,
    moved: Vec<(u32, u32)>,
}

impl Pairs {
    pub fn get(&self, index: u32) -> Result<&Pair> {
        self.pairs.get(&index).ok_or_else(|| Error::failed(format!("terminal {index} is not in the images")))
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
        if let Some(device) = device::device_of(index) {
            let record = record.ok_or_else(|| Error::failed(format!("terminal {index} has no state in the images")))?;
            let fd = device::restore(device, record)?;
            self.pairs.insert(index, Pair { master: None, slave: Some(fd), index: PtyIndex(index) });
            return Ok(());
        }
        let master_record = images.own_tty(info_id(PtyIndex(index), Peer::Master));
        let master = self.master(images, real_index(index), policy)?;
        let now = tty::get_index(master.as_fd()).during("asking for the index", Subject::None)?;
        tty::set_lock(master.as_fd(), false).during("unlocking the pty", Subject::None)?;
        let slave = if master_record.is_some_and(|master| master.slave_never_opened == Some(true)) {
            None
        } else {
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            Some(tty::open_peer(master.as_fd(), flags).during("opening the slave", Subject::None)?)
        };
        let pair = Pair { master: Some(master), slave, index: PtyIndex(now) };
        if now != real_index(index) {
            self.moved.push((real_index(index), now));
        }
        let living = [record, master_record].into_iter().flatten().find(|record| record.termios.is_some());
        if let Some(record) = living {
            state::restore(pair.settings()?, record)?;
            state::restore_node(&format!("/dev/pts/{now}"), record)?;
        }
        self.pairs.insert(index, pair);
        Ok(())
    }

    /// The master with this index, or the one that stands for it. All are opened at once.
    fn master(&mut self, images: &Images, index: u32, policy: IndexPolicy) -> Result<OwnedFd> {
        let masters = match &mut self.masters {
            Some(masters) => masters,
            none => none.insert(index::open_masters(&wanted(images, policy))?),
        };
        masters.remove(&index).ok_or_else(|| Error::failed(format!("pseudoterminal {index} is in the images twice")))
    }

    /// A description of a peer for a task.
    pub fn describe(&self, file: &pb::TtyFileEntry) -> Result<OwnedFd> {
        let pair = self.get(file.tty_info_id / 2)?;
        let flags = file.flags as i32;
        if file.tty_info_id % 2 == 1 {
            let copy = pair.master()?.try_clone_to_owned().during("copying a descriptor", Subject::None)?;
            let flags = OFlag::from_bits_retain(flags & !libc::O_ASYNC);
            nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFL(flags))
                .during("setting the flags of a master", Subject::None)?;
            return Ok(copy);
        }
        if device::device_of(file.tty_info_id / 2).is_some() {
            return device::describe(Path::new(&path_of(file.tty_info_id / 2)), flags);
        }
        // Opened by its path where that leads to it, so that the descriptor shows the path as it did.
        let path = format!("/dev/pts/{}", pair.index);
        let again = flags & !libc::O_ASYNC | libc::O_NOCTTY | libc::O_CLOEXEC;
        if flags & LARGEFILE == 0 {
            // It came from TIOCGPTPEER: open(2) sets this flag always.
            let again = flags & !libc::O_ASYNC | libc::O_NOCTTY;
            return tty::open_peer_as(pair.master()?, again).during("opening the slave", Subject::Path(path.into()));
        }
        match open(Path::new(&path), OFlag::from_bits_retain(again), Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(_) => tty::open_peer(pair.master()?, again).during("opening the slave", Subject::Path(path.into())),
        }
    }

    /// Sets locks, exclusive mode and the rest that had to wait.
    pub fn arm(&self, images: &Images, index: u32) -> Result<()> {
        let pair = self.get(index)?;
        if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Slave)) {
            state::arm_slave(pair.settings()?, record)?;
            device::arm(pair.settings()?, record)?;
        } else if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Master)) {
            // The slave was closed: its locked settings are known through the master.
            let locked_only = pb::PtyagentTty { termios_locked: record.termios_locked.clone(), ..Default::default() };
            state::arm_slave(pair.settings()?, &locked_only)?;
        }
        if let Some(record) = images.own_tty(info_id(PtyIndex(index), Peer::Master)) {
            state::arm_master(pair.master()?, record)?;
        }
        Ok(())
    }

    /// The slave of a terminal, as the service descriptor of a session.
    pub fn service(&self, tty_info_id: u32) -> Result<BorrowedFd<'_>> {
        self.get(tty_info_id / 2)?.settings()
    }

    /// Takes a master out, for the relay.
    pub fn take_master(&mut self, index: u32) -> Option<OwnedFd> {
        self.pairs.remove(&index).and_then(|pair| pair.master)
    }
}

/// All indexes of the images, and what is done where one is taken.
fn wanted(images: &Images, policy: IndexPolicy) -> BTreeMap<u32, Fallback> {
    let ptys = images.tty_info.iter().filter(|tty| tty.pty.is_some());
    let fallback = |index: u32| {
        // The user's terminal is a new one in any case: its index is kept where that is possible.
        let master = images.own_tty(info_id(PtyIndex(index), Peer::Master));
        let outside = master.is_some_and(|master| master.external == Some(true));
        if outside || policy == IndexPolicy::Any { Fallback::Other } else { Fallback::Fail }
    };
    ptys.map(|tty| (real_index(tty.id / 2), fallback(tty.id / 2))).collect()
}

/// O_LARGEFILE as the kernel keeps it, which libc calls 0 on x86-64.
const LARGEFILE: i32 = 0o100_000;
