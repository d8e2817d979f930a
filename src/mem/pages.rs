//! Pages with content of their own, and copying them into an image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr};
use crate::image::digest::{self, Digest};
use crate::procfs::maps;
use crate::sys::process::{RemoteRange, process_vm_readv};

pub const PAGE: u64 = 4096;
/// pagemap bits: present, swapped, file page or shared memory. Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
/// Bytes that are read, hashed and written at a time.
const BLOCK: u64 = digest::BLOCK as u64;
/// process_vm_readv takes this many ranges at most.
const MAX_RANGES: usize = 1024;
/// From here on two threads copy.
const PARALLEL_FROM: u64 = 8 << 20;
/// The same for what is in memory of ours already.
const STASH_PARALLEL_FROM: u64 = 2 << 20;

/// Consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    pub start: u64,
    pub pages: u64,
}

/// Which pages of a mapping an image needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those that the task has made its own: anonymous memory, and written pages of private file mappings.
    Own,
    /// Those that have ever been touched, of shared memory.
    Present,
    /// Every page, of the vDSO.
    All,
}

/// The page tables of a process, as /proc/PID/pagemap shows them.
#[derive(Debug)]
pub struct PageMap {
    pid: Pid,
    file: File,
    /// Pages of the process's own, where the kernel lists them at once (PAGEMAP_SCAN); none where it has to be asked page by page.
    own: Option<Vec<PageRange>>,
    guards: Vec<PageRange>,
    /// Mappings without any page, which are not asked: each of their pages would be an answer, and there can be terabytes of them.
    empty: BTreeSet<(u64, u64)>,
    buffer: Vec<u8>,
}

impl PageMap {
    /// Opens it, and asks for all own pages at once.
    pub fn open(pid: Pid) -> Result<PageMap> {
        let path = crate::procfs::path(pid, "pagemap");
        let file = File::open(&path).map_err(|error| Error::io("opening", Subject::Path(path), &error))?;
        let scanned = match scan(&file, GuardRegions::Told) {
            Err(Errno::EINVAL) => scan(&file, GuardRegions::Untold),
            result => result,
        };
        let (own, guards) = match scanned {
            Ok(scanned) => (Some(scanned.own), scanned.guards),
            Err(Errno::ENOTTY) => (None, Vec::new()),
            Err(errno) => return Err(Error::of_pid("reading the page map", pid, errno)),
        };
        let mut empty = BTreeSet::new();
        if own.is_none() {
            let mappings = maps::read_with_flags(pid)?;
            let without = mappings.iter().filter(|mapping| mapping.populated == Some(false));
            empty = without.map(|mapping| (mapping.start.0, mapping.end.0)).collect();
        }
        Ok(PageMap { pid, file, own, guards, empty, buffer: Vec::new() })
    }

    /// The guard regions (MADV_GUARD_INSTALL). A kernel that has them and does not tell (6.13 to 6.15) shows them as swapped pages, which
    /// cannot be read, so that a dump fails there.
    pub fn guards(&self) -> &[PageRange] {
        &self.guards
    }

    /// Appends the wanted pages of the mapping `start..end` to `out`, merging neighbours. Mappings are asked for in ascending order.
    pub fn find(&mut self, start: u64, end: u64, wanted: Wanted, out: &mut Vec<PageRange>) -> Result<()> {
        match (wanted, &self.own) {
            (Wanted::All, _) => push(out, start, (end - start) / PAGE),
            (Wanted::Own, Some(own)) => {
                let first = own.partition_point(|range| range.start + range.pages * PAGE <= start);
                for range in own[first..].iter().take_while(|range| range.start < end) {
                    let (from, to) = (range.start.max(start), (range.start + range.pages * PAGE).min(end));
                    push(out, from, (to - from) / PAGE);
                }
            }
            _ if self.empty.contains(&(start, end)) => {}
            _ => self.walk(start, end, wanted, out)?,
        }
        Ok(())
    }

    /// Asks page by page.
    fn walk(&mut self, start: u64, end: u64, wanted: Wanted, out: &mut Vec<PageRange>) -> Result<()> {
        const ENTRIES: u64 = 8192;
        self.buffer.resize(8 * ENTRIES as usize, 0);
        let mut at = start;
        while at < end {
            let count = ENTRIES.min((end - at) / PAGE);
            let bytes = &mut self.buffer[..8 * count as usize];
            self.file.read_exact_at(bytes, at / PAGE * 8).during("reading the page map", Subject::Pid(self.pid))?;
            for entry in bytes.chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                let present = entry & (PRESENT | SWAPPED) != 0;
                if present && (wanted == Wanted::Present || entry & FILE_OR_SHARED == 0) {
                    push(out, at, 1);
                }
                at += PAGE;
            }
        }
        Ok(())
    }
}

