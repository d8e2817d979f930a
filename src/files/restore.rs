//! Opening files again: once each, in the restore itself, under the number that the plan gives.
//!
//! Stubs inherit all of them. A named pipe and an anonymous one are held open at both ends until the tasks have theirs, so that no
//! open blocks and nothing that is put back is lost.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result, Subject};
use crate::image::{Images, PipeData, pb};
use crate::sys::file::duplicate_to;

/// Flags of open(2) that would change something when a file is opened again, or that are not the description's.
const NOT_AGAIN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC;
/// As the kernel shows it; libc has 0 for it on this target.
const O_LARGEFILE: i32 = 0o100000;
/// What F_SETFL can set and open(2) of a pipe end cannot.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;

/// Open files by their slots, and the pipes that they lead to.
#[derive(Debug, Default)]
pub struct Opened {
    slots: BTreeMap<i32, OwnedFd>,
    pipes: BTreeMap<u32, (OwnedFd, OwnedFd)>,
    fifos: BTreeMap<u32, OwnedFd>,
}

impl Opened {
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

    /// Makes an anonymous pipe of the recorded capacity with what was in it.
    pub fn open_pipe(&mut self, images: &Images, id: u32) -> Result<()> {
        let (reader, writer) = nix::unistd::pipe().during("making a pipe", Subject::None)?;
        if let Some(data) = images.pipes_data.iter().find(|data| data.entry.pipe_id == id) {
            fill(writer.as_fd(), data)?;
        }
        self.pipes.insert(id, (reader, writer));
        Ok(())
    }

    /// Opens a file that is neither a terminal nor /dev/tty, in its slot.
    pub fn open_file(&mut self, images: &Images, file: &pb::FileEntry, slot: i32) -> Result<()> {
        let fd = if let Some(pipe) = &file.pipe {
            self.pipe_end(pipe)?
        } else if let Some(fifo) = &file.fifo {
            self.fifo_end(images, file, fifo)?
        } else if let Some(reg) = &file.reg {
            open_reg(reg)?
        } else {
            return Err(Error::failed(format!(
                "file {} of the images is of a kind that cannot be restored yet",
                file.id
            )));
        };
        self.place(slot, fd)
    }

    /// Each description of an end is one of its own. The one that pipe(2) made has no O_LARGEFILE, which F_SETFL cannot take away
    /// either; those that were opened through /proc have it.
    fn pipe_end(&self, pipe: &pb::PipeEntry) -> Result<OwnedFd> {
        let (reader, writer) =
            self.pipes.get(&pipe.pipe_id).ok_or_else(|| Error::failed("an end of a pipe that is not in the images"))?;
        let flags = pipe.flags as i32;
        let end = if flags & libc::O_ACCMODE == libc::O_WRONLY { writer } else { reader };
        if flags & O_LARGEFILE != 0 {
            return reopen(end.as_fd(), flags);
        }
        let set = OFlag::from_bits_retain(flags & SETTABLE);
        fcntl(end, FcntlArg::F_SETFL(set)).during("setting the flags of a pipe", Subject::None)?;
        end.try_clone().map_err(|error| Error::io("copying a descriptor", Subject::None, &error))
    }

    fn fifo_end(&mut self, images: &Images, file: &pb::FileEntry, fifo: &pb::FifoEntry) -> Result<OwnedFd> {
        let reg = file.reg.as_ref().ok_or_else(|| Error::failed("a FIFO without a path"))?;
        let path = Path::new(OsStr::from_bytes(&reg.name));
        if let std::collections::btree_map::Entry::Vacant(e) = self.fifos.entry(fifo.pipe_id) {
            let both = open_path(path, libc::O_RDWR | libc::O_NONBLOCK)?;
            if let Some(data) = images.fifo_data.iter().find(|data| data.entry.pipe_id == fifo.pipe_id) {
                fill(both.as_fd(), data)?;
            }
            e.insert(both);
        }
        open_path(path, reg.flags as i32 & !NOT_AGAIN)
    }

