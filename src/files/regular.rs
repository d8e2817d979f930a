//! Files, directories and devices that are opened again by their path: flags, position, size.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::files::dump::Description;
use crate::files::kind::FileKind;
use crate::files::removed;
use crate::image::pb;

/// Records a description by its path.
pub fn record(description: &Description<'_>) -> pb::FileEntry {
    let (pid, descriptor) = (description.table.pid, description.descriptor);
    let metadata = std::fs::metadata(format!("/proc/{pid}/fd/{}", descriptor.fd)).ok();
    let pos = descriptor.info.pos.max(0) as u64;
    let path = match descriptor.kind {
        FileKind::Removed => removed::name(&descriptor.link).as_bytes(),
        _ => descriptor.link.as_bytes(),
    };
    reg_entry(description.id.0, path, description.flags, pos, description.fown, metadata.as_ref())
}

/// The entry of what a path names.
pub fn reg_entry(
    id: u32,
    path: &[u8],
    flags: u32,
    pos: u64,
    fown: pb::FownEntry,
    metadata: Option<&std::fs::Metadata>,
) -> pb::FileEntry {
    use std::os::unix::fs::MetadataExt;
    let reg = pb::RegFileEntry {
        id,
        flags,
        pos,
        fown,
        name: path.to_vec(),
        // Only a regular file's size has to be the same at the restore.
        size: metadata.filter(|metadata| metadata.is_file()).map(MetadataExt::size),
        mode: metadata.map(MetadataExt::mode),
        ..Default::default()
    };
    pb::FileEntry { r#type: pb::FdTypes::Reg as i32, id, reg: Some(reg), ..Default::default() }
}

/// Flags of open(2) that would change something when a file is opened again, or that are not the description's.
pub const NOT_AGAIN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC;

/// Opens a path; it does not become anybody's controlling terminal.
pub fn open_path(path: &Path, flags: i32) -> Result<OwnedFd> {
    open(path, OFlag::from_bits_retain(flags | libc::O_CLOEXEC | libc::O_NOCTTY), Mode::empty())
        .map_err(|errno| Error::sys("opening", Subject::Path(path.into()), errno))
}

/// What becomes of files that have changed since the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangedFiles {
    #[default]
    Refuse,
    Allow,
}

/// Opens a path again, as it was.
pub fn open_again(reg: &pb::RegFileEntry) -> Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(&reg.name));
    let flags = reg.flags as i32 & !NOT_AGAIN;
    match open_path(path, flags) {
        Err(Error::Sys { errno: Errno::ENOENT, .. }) => {
            Err(Error::failed(format!("{} is gone; put it back, then restore again", path.display())))
        }
        result => result,
    }
}

/// Puts the position of a description back. A regular file has to be as long as it was, or it is noted that it is not.
pub fn settle(fd: OwnedFd, reg: &pb::RegFileEntry, changed: ChangedFiles, notes: &mut Vec<String>) -> Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(&reg.name));
    let flags = reg.flags as i32;
    if flags & libc::O_PATH != 0 {
        return Ok(fd);
    }
    let now = nix::sys::stat::fstat(&fd).during("looking at", Subject::Path(path.into()))?;
    let size = u64::try_from(now.st_size).unwrap_or(0);
    let regular = now.st_mode & libc::S_IFMT == libc::S_IFREG;
    if let Some(recorded) = reg.size.filter(|recorded| regular && *recorded != size) {
        let note = format!("{} has {size} bytes now and had {recorded} at the dump", path.display());
        if changed == ChangedFiles::Refuse {
            return Err(Error::failed(format!(
                "{note}; put the file back as it was, or restore with --allow-changed-files"
            )));
        }
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    seek(&fd, reg.pos)?;
    Ok(fd)
}

/// Puts a position back, in bytes.
pub fn seek(fd: &OwnedFd, pos: u64) -> Result<()> {
    if pos == 0 {
        return Ok(());
    }
    let pos = i64::try_from(pos).unwrap_or(i64::MAX);
    nix::unistd::lseek(fd, pos, nix::unistd::Whence::SeekSet).during("positioning a file", Subject::None).map(drop)
}
