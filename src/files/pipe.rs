//! Pipes and FIFOs: their ends, their capacity, and the bytes that wait in them.
//!
//! The content is read through the controller's own copy of a reading end with tee(2), which takes nothing out. On restore a pipe is held open at
//! both ends until the tasks have theirs, so that no open blocks and nothing that is put back is lost.
//!
//! Refused: a pipe in packet mode, and one with an end outside the tree (see `outside`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::{Description, Recorder};
use crate::files::regular::{self, NOT_AGAIN, open_path};
use crate::image::{Images, PipeData, pb};
use crate::sys::tty;

/// The numbers that the images give to pipes and FIFOs, by inode.
#[derive(Debug, Default)]
pub struct PipeIds(BTreeMap<u64, u32>);

impl PipeIds {
    fn of(&mut self, inode: u64) -> u32 {
        let next = self.0.len() as u32 + 1;
        *self.0.entry(inode).or_insert(next)
    }
}

/// An end of an anonymous pipe; the content is recorded on first sight of a reading end.
pub fn record(images: &mut Images, ids: &mut PipeIds, description: &Description<'_>) -> Result<pb::FileEntry> {
    let flags = description.flags;
    if flags & libc::O_DIRECT as u32 != 0 {
        let remedy = "end the program that uses it, then dump again";
        return Err(description.refuse("a pipe in packet mode (O_DIRECT)", remedy));
    }
    let id = ids.of(description.descriptor.stat.inode);
    if description.reads() && !images.pipes_data.iter().any(|data| data.entry.pipe_id == id) {
        images.pipes_data.push(content(id, description.copy)?);
    }
    let pipe = pb::PipeEntry { id: description.id.0, pipe_id: id, flags, fown: description.fown };
    Ok(pb::FileEntry { pipe: Some(pipe), ..description.entry(pb::FdTypes::Pipe) })
}

/// An opened FIFO, with its path.
pub fn record_fifo(recorder: &mut Recorder<'_>, description: &Description<'_>) -> Result<pb::FileEntry> {
    let Recorder { images, pipes, ids, .. } = recorder;
    let pipe_id = pipes.of(description.descriptor.stat.inode);
    if description.reads() && !images.fifo_data.iter().any(|data| data.entry.pipe_id == pipe_id) {
        images.fifo_data.push(content(pipe_id, description.copy)?);
    }
    let path = description.descriptor.link.as_bytes();
    let regf_id = ids.fresh();
    images.files.push(regular::reg_entry(regf_id, path, description.flags, 0, description.fown, None));
    let fifo = pb::FifoEntry { id: description.id.0, pipe_id, regf_id: Some(regf_id) };
    Ok(pb::FileEntry { fifo: Some(fifo), ..description.entry(pb::FdTypes::Fifo) })
}

/// What waits in a pipe, and its capacity in bytes, without taking anything out.
fn content(pipe_id: u32, reader: BorrowedFd<'_>) -> Result<PipeData> {
    use nix::fcntl::{SpliceFFlags, tee};
    let size = fcntl(reader, FcntlArg::F_GETPIPE_SZ).during("asking a pipe for its size", Subject::None)?;
    let (copy_reader, copy_writer) = nix::unistd::pipe().during("making a pipe", Subject::None)?;
    fcntl(&copy_writer, FcntlArg::F_SETPIPE_SZ(size)).during("sizing a pipe", Subject::None)?;
    let wanted = usize::try_from(size).unwrap_or(0);
    let copied = match tee(reader, copy_writer.as_fd(), wanted, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Err(nix::errno::Errno::EAGAIN) => 0,
        result => result.during("copying what is in a pipe", Subject::None)?,
    };
    let mut data = vec![0u8; copied];
    let mut done = 0;
    while done < copied {
        done += nix::unistd::read(&copy_reader, &mut data[done..]).during("reading a pipe", Subject::None)?;
    }
    let unread = crate::sys::tty::unread(reader).during("asking a pipe for its content", Subject::None)?;
    if usize::try_from(unread).unwrap_or(0) != copied {
        return Err(Error::failed(format!(
            "a pipe holds {unread} bytes of which only {copied} could be copied; let the reader go on and dump again"
        )));
    }
    let entry = pb::PipeDataEntry { pipe_id, bytes: copied as u32, size: Some(size as u32) };
    Ok(PipeData { entry, data })
}

/// As the kernel shows it; libc has 0 for it on this target.
const O_LARGEFILE: i32 = 0o100000;
/// What F_SETFL can set and open(2) of a pipe end cannot.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;

/// The pipes of a restore by their numbers, open at both ends.
#[derive(Debug, Default)]
pub struct Pipes {
    pipes: BTreeMap<u32, (OwnedFd, OwnedFd)>,
    fifos: BTreeMap<u32, OwnedFd>,
}

impl Pipes {
    /// Makes an anonymous pipe of the recorded capacity with what was in it.
    pub fn make(&mut self, images: &Images, id: u32) -> Result<()> {
        let (reader, writer) = nix::unistd::pipe().during("making a pipe", Subject::None)?;
        if let Some(data) = images.pipes_data.iter().find(|data| data.entry.pipe_id == id) {
            fill(writer.as_fd(), data)?;
        }
        self.pipes.insert(id, (reader, writer));
        Ok(())
    }

    /// Each description of an end is one of its own. The one that pipe(2) made has no O_LARGEFILE, which F_SETFL cannot take away
    /// either; those that were opened through /proc have it.
    pub fn end(&self, pipe: &pb::PipeEntry) -> Result<OwnedFd> {
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

    /// A description of a FIFO.
    pub fn fifo_end(&mut self, images: &Images, fifo: &pb::FifoEntry) -> Result<OwnedFd> {
        let reg = fifo.regf_id.and_then(|id| images.reg(id)).ok_or_else(|| Error::failed("a FIFO without a path"))?;
        let path = Path::new(OsStr::from_bytes(&reg.name));
        if let Entry::Vacant(vacant) = self.fifos.entry(fifo.pipe_id) {
            let both = open_path(path, libc::O_RDWR | libc::O_NONBLOCK)?;
            let data = images.fifo_data.iter().find(|data| data.entry.pipe_id == fifo.pipe_id);
            // What is there was kept by somebody outside who still has the FIFO open.
            let kept =
                tty::unread(both.as_fd()).during("asking a FIFO for its content", Subject::Path(path.into()))? > 0;
            if let Some(data) = data.filter(|_| !kept) {
                fill(both.as_fd(), data)?;
            }
            vacant.insert(both);
        }
        open_path(path, reg.flags as i32 & !NOT_AGAIN)
    }
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
