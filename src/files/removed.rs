//! Removed files that are still open, mapped or running: their content is kept in the image, as CRIU's ghost files.
//!
//! The content is read through the link of /proc that leads to the file. On the way back the file is made under its name, unlinked at once, filled, and
//! opened through /proc/self/fd for each description. A file of O_TMPFILE, which may still get a name, is made by O_TMPFILE again. The number of the
//! inode is a new one.
//!
//! Refused: a file over the limit of the dump, one of another file system than its path leads to (kernel objects among them), one with extended
//! attributes or with a lease, one that has another name left (see [`FileKind::Hidden`](super::kind::FileKind)).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, lseek};

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::files::regular::{NOT_AGAIN, open_path};
use crate::ids::Pid;
use crate::image::{GhostContent, GhostFile, Images, pb};
use crate::sys::process::attributes::has_attributes;

/// What the kernel shows behind the name.
const SUFFIX: &[u8] = b" (deleted)";
/// O_TMPFILE without the O_DIRECTORY in it.
const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Who has a file, for refusals.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub pid: Pid,
    pub comm: &'a str,
    pub fd: Option<i32>,
}

impl Holder<'_> {
    /// The refusal of what it has: a noun phrase, and what the user can do.
    pub fn refuse(&self, kind: impl Into<String>, remedy: &str) -> Error {
        let (pid, comm, fd) = (self.pid, self.comm.to_owned(), self.fd);
        Error::Refused(Refusal { pid, comm, fd, kind: kind.into(), remedy: remedy.into() })
    }
}

/// The removed files of a tree, each with the number that the images give to it.
#[derive(Debug)]
pub struct Removed {
    /// In bytes of content; `None` where no content is wanted.
    limit: Option<u64>,
    known: BTreeMap<(u64, u64), u32>,
}

impl Removed {
    pub fn new(limit: Option<u64>) -> Removed {
        Removed { limit, known: BTreeMap::new() }
    }

    /// Makes a file entry lead to the removed file behind a link of /proc; its content is recorded on first sight.
    pub fn keep(
        &mut self,
        images: &mut Images,
        entry: u32,
        link: &Path,
        name: &OsStr,
        holder: Holder<'_>,
    ) -> Result<()> {
        let metadata = std::fs::metadata(link).during("looking at", Subject::Path(link.into()))?;
        let key = (metadata.dev(), metadata.ino());
        let next = self.known.len() as u32 + 1;
        let remap_id = *self.known.entry(key).or_insert(next);
        images.remaps.push(pb::RemapFilePathEntry {
            orig_id: entry,
            remap_id,
            remap_type: Some(pb::RemapType::Ghost as i32),
        });
        let Some(limit) = self.limit.filter(|_| remap_id == next) else { return Ok(()) };
        refuse_strange(link, name, &metadata, limit, holder)?;
        images.ghosts.insert(remap_id, read(link, &metadata)?);
        let ns = |seconds: i64, rest: i64| Some(seconds.saturating_mul(1_000_000_000).saturating_add(rest));
        images.own.get_or_insert_default().removed.push(pb::PtyagentRemoved {
            remap_id: Some(remap_id),
            atime_ns: ns(metadata.atime(), metadata.atime_nsec()),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        });
        Ok(())
    }
}

/// Whether the kernel says so behind a name, which a file may also have as its name.
pub fn is_removed(link: &OsStr) -> bool {
    link.as_bytes().ends_with(SUFFIX)
}

/// The path that a removed file had.
pub fn name(link: &OsStr) -> &OsStr {
    OsStr::from_bytes(link.as_bytes().strip_suffix(SUFFIX).unwrap_or(link.as_bytes()))
}

fn refuse_strange(link: &Path, name: &OsStr, metadata: &Metadata, limit: u64, holder: Holder<'_>) -> Result<()> {
    let display = Path::new(name).display();
    let refuse = |kind: String, remedy: &str| Err(holder.refuse(kind, remedy));
    const END: &str = "end the program that uses it, then dump again";
    if !metadata.is_file() || metadata.nlink() != 0 || place(Path::new(name)) != Some(metadata.dev()) {
        return refuse(format!("the removed object {display}, whose place cannot be told"), END);
    }
    // Holes are no content.
    let size = metadata.size().min(metadata.blocks() * 512);
    if size > limit {
        let remedy = format!("let the program close it, or keep it with --ghost-limit {size}");
        return refuse(format!("the removed file {display} of {size} bytes, over the limit of {limit}"), &remedy);
    }
    match has_attributes(link) {
        Ok(true) => refuse(format!("the removed file {display} with extended attributes"), END),
        _ => Ok(()),
    }
}

/// The file system of the nearest directory above a path that is there.
fn place(path: &Path) -> Option<u64> {
    path.ancestors().skip(1).find_map(|dir| std::fs::metadata(dir).ok()).map(|dir| dir.dev())
}