/// Whether the kernel knows PAGE_IS_GUARD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GuardRegions {
    Told,
    Untold,
}

/// What one walk over the page tables found.
struct Scanned {
    own: Vec<PageRange>,
    guards: Vec<PageRange>,
}

/// All pages that are there and belong to no file; the zero page is left out, since it is what a fresh page is.
fn scan(file: &File, guard_regions: GuardRegions) -> std::result::Result<Scanned, Errno> {
    use crate::sys::pagemap::{PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Region};
    let guard = if guard_regions == GuardRegions::Told { PAGE_IS_GUARD } else { 0 };
    let mut regions = vec![Region::default(); 1024];
    let (mut scanned, mut at) = (Scanned { own: Vec::new(), guards: Vec::new() }, 0);
    while at < super::layout::TASK_SIZE {
        let (any, none) = (PAGE_IS_PRESENT | PAGE_IS_SWAPPED | guard, PAGE_IS_FILE | PAGE_IS_PFNZERO);
        let (count, end) =
            crate::sys::pagemap::scan(file.as_fd(), at, super::layout::TASK_SIZE, any, none, &mut regions)?;
        for region in &regions[..count] {
            // A guard region is a marker in the page table, which counts as swapped too.
            let ranges = if region.categories & guard != 0 { &mut scanned.guards } else { &mut scanned.own };
            push(ranges, region.start, (region.end - region.start) / PAGE);
        }
        at = end;
    }
    Ok(scanned)
}

/// Appends pages, merging neighbours.
pub(super) fn push(out: &mut Vec<PageRange>, start: u64, pages: u64) {
    match out.last_mut() {
        Some(last) if last.start + last.pages * PAGE == start => last.pages += pages,
        _ => out.push(PageRange { start, pages }),
    }
}

pub fn total(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| range.pages * PAGE).sum()
}

/// How the memory of a process is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// process_vm_readv(2): the fastest. It pins pages, and the kernel first gives the process a copy of its own of each page that it
    /// shares with a relative since fork(2) (FAULT_FLAG_UNSHARE, Linux 5.19).
    Pin,
    /// /proc/PID/mem, which leaves shared pages shared.
    Leave,
}

/// Copies the ranges one after another to the start of `file`, and yields the digest of what was written.
///
/// The work goes in blocks of 1 MiB, each read into a buffer that stays in the cache and is hashed and written from there; with much
/// memory two threads take blocks in turn.
pub fn copy(pid: Pid, ranges: &[PageRange], access: Access, file: &File) -> Result<Digest> {
    let job = Job { pid, access, ranges, offsets: offsets(ranges), size: total(ranges), file, next: AtomicU64::new(0) };
    let mut digests = if job.size < PARALLEL_FROM {
        job.work()?
    } else {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| job.work());
            let mut digests = job.work()?;
            let theirs = other.join().map_err(|_| Error::failed("a copying thread failed"))??;
            digests.extend(theirs);
            Ok::<_, Error>(digests)
        })?
    };
    digests.sort_unstable();
    let values: Vec<u64> = digests.into_iter().map(|(_, value)| value).collect();
    Ok(Digest::from_blocks(job.size, &values))
}

/// Pages that a stash is to take.
#[derive(Debug)]
pub struct Wish<'a> {
    pub pid: Pid,
    pub ranges: &'a [PageRange],
    pub access: Access,
}

impl Wish<'_> {
    /// Fills a buffer that is as long as the ranges.
    fn read(&self, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for ranges in self.ranges.chunks(MAX_RANGES) {
            let remote: Vec<RemoteRange> = ranges.iter().map(whole).collect();
            let (now, later) = rest.split_at_mut(usize::try_from(total(ranges)).unwrap_or(0).min(rest.len()));
            rest = later;
            read(self.pid, &remote, self.access, now)?;
        }
        Ok(())
    }
}

/// Memory of the controller in which the pages of a small session are kept until it runs on: writing files takes longer than reading memory.
#[derive(Debug)]
pub struct Stash {
    buffer: Vec<u8>,
    used: usize,
}

impl Stash {
    /// The controller stays under 32 MiB whatever the size of the session.
    const MOST: u64 = 16 << 20;

