//! Shared memory without a file, anonymous or of System V (see `segment`): objects of the kernel's own that several tasks may show at several addresses.
//!
//! An object is known by its inode, or by the id of its segment. Its content is read once, through /proc/PID/map_files where that may be opened
//! (CAP_CHECKPOINT_RESTORE), so that pages are found which none of today's tasks has touched; otherwise through a task that shows
//! all of it. On the way back the restore makes each object in its own memory at an address that no task uses; the tasks inherit it, show
//! it where they had it, and unmap what they inherited.
//!
//! Refused: an object that a process outside the tree shows too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::ids::Pid;
use crate::image::digest::{Digest, DigestStream};
use crate::image::{Images, Kind, pb};
use crate::procfs::Mapping;
use crate::sys::region::{Access as Attach, Reserve, SharedMemory};

use super::copy::{self, Access};
use super::pages::{PAGE, PageRange};
use super::{layout, segment};

/// Bytes that are read and written at a time.
const BLOCK: u64 = 1 << 20;

/// Whether a mapping shows such an object.
pub fn is_shown_by(mapping: &Mapping) -> bool {
    super::is_shared_anonymous(mapping) || segment::is_view(mapping)
}

/// The id of the object that a mapping shows.
pub fn id(mapping: &Mapping) -> u32 {
    if segment::is_view(mapping) { mapping.inode as u32 } else { of_inode(mapping.inode) }
}

/// The id of an object that is known by its inode: apart from those of segments, which are positive numbers of 32 bits.
pub fn of_inode(inode: u64) -> u32 {
    inode as u32 | 1 << 31
}

/// One object, and the mappings that show it.
#[derive(Debug)]
pub struct Object<'a> {
    pub id: u32,
    views: Vec<(Pid, &'a Mapping)>,
}

/// The objects that a tree shows.
pub fn objects<'a>(tree: impl IntoIterator<Item = (Pid, &'a [Mapping])>) -> Vec<Object<'a>> {
    let mut found: BTreeMap<u32, Object<'a>> = BTreeMap::new();
    for (pid, mappings) in tree {
        for mapping in mappings.iter().filter(|mapping| is_shown_by(mapping)) {
            let id = id(mapping);
            found.entry(id).or_insert(Object { id, views: Vec::new() }).views.push((pid, mapping));
        }
    }
    found.into_values().collect()
}

/// Refuses objects that a process outside the tree shows: it would go on with the one that the restored tree no longer has.
pub fn refuse_outside(objects: &[Object<'_>], inside: &BTreeSet<Pid>) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let us = Pid(std::process::id() as i32);
    for other in crate::procfs::tree::all()? {
        if inside.contains(&other) || other == us {
            continue;
        }
        // One that is gone by now, or may not be looked into, shows nothing of this user's.
        let mappings = crate::procfs::maps::of_any(other);
        // Segments are counted by the kernel (see `segment`), and their ids are those of a namespace.
        let shown = |object: &&Object<'_>| {
            let shows = |mapping: &Mapping| super::is_shared_anonymous(mapping) && id(mapping) == object.id;
            mappings.iter().any(shows)
        };
        let Some((pid, mapping)) = objects.iter().find(shown).and_then(|object| object.views.first()) else { continue };
        return Err(Error::Refused(Refusal {
            pid: *pid,
            comm: crate::procfs::Stat::read(*pid)?.comm_text(),
            fd: None,
            kind: format!("memory at {:#x} that it shares with process {other}, outside the tree", mapping.start.0),
            remedy: format!("dump a tree that has process {other} in it"),
        }));
    }
    Ok(())
}

impl Object<'_> {
    /// Copies the content to the start of `out`; yields which pages of the object these are, by their offsets, and their digest.
    pub fn copy(&self, out: &File) -> Result<(Vec<PageRange>, Digest)> {
        if let Some(source) = self.open()? {
            let ranges = data(&source, self.extent())?;
            let digest = copy(&source, &ranges, out)?;
            return Ok((ranges, digest));
        }
        let whole = |(_, mapping): &&(Pid, &Mapping)| mapping.offset == 0 && mapping.len() == self.extent();
        let Some((pid, mapping)) = self.views.iter().find(whole) else {
            return Err(Error::failed(format!(
                "shared memory {} is whole in no process of the tree, and reading it otherwise needs CAP_CHECKPOINT_RESTORE; run as root",
                self.id
            )));
        };
        let range = PageRange { start: mapping.start.0, pages: mapping.len() / PAGE };
        let digest = copy::copy(*pid, &[range], Access::Pin, out)?;
        Ok((vec![PageRange { start: 0, ..range }], digest))
    }

    /// Bytes from the start of the object to the end of what is shown of it.
    fn extent(&self) -> u64 {
        self.views.iter().map(|(_, mapping)| mapping.offset + mapping.len()).max().unwrap_or(0)
    }

    /// The object as a file; none without the privilege.
    fn open(&self) -> Result<Option<File>> {
        let Some((pid, mapping)) = self.views.first() else { return Ok(None) };
        let path = mapping.link(*pid);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(None),
            Err(error) => Err(Error::io("opening", Subject::Path(path), &error)),
        }
    }
}

/// The pages below `extent`, rounded up to a whole one, that are no holes.
pub fn data(file: &File, extent: u64) -> Result<Vec<PageRange>> {
    let mut ranges = Vec::new();
    let mut at = 0u64;
    while at < extent {
        let seek = |offset: u64, whence| lseek(file, i64::try_from(offset).unwrap_or(i64::MAX), whence);
        let start = match seek(at, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            result => result.during("looking for data in shared memory", Subject::None)? as u64,
        };
        let end = seek(start, Whence::SeekHole).during("looking for holes in shared memory", Subject::None)? as u64;
        let (start, end) = (start / PAGE * PAGE, end.min(extent).next_multiple_of(PAGE));
        if start < end {
            ranges.push(PageRange { start, pages: (end - start) / PAGE });
        }
        at = end.max(start + PAGE);
    }
    Ok(ranges)
}