fn read(link: &Path, metadata: &Metadata) -> Result<GhostFile> {
    let subject = || Subject::Path(link.into());
    let opened = |flags: i32| OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(link);
    let file = opened(libc::O_NOATIME).or_else(|_| opened(0)).during("opening", subject())?;
    let size = metadata.size();
    let mut chunks = Vec::new();
    let mut at = 0u64;
    while at < size {
        let seek = |whence| lseek(&file, i64::try_from(at).unwrap_or(i64::MAX), whence);
        let start = match seek(Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            result => result.during("looking for data in a removed file", subject())? as u64,
        };
        let end = lseek(&file, i64::try_from(start).unwrap_or(i64::MAX), Whence::SeekHole)
            .during("looking for holes in a removed file", subject())? as u64;
        let mut data = vec![0u8; usize::try_from(end.min(size).saturating_sub(start)).unwrap_or(0)];
        file.read_exact_at(&mut data, start).during("reading", subject())?;
        chunks.push((start, data));
        at = end.max(start + 1);
    }
    let time = |seconds: i64, nanoseconds: i64| {
        Some(pb::Timeval { tv_sec: seconds as u64, tv_usec: nanoseconds as u64 / 1000 })
    };
    let content = match chunks.as_slice() {
        [] if size == 0 => GhostContent::Whole(Vec::new()),
        [(0, data)] if data.len() as u64 == size => GhostContent::Whole(chunks.swap_remove(0).1),
        _ => GhostContent::Chunks(chunks),
    };
    let entry = pb::GhostFileEntry {
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode(),
        atim: time(metadata.atime(), metadata.atime_nsec()),
        mtim: time(metadata.mtime(), metadata.mtime_nsec()),
        chunks: matches!(content, GhostContent::Chunks(_)).then_some(true),
        size: Some(size),
        ..Default::default()
    };
    Ok(GhostFile { entry, content })
}

/// The number of the removed file that a file entry leads to.
pub fn remap_of(images: &Images, entry: u32) -> Option<u32> {
    images.remaps.iter().find(|remap| remap.orig_id == entry).map(|remap| remap.remap_id)
}

/// The removed files of a restore by their numbers.
#[derive(Debug, Default)]
pub struct Remade {
    made: BTreeMap<u32, Made>,
    /// What could not be made as it was, one sentence each.
    pub notes: Vec<String>,
}

/// One of them.
#[derive(Debug)]
struct Made {
    /// Opened with O_PATH, so that the file counts as written by nobody and may be a program.
    path: OwnedFd,
    /// The description of O_TMPFILE and its id.
    first: Option<(u32, OwnedFd)>,
}

impl Remade {
    /// A new description of a removed file; `None` where the entry leads to none. The position is the caller's.
    pub fn open(&mut self, images: &Images, reg: &pb::RegFileEntry) -> Result<Option<OwnedFd>> {
        let Some(remap_id) = remap_of(images, reg.id) else { return Ok(None) };
        if !self.made.contains_key(&remap_id) {
            let made = self.make(images, remap_id, reg)?;
            self.made.insert(remap_id, made);
        }
        let missing = || Error::failed("a removed file that is not in the images");
        let made = self.made.get_mut(&remap_id).ok_or_else(missing)?;
        if let Some((_, fd)) = made.first.take_if(|(id, _)| *id == reg.id) {
            return Ok(Some(fd));
        }
        again(made.path.as_fd(), reg.flags as i32 & !NOT_AGAIN & !libc::O_NOFOLLOW & !libc::O_TMPFILE).map(Some)
    }

    fn make(&mut self, images: &Images, remap_id: u32, reg: &pb::RegFileEntry) -> Result<Made> {
        let missing = || Error::failed("a removed file whose content is not in the images");
        let ghost = images.ghosts.get(&remap_id).ok_or_else(missing)?;
        let path = PathBuf::from(OsStr::from_bytes(&reg.name));
        let unnamed = |id: &u32| images.reg(*id).filter(|reg| reg.flags as i32 & TMPFILE != 0);
        let entries = images.remaps.iter().filter(|remap| remap.remap_id == remap_id).map(|remap| remap.orig_id);
        let unnamed = entries.filter_map(|id| unnamed(&id)).next();
        let parents = Parents::make(&path)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let fd = match unnamed {
            Some(unnamed) => open_tmpfile(dir, unnamed.flags as i32 & !NOT_AGAIN)?,
            None => self.create(&path, dir)?,
        };
        drop(parents);
        let made = again(fd.as_fd(), libc::O_PATH)?;
        fill(made.as_fd(), ghost)?;
        Ok(Made { path: made, first: unnamed.map(|unnamed| (unnamed.id, fd)) })
    }

