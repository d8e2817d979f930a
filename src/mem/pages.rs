//! Pages with content of their own, as the page tables tell.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::Pid;
use crate::procfs::maps;

pub const PAGE: u64 = 4096;
/// pagemap bits: present, swapped, file page or shared memory. Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

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
}