    /// Opens a file under no slot, and forgets nothing: for the pages.
    pub fn open_pages(&mut self, path: &Path, slot: i32) -> Result<()> {
        let fd = open_path(path, libc::O_RDONLY)?;
        self.place(slot, fd)
    }
}

fn open_path(path: &Path, flags: i32) -> Result<OwnedFd> {
    open(path, OFlag::from_bits_retain(flags | libc::O_CLOEXEC | libc::O_NOCTTY), Mode::empty())
        .map_err(|errno| Error::sys("opening", Subject::Path(path.into()), errno))
}

/// Opens a path again and puts the position back. A regular file has to be as long as it was.
fn open_reg(reg: &pb::RegFileEntry) -> Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(&reg.name));
    let flags = reg.flags as i32 & !NOT_AGAIN;
    let fd = open_path(path, flags)?;
    if flags & libc::O_PATH != 0 {
        return Ok(fd);
    }
    let now = nix::sys::stat::fstat(&fd).during("looking at", Subject::Path(path.into()))?;
    let size = u64::try_from(now.st_size).unwrap_or(0);
    let regular = now.st_mode & libc::S_IFMT == libc::S_IFREG;
    if let Some(recorded) = reg.size.filter(|recorded| regular && *recorded != size) {
        return Err(Error::failed(format!(
            "{} has {size} bytes now and had {recorded} at the dump; put the file back as it was, then restore again",
            path.display()
        )));
    }
    if reg.pos != 0 {
        let pos = i64::try_from(reg.pos).unwrap_or(i64::MAX);
        nix::unistd::lseek(&fd, pos, nix::unistd::Whence::SeekSet).during("positioning", Subject::Path(path.into()))?;
    }
    Ok(fd)
}

/// A new description of an open pipe end.
fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    // Opening a pipe for reading or writing alone may wait for the other end, which is open in this very process.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let again = open_path(Path::new(&link), flags & (libc::O_ACCMODE | SETTABLE))?;
    Ok(again)
}

/// Sizes a pipe and writes what was in it.
fn fill(writer: BorrowedFd<'_>, data: &PipeData) -> Result<()> {
    if let Some(size) = data.entry.size {
        let size = i32::try_from(size).unwrap_or(i32::MAX);
        fcntl(writer, FcntlArg::F_SETPIPE_SZ(size)).during("sizing a pipe", Subject::None)?;
    }
    let mut rest = data.data.as_slice();
    while !rest.is_empty() {
        let written = nix::unistd::write(writer, rest).during("filling a pipe", Subject::None)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// The owner and signal of O_ASYNC, after the processes are there.
pub fn restore_owner(fd: BorrowedFd<'_>, own: &pb::PtyagentOfd) -> Result<()> {
    use crate::sys::process::files::{as_user, set_owner, set_owner_signal};
    if let (Some(kind), Some(pid)) = (own.owner_type, own.owner_pid) {
        // The kernel lets a signal through by the ids of who set the owner.
        let ids = own.owner_uid.zip(own.owner_euid);
        as_user(ids, || set_owner(fd, kind as i32, pid)).during("setting the owner of a file", Subject::None)?;
    }
    if let Some(signal) = own.owner_signal.filter(|signal| *signal != 0) {
        set_owner_signal(fd, signal as i32).during("setting the signal of a file", Subject::None)?;
    }
    let flags = own.flags.unwrap_or(0) as i32;
    if flags & libc::O_PATH == 0 && flags & libc::O_ASYNC != 0 {
        let now = fcntl(fd, FcntlArg::F_GETFL).during("asking for the flags of a file", Subject::None)?;
        let flags = OFlag::from_bits_retain(now | libc::O_ASYNC);
        fcntl(fd, FcntlArg::F_SETFL(flags)).during("setting the flags of a file", Subject::None)?;
    }
    Ok(())
}
