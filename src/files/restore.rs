//! Opening files again: once each, in the restore itself, under the number that the plan gives. Stubs inherit all of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Context, Error, Result, Subject};
use crate::files::pipe::Pipes;
use crate::files::regular::ChangedFiles;
use crate::files::removed::Remade;
use crate::files::socket::make::Making;
use crate::files::{epoll, eventfd, inotify, memfd, regular, signalfd, timerfd};
use crate::image::{Images, pb};
use crate::sys::file::duplicate_to;

/// Sets what fcntl(2) can set of a description's flags, O_ASYNC apart, which comes with its owner.
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    let settable = OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOATIME;
    let flags = OFlag::from_bits_retain(flags as i32) & settable;
    fcntl(fd, FcntlArg::F_SETFL(flags)).during("setting the flags of a file", Subject::None).map(drop)
}

/// Open files by their slots, and the pipes that they lead to.
#[derive(Debug, Default)]
pub struct Opened {
    slots: BTreeMap<i32, OwnedFd>,
    pub pipes: Pipes,
    pub sockets: Making,
    pub removed: Remade,
    pub memfds: memfd::Remade,
    changed: ChangedFiles,
    /// What is not as it was, one sentence each.
    pub notes: Vec<String>,
}

impl Opened {
    pub fn new(changed: ChangedFiles) -> Opened {
        Opened { changed, ..Opened::default() }
    }

    /// Moves a descriptor to its slot.
    pub fn place(&mut self, slot: i32, fd: OwnedFd) -> Result<()> {
        if fd.as_raw_fd() == slot {
            self.slots.insert(slot, fd);
            return Ok(());
        }
        let placed = duplicate_to(fd.as_fd(), slot).map_err(|errno| match errno {
            nix::errno::Errno::EINVAL | nix::errno::Errno::EMFILE => Error::failed(format!(
                "descriptor {slot} is over this process's limit of open files; raise it with ulimit -n"
            )),
            errno => Error::sys("placing a descriptor", Subject::None, errno),
        })?;
        self.slots.insert(slot, placed);
        Ok(())
    }

    /// The descriptor in a slot.
    pub fn get(&self, slot: i32) -> Option<BorrowedFd<'_>> {
        self.slots.get(&slot).map(AsFd::as_fd)
    }

    /// Opens a file that is neither a terminal nor /dev/tty, in its slot: one line for each kind.
    pub fn open_file(&mut self, images: &Images, file: &pb::FileEntry, slot: i32) -> Result<()> {
        let fd = if let Some(pipe) = &file.pipe {
            self.pipes.end(pipe)?
        } else if let Some(fifo) = &file.fifo {
            self.pipes.fifo_end(images, fifo)?
        } else if let Some(eventfd) = &file.efd {
            eventfd::open(images, eventfd)?
        } else if let Some(epoll) = &file.epfd {
            epoll::open(epoll)?
        } else if let Some(signalfd) = &file.sgfd {
            signalfd::open(signalfd)?
        } else if let Some(timerfd) = &file.tfd {
            timerfd::open(images, timerfd)?
        } else if let Some(inotify) = &file.ify {
            inotify::open(inotify)?
        } else if let Some(memfd) = &file.memfd {
            self.memfds.open(memfd)?
        } else if let Some(reg) = &file.reg {
            let fd = match self.removed.open(images, reg)? {
                Some(fd) => fd,
                None => regular::open_again(reg)?,
            };
            regular::settle(fd, reg, self.changed, &mut self.notes)?
        } else {
            return Err(Error::failed(format!(
                "file {} of the images is of a kind that cannot be restored yet",
                file.id
            )));
        };
        self.place(slot, fd)
    }

    /// Opens the pages of an image, which no table has.
    pub fn open_pages(&mut self, path: &Path, slot: i32) -> Result<()> {
        let fd = regular::open_path(path, libc::O_RDONLY)?;
        self.place(slot, fd)
    }
}
