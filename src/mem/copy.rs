//! Copying pages into an image: straight into a file, or into memory of ours first, while the session stands still.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr};
use crate::image::digest::{self, Digest};
use crate::sys::process::{RemoteRange, process_vm_readv};

use super::pages::{PAGE, PageRange, total};

/// Bytes that are read, hashed and written at a time.
const BLOCK: u64 = digest::BLOCK as u64;
/// process_vm_readv takes this many ranges at most.
const MAX_RANGES: usize = 1024;
/// From here on two threads copy.
const PARALLEL_FROM: u64 = 8 << 20;
/// The same for what is in memory of ours already.
const STASH_PARALLEL_FROM: u64 = 2 << 20;

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