    /// Gives all of them their times, which opening and mapping have changed.
    pub fn finish(&self, images: &Images) -> Result<()> {
        for (remap_id, made) in &self.made {
            let Some(ghost) = images.ghosts.get(remap_id) else { continue };
            let own = images.own.iter().flat_map(|own| &own.removed).find(|own| own.remap_id == Some(*remap_id));
            let coarse = |time: pb::Timeval| TimeSpec::new(time.tv_sec as i64, time.tv_usec as i64 * 1000);
            let fine = |ns: i64| TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
            let atime = own.and_then(|own| own.atime_ns).map(fine).or(ghost.entry.atim.map(coarse));
            let mtime = own.and_then(|own| own.mtime_ns).map(fine).or(ghost.entry.mtim.map(coarse));
            let Some((atime, mtime)) = atime.zip(mtime) else { continue };
            let link = format!("/proc/self/fd/{}", made.path.as_raw_fd());
            utimensat(nix::fcntl::AT_FDCWD, link.as_str(), &atime, &mtime, UtimensatFlags::FollowSymlink)
                .during("giving a removed file its times", Subject::None)?;
        }
        Ok(())
    }

    /// A new file that has had this name, if nobody else has it now.
    fn create(&mut self, path: &Path, dir: &Path) -> Result<OwnedFd> {
        let subject = || Subject::Path(path.into());
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::from_bits_retain(0o600)) {
            Ok(fd) => {
                nix::unistd::unlink(path).during("removing", subject())?;
                Ok(fd)
            }
            Err(Errno::EEXIST) => {
                let shown = path.display();
                self.notes.push(format!("{shown} is another file now; the removed one shows another name in /proc"));
                open_tmpfile(dir, libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL)
            }
            Err(errno) => Err(Error::sys("making", subject(), errno)),
        }
    }
}

fn open_tmpfile(dir: &Path, flags: i32) -> Result<OwnedFd> {
    open(dir, OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC, Mode::from_bits_retain(0o600))
        .during("making a file without a name", Subject::Path(dir.into()))
}

/// A new description of an open file.
fn again(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    open_path(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())), flags)
}

/// Gives a new file its content, owner and mode.
fn fill(made: BorrowedFd<'_>, ghost: &GhostFile) -> Result<()> {
    let writer = File::from(again(made, libc::O_WRONLY)?);
    let whole;
    let (size, chunks): (u64, &[(u64, Vec<u8>)]) = match &ghost.content {
        GhostContent::Whole(data) => {
            whole = [(0, data.clone())];
            (data.len() as u64, &whole)
        }
        GhostContent::Chunks(chunks) => {
            let end = chunks.last().map_or(0, |(at, data)| at + data.len() as u64);
            (ghost.entry.size.unwrap_or(end), chunks)
        }
    };
    writer.set_len(size).during("sizing a removed file", Subject::None)?;
    for (at, data) in chunks {
        writer.write_all_at(data, *at).during("filling a removed file", Subject::None)?;
    }
    let entry = &ghost.entry;
    let now = writer.metadata().during("looking at a removed file", Subject::None)?;
    if (now.uid(), now.gid()) != (entry.uid, entry.gid) {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchown(&writer, Some(uid), Some(gid)).during("giving a removed file its owner", Subject::None)?;
    }
    writer
        .set_permissions(Permissions::from_mode(entry.mode & 0o7777))
        .during("giving a removed file its mode", Subject::None)
}

/// Directories that are there for a moment, because those of a removed file are gone as well.
struct Parents(Vec<PathBuf>);

impl Parents {
    fn make(path: &Path) -> Result<Parents> {
        let mut made = Parents(Vec::new());
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            let create = std::fs::DirBuilder::new().mode(0o700).create(dir);
            create.during("making a directory for a removed file", Subject::Path(dir.into()))?;
            made.0.push(dir.into());
        }
        Ok(made)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        // One that somebody has put something into stays.
        self.0.iter().rev().for_each(|dir| _ = std::fs::remove_dir(dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stay_holes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"end", 1 << 20).unwrap();
        file.set_len(2 << 20).unwrap();
        let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let ghost = read(&link, &file.metadata().unwrap()).unwrap();
        let GhostContent::Chunks(chunks) = &ghost.content else { panic!("no chunks") };
        assert!(chunks.iter().map(|(_, data)| data.len()).sum::<usize>() < 100_000);
        let copy = tempfile::tempfile().unwrap();
        fill(copy.as_fd(), &ghost).unwrap();
        let again = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        assert_eq!(read(&again, &copy.metadata().unwrap()).unwrap(), ghost);
        assert_eq!(copy.metadata().unwrap().len(), 2 << 20);
    }

    #[test]
    fn a_name_is_what_precedes_the_suffix() {
        assert_eq!(name(OsStr::new("/a (deleted)")), "/a");
        assert_eq!(name(OsStr::new("/a (deleted) (deleted)")), "/a (deleted)");
    }
}