    /// Makes room for up to `expected` bytes, with every page of it faulted in, before anything is stopped.
    pub fn new(expected: u64) -> Stash {
        let len = usize::try_from(expected.min(Stash::MOST)).unwrap_or(0);
        let mut buffer = vec![0u8; len];
        buffer.chunks_mut(PAGE as usize).for_each(|page| page[0] = 1);
        Stash { buffer, used: 0 }
    }

    /// Reads all pages of each wish for which there is room; yields where they are. With many pages two threads take wishes in turn.
    pub fn read_all(&mut self, wishes: &[Wish<'_>]) -> Result<Vec<Option<Range<usize>>>> {
        let (mut places, mut parts) = (Vec::new(), Vec::new());
        let (mut rest, mut used) = (self.buffer.as_mut_slice(), 0);
        for wish in wishes {
            let len = usize::try_from(total(wish.ranges)).unwrap_or(usize::MAX);
            if len > rest.len() {
                places.push(None);
                continue;
            }
            let (now, later) = rest.split_at_mut(len);
            rest = later;
            places.push(Some(used..used + len));
            used += len;
            parts.push((wish, now));
        }
        self.used = used;
        let parts = Mutex::new(parts.into_iter());
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((wish, buffer)) = next() {
                wish.read(buffer)?;
            }
            Ok::<_, Error>(())
        };
        if (used as u64) < STASH_PARALLEL_FROM {
            work()?;
            return Ok(places);
        }
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            work()?;
            other.join().map_err(|_| Error::failed("a reading thread failed"))?
        })?;
        Ok(places)
    }

    /// Writes what was read to the start of files, each with its id, and yields their digests; with much of it two threads take files in turn.
    pub fn write_all(&self, files: &[(u32, Range<usize>, File)]) -> Result<Vec<(u32, Digest)>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some((id, place, file)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((*id, self.write(place.clone(), file)?));
            }
            Ok::<_, Error>(done)
        };
        if (self.used as u64) < STASH_PARALLEL_FROM {
            return work();
        }
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut done = work()?;
            done.extend(other.join().map_err(|_| Error::failed("a writing thread failed"))??);
            Ok(done)
        })
    }

    fn write(&self, place: Range<usize>, file: &File) -> Result<Digest> {
        let bytes = self.buffer.get(place).unwrap_or_default();
        let mut digests = Vec::new();
        for (n, block) in bytes.chunks(digest::BLOCK).enumerate() {
            digests.push(digest::block(block));
            write(file, block, n as u64 * BLOCK)?;
        }
        Ok(Digest::from_blocks(bytes.len() as u64, &digests))
    }
}

/// Fills a buffer from the ranges (at most 1024, as long as the buffer together).
///
/// process_vm_readv stops at a page that the task itself may not read; a tracer is given it through /proc/PID/mem all the same.
fn read(pid: Pid, ranges: &[RemoteRange], access: Access, buffer: &mut [u8]) -> Result<()> {
    if access == Access::Leave {
        return read_through_file(pid, ranges, buffer);
    }
    let mut memory = None;
    let mut rest: Vec<RemoteRange> = ranges.to_vec();
    let mut done = 0;
    while done < buffer.len() {
        match process_vm_readv(pid, &rest, &mut buffer[done..]) {
            Err(Errno::EFAULT) | Ok(0) => {
                let Some(first) = rest.first() else {
                    return Err(Error::unexpected(format!("the memory of process {pid}"), "a page vanished"));
                };
                let file = match &memory {
                    Some(file) => file,
                    None => memory.insert(open_mem(pid)?),
                };
                let page = usize::try_from(PAGE - first.addr.0 % PAGE).unwrap_or(0).min(first.len);
                let piece = &mut buffer[done..done + page];
                file.read_exact_at(piece, first.addr.0).during("reading the memory", Subject::Pid(pid))?;
                done += page;
                advance(&mut rest, page);
            }
            Ok(count) => {
                done += count;
                advance(&mut rest, count);
            }
            Err(errno) => return Err(Error::of_pid("reading the memory", pid, errno)),
        }
    }
    Ok(())
}

fn read_through_file(pid: Pid, ranges: &[RemoteRange], buffer: &mut [u8]) -> Result<()> {
    let file = open_mem(pid)?;
    let mut rest = buffer;
    for range in ranges {
        let (now, later) = rest.split_at_mut(range.len.min(rest.len()));
        file.read_exact_at(now, range.addr.0).during("reading the memory", Subject::Pid(pid))?;
        rest = later;
    }
    Ok(())
}

