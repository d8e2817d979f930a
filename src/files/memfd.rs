//! memfd_create(2): memory files with their name, size, content, mode, owner and seals, shared by whoever has them open or mapped.
//!
//! The content is read through a link of /proc, holes left out. On the way back the file is made anew, and opened through /proc/self/fd for each description.
//! Seals come last, when all that shows it is mapped: one against writing keeps the mappings that were there before.
//!
//! Refused: memory files of huge pages and secret ones, one whose name is no text, one that a process outside the tree has too (see `outside`), a
//! program that runs from one (the survey).

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown};

use crate::error::{Context, Error, Result, Subject};
use crate::files::regular::{self, NOT_AGAIN, open_path};
use crate::files::removed::{self, Holder};
use crate::image::{Digest, Images, Kind, pb};
use crate::mem::pages::{PAGE, PageRange};
use crate::mem::shared;
use crate::sys::process::memfd_create;

/// What the kernel puts before the name.
const PREFIX: &[u8] = b"/memfd:";
/// memfd_create(2) and fcntl(2), Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
const F_SEAL_EXEC: u32 = 0x20;

/// The memory files of a tree.
#[derive(Debug, Default)]
pub struct Memfds {
    /// What the images know them by, by device and inode.
    known: BTreeMap<(u64, u64), u32>,
    /// For their content, with their shmid.
    pub sources: Vec<(u32, File)>,
}

impl Memfds {
    /// The number of the memory file behind a link of /proc, which is recorded on first sight.
    pub fn of(&mut self, images: &mut Images, link: &Path, name: &OsStr, holder: Holder<'_>) -> Result<u32> {
        let subject = || Subject::Path(link.into());
        let file = File::open(link).during("opening", subject())?;
        let metadata = file.metadata().during("looking at", subject())?;
        let next = self.known.len() as u32 + 1;
        let inode_id = *self.known.entry((metadata.dev(), metadata.ino())).or_insert(next);
        if inode_id != next {
            return Ok(inode_id);
        }
        let name = removed::name(name).as_bytes();
        let Ok(name) = std::str::from_utf8(name.strip_prefix(PREFIX).unwrap_or(name)) else {
            return Err(holder.refuse(
                format!("a memory file whose name is no text ({})", name.escape_ascii()),
                "end the program that uses it, then dump again",
            ));
        };
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).during("asking for the seals of a memory file", subject())?;
        let shmid = shared::of_inode(metadata.ino());
        images.memfds.push(pb::MemfdInodeEntry {
            name: name.to_owned(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.size(),
            shmid,
            seals: seals as u32,
            inode_id: inode_id.into(),
            hugetlb_flag: None,
            mode: Some(metadata.mode()),
        });
        self.sources.push((shmid, file));
        Ok(inode_id)
    }
}