pub fn copy(source: &File, ranges: &[PageRange], out: &File) -> Result<Digest> {
    let mut buffer = vec![0u8; BLOCK as usize];
    let mut digest = DigestStream::default();
    let mut written = 0;
    for range in ranges {
        let mut at = range.start;
        let end = range.start + range.pages * PAGE;
        while at < end {
            let bytes = &mut buffer[..BLOCK.min(end - at) as usize];
            read(source, bytes, at).during("reading shared memory", Subject::None)?;
            digest.update(bytes);
            out.write_all_at(bytes, written).during("writing the pages", Subject::None)?;
            at += bytes.len() as u64;
            written += bytes.len() as u64;
        }
    }
    Ok(digest.finish())
}

/// Fills a buffer; what lies behind the end of the file, in its last page, is zero.
fn read(source: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match source.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// Objects that the restore has made, by their ids, for its tasks to inherit. Dropping it unmaps them here, and removes segments.
#[derive(Debug, Default)]
pub struct Made {
    /// With the access that they are mapped for.
    objects: BTreeMap<(u32, Attach), (u64, SharedMemory)>,
    segments: Vec<segment::Made>,
}

impl Made {
    /// Makes an object with its content, outside every address that a recorded task uses.
    pub fn make(&mut self, images: &Images, dir: &Path, id: u32) -> Result<()> {
        let size = size(images, id);
        let Some(entry) = segment::of(images, id) else {
            let memory =
                self.place(images, id, Attach::ReadWrite, |at| SharedMemory::at(at, size, reserve(images, id)))?;
            return fill(memory, images, dir, id);
        };
        self.segments.push(segment::make(images, entry)?);
        let attach = |access| move |at| SharedMemory::attach(id as i32, at, size, access);
        fill(self.place(images, id, Attach::ReadWrite, attach(Attach::ReadWrite))?, images, dir, id)?;
        if views(images, id).any(|vma| segment::access(vma) == Attach::ReadOnly) {
            self.place(images, id, Attach::ReadOnly, attach(Attach::ReadOnly))?;
        }
        segment::settle(entry)
    }

    /// Maps an object where neither we nor any recorded task have anything.
    fn place(
        &mut self,
        images: &Images,
        id: u32,
        access: Attach,
        map: impl FnOnce(u64) -> std::result::Result<SharedMemory, Errno>,
    ) -> Result<&SharedMemory> {
        let ours = crate::procfs::maps::read(Pid(std::process::id() as i32))?;
        let recorded = images.mm.values().flat_map(|mm| &mm.vmas).map(|vma| vma.start..vma.end);
        let size = size(images, id);
        let place = layout::hole(layout::ranges(&ours).chain(recorded), size).ok_or_else(|| no_room(id, size))?;
        let memory = map(place).map_err(|_| no_room(id, size))?;
        self.objects.insert((id, access), (place, memory));
        self.objects.get(&(id, access)).map(|(_, memory)| memory).ok_or_else(|| no_room(id, size))
    }

    /// Where all objects are, here and in tasks that have not unmapped what they inherited.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.objects.values().map(|(place, memory)| *place..*place + memory.len())
    }

    /// Where the tasks have inherited the object that a recorded mapping shows.
    pub fn address(&self, vma: &pb::VmaEntry) -> Option<u64> {
        let object = self.objects.get(&(vma.shmid as u32, segment::access(vma)))?;
        is_view(vma).then_some(object.0)
    }

    /// The session runs: its segments stay.
    pub fn keep(self) {
        self.segments.into_iter().for_each(segment::Made::keep);
    }
}

fn no_room(id: u32, size: u64) -> Error {
    Error::failed(format!(
        "there is no room for the {size} bytes of shared memory {id}; free memory, then restore again"
    ))
}

/// The mappings that show an object.
fn views(images: &Images, id: u32) -> impl Iterator<Item = &pb::VmaEntry> {
    images.mm.values().flat_map(|mm| &mm.vmas).filter(move |vma| is_view(vma) && vma.shmid == u64::from(id))
}

/// All views of an object have this from the mmap(2) that made it.
fn reserve(images: &Images, id: u32) -> Reserve {
    let no = views(images, id).any(|vma| vma.flags & libc::MAP_NORESERVE as u32 != 0);
    if no { Reserve::No } else { Reserve::Yes }
}

/// Bytes of an object in whole pages: as its mappings show them, or of the whole segment.
pub fn size(images: &Images, id: u32) -> u64 {
    if let Some(segment) = segment::of(images, id) {
        return segment::size(segment);
    }
    views(images, id).map(|vma| vma.pgoff.saturating_add(vma.end.saturating_sub(vma.start))).max().unwrap_or(0)
}

/// Whether a recorded mapping shows such an object.
pub fn is_view(vma: &pb::VmaEntry) -> bool {
    vma.status & super::status::ANON_SHARED != 0
}

fn fill(memory: &SharedMemory, images: &Images, dir: &Path, id: u32) -> Result<()> {
    let Some(pagemap) = images.shmem_pagemaps.get(&id) else { return Ok(()) };
    let path = dir.join(Kind::Pages(pagemap.head.pages_id).name());
    let file = File::open(&path).during("opening", Subject::Path(path.clone()))?;
    let mut at = 0;
    for run in &pagemap.entries {
        let len = run.pages() * PAGE;
        memory.read_from(file.as_fd(), at, run.vaddr, len).during("reading", Subject::Path(path.clone()))?;
        at += len;
    }
    Ok(())
}