fn open_mem(pid: Pid) -> Result<File> {
    let path = crate::procfs::path(pid, "mem");
    File::open(&path).during("opening", Subject::Path(path.clone()))
}

/// Takes the first `count` bytes off the ranges.
fn advance(ranges: &mut Vec<RemoteRange>, count: usize) {
    let mut left = count;
    while let Some(first) = ranges.first_mut() {
        if first.len > left {
            first.addr.0 += left as u64;
            first.len -= left;
            return;
        }
        left -= first.len;
        ranges.remove(0);
    }
}

fn whole(range: &PageRange) -> RemoteRange {
    let len = usize::try_from(range.pages * PAGE).unwrap_or(usize::MAX);
    RemoteRange { addr: RemoteAddr(range.start), len }
}

struct Job<'a> {
    pid: Pid,
    access: Access,
    ranges: &'a [PageRange],
    /// Where each range starts in the file.
    offsets: Vec<u64>,
    size: u64,
    file: &'a File,
    next: AtomicU64,
}

fn offsets(ranges: &[PageRange]) -> Vec<u64> {
    let mut at = 0;
    ranges
        .iter()
        .map(|range| {
            let start = at;
            at += range.pages * PAGE;
            start
        })
        .collect()
}

impl Job<'_> {
    fn work(&self) -> Result<Vec<(u64, u64)>> {
        let mut buffer = vec![0u8; usize::try_from(BLOCK.min(self.size)).unwrap_or(0)];
        let mut digests = Vec::new();
        loop {
            let block = self.next.fetch_add(1, Ordering::Relaxed);
            let at = block * BLOCK;
            if at >= self.size {
                return Ok(digests);
            }
            let len = usize::try_from(BLOCK.min(self.size - at)).unwrap_or(0);
            let bytes = &mut buffer[..len];
            self.read(at, bytes)?;
            digests.push((block, digest::block(bytes)));
            write(self.file, bytes, at)?;
        }
    }

    /// Reads the bytes that belong at `at` in the file.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (remote, len) = self.remote(at + done as u64, bytes.len() - done);
            read(self.pid, &remote, self.access, &mut bytes[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    /// The remote ranges behind up to `len` bytes of the file from `at` on, and how many bytes they have.
    fn remote(&self, at: u64, len: usize) -> (Vec<RemoteRange>, usize) {
        let first = self.offsets.partition_point(|offset| *offset <= at).saturating_sub(1);
        let mut ranges = Vec::new();
        let mut taken = 0;
        for (range, offset) in self.ranges[first..].iter().zip(&self.offsets[first..]).take(MAX_RANGES) {
            if taken == len {
                break;
            }
            let skip = (at + taken as u64).saturating_sub(*offset);
            let rest = usize::try_from(range.pages * PAGE - skip).unwrap_or(usize::MAX);
            let part = rest.min(len - taken);
            ranges.push(RemoteRange { addr: RemoteAddr(range.start + skip), len: part });
            taken += part;
        }
        (ranges, taken)
    }
}

fn write(file: &File, bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => {
            Error::failed("the disk with the image directory is full; make room or choose another with -D")
        }
        _ => Error::io("writing the pages", Subject::None, &error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge() {
        let mut out = Vec::new();
        push(&mut out, 0x1000, 1);
        push(&mut out, 0x2000, 2);
        push(&mut out, 0x5000, 1);
        assert_eq!(out, [PageRange { start: 0x1000, pages: 3 }, PageRange { start: 0x5000, pages: 1 }]);
    }

    #[test]
    fn our_own_memory_is_copied_byte_for_byte() {
        let pid = Pid(std::process::id() as i32);
        let memory: Vec<u8> = (0..3 * BLOCK as usize + 4096).map(|n| (n / 7) as u8).collect();
        let start = (memory.as_ptr().addr() as u64).next_multiple_of(PAGE);
        let ranges: Vec<PageRange> =
            (0..700).filter(|n| n % 3 != 1).map(|n| PageRange { start: start + n * PAGE, pages: 1 }).collect();
        for access in [Access::Pin, Access::Leave] {
            let file = tempfile::tempfile().unwrap();
            copy(pid, &ranges, access, &file).unwrap();
            let mut page = vec![0u8; PAGE as usize];
            for (n, range) in ranges.iter().enumerate() {
                file.read_exact_at(&mut page, n as u64 * PAGE).unwrap();
                let at = usize::try_from(range.start).unwrap() - memory.as_ptr().addr();
                assert_eq!(page, memory[at..at + PAGE as usize], "page {n}");
            }
        }
    }
}