/// The entry of a description of a memory file, or of a mapping.
pub fn entry(id: u32, inode_id: u32, flags: u32, pos: u64, fown: pb::FownEntry) -> pb::FileEntry {
    let memfd = pb::MemfdFileEntry { id, flags, pos, fown, inode_id };
    pb::FileEntry { r#type: pb::FdTypes::Memfd as i32, id, memfd: Some(memfd), ..Default::default() }
}

/// Copies the content to the start of `out`; yields which pages these are, by their offsets, and their digest.
pub fn copy(source: &File, out: &File) -> Result<(Vec<PageRange>, Digest)> {
    let size = source.metadata().during("looking at a memory file", Subject::None)?.size();
    let ranges = shared::data(source, size)?;
    let digest = shared::copy(source, &ranges, out)?;
    Ok((ranges, digest))
}

/// The memory files of a restore by their numbers, as memfd_create(2) gave them.
#[derive(Debug, Default)]
pub struct Remade(BTreeMap<u64, OwnedFd>);

impl Remade {
    /// Makes one with its content, without its seals.
    pub fn make(&mut self, images: &Images, dir: &Path, inode: &pb::MemfdInodeEntry) -> Result<()> {
        let name =
            CString::new(inode.name.as_str()).map_err(|_| Error::failed("a memory file with a NUL in its name"))?;
        let fd = create(&name, inode)?;
        let file = File::from(fd);
        file.set_len(inode.size).during("sizing a memory file", Subject::None)?;
        if let Some(pagemap) = images.shmem_pagemaps.get(&inode.shmid) {
            let path = dir.join(Kind::Pages(pagemap.head.pages_id).name());
            let pages = File::open(&path).during("opening", Subject::Path(path.clone()))?;
            let mut from = 0;
            for run in &pagemap.entries {
                let len = (run.pages() * PAGE).min(inode.size.saturating_sub(run.vaddr));
                fill(&file, &pages, run.vaddr, from, len)?;
                from += run.pages() * PAGE;
            }
        }
        let now = file.metadata().during("looking at a memory file", Subject::None)?;
        if (now.uid(), now.gid()) != (inode.uid, inode.gid) {
            let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
            fchown(&file, Some(uid), Some(gid)).during("giving a memory file its owner", Subject::None)?;
        }
        if let Some(mode) = inode.mode.filter(|mode| *mode != now.mode()) {
            let mode = Permissions::from_mode(mode & 0o7777);
            file.set_permissions(mode).during("giving a memory file its mode", Subject::None)?;
        }
        self.0.insert(inode.inode_id, file.into());
        Ok(())
    }

    /// A new description of one.
    pub fn open(&self, memfd: &pb::MemfdFileEntry) -> Result<OwnedFd> {
        let missing = || Error::failed("a memory file that is not in the images");
        let file = self.0.get(&u64::from(memfd.inode_id)).ok_or_else(missing)?;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let fd = open_path(Path::new(&link), memfd.flags as i32 & !NOT_AGAIN)?;
        if memfd.flags as i32 & libc::O_PATH == 0 {
            regular::seek(&fd, memfd.pos)?;
        }
        Ok(fd)
    }

    /// Seals all of them as they were.
    pub fn seal(&self, images: &Images) -> Result<()> {
        for inode in &images.memfds {
            let Some(file) = self.0.get(&inode.inode_id) else { continue };
            let seals = SealFlag::from_bits_retain(inode.seals as i32);
            let had =
                fcntl(file, FcntlArg::F_GET_SEALS).during("asking for the seals of a memory file", Subject::None)?;
            if had as u32 != inode.seals {
                fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).during("sealing a memory file", Subject::None)?;
            }
        }
        Ok(())
    }
}

fn create(name: &CString, inode: &pb::MemfdInodeEntry) -> Result<OwnedFd> {
    let executable = inode.mode.is_none_or(|mode| mode & 0o111 != 0);
    let kind = if inode.seals & F_SEAL_EXEC != 0 && !executable { MFD_NOEXEC_SEAL } else { MFD_EXEC };
    match memfd_create(name, libc::MFD_ALLOW_SEALING | kind) {
        // Before Linux 6.3 all of them are executable.
        Err(Errno::EINVAL) if inode.seals & F_SEAL_EXEC == 0 => memfd_create(name, libc::MFD_ALLOW_SEALING),
        result => result,
    }
    .during("making a memory file", Subject::None)
}

fn fill(file: &File, pages: &File, mut at: u64, mut from: u64, mut len: u64) -> Result<()> {
    let mut buffer = vec![0u8; usize::try_from(len.min(1 << 20)).unwrap_or(0)];
    while len > 0 {
        let part = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let bytes = &mut buffer[..part];
        pages.read_exact_at(bytes, from).during("reading the pages of a memory file", Subject::None)?;
        file.write_all_at(bytes, at).during("filling a memory file", Subject::None)?;
        (at, from, len) = (at + part as u64, from + part as u64, len - part as u64);
    }
    Ok(())
}
