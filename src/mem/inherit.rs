//! Pages that a process still has in common with its parent since fork(2): they are stored once, and shared again after a restore.
//!
//! 1. Dump: both are stopped. A page at the same address whose page table entry names the same frame is the same page. The parent's entry is
//!    read before and after the child's, so that a page which the kernel moves meanwhile counts as the child's own. Frame numbers need
//!    CAP_SYS_ADMIN; without it nothing is found in common, and every page is stored.
//! 2. In the image such a run is marked as CRIU marks pages of a parent directory, so that a reader which does not know ours fails on it;
//!    `pages_of` of the process names whose pages they are.
//! 3. Restore: where the parent makes the child itself, its memory is built first. The child keeps the ranges that have pages in common,
//!    reads its own pages over them, and drops those that it never had. In every other case the pages are read from where they are stored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Result, Subject};
use crate::ids::Pid;
use crate::image::{Images, Pagemap, pagemap, pb};
use crate::procfs::Mapping;

use super::pages::{PAGE, PageRange};
use super::status;

/// Less than this many pages are stored again: looking costs more.
const WORTHWHILE: u64 = 256;
/// The present and swapped bits and the frame or swap slot of an entry of /proc/PID/pagemap.
const FRAME: u64 = (1 << 55) - 1;
const IDENTITY: u64 = 3 << 62 | FRAME;
/// Entries that are read at a time.
const ENTRIES: u64 = 8192;

/// The pages of `candidates` that two stopped processes have in common at the same addresses.
pub fn common(parent: Pid, child: Pid, candidates: &[PageRange]) -> Result<Vec<PageRange>> {
    if super::pages::total(candidates) / PAGE < WORTHWHILE {
        return Ok(Vec::new());
    }
    let (mut of_parent, mut of_child) = (Entries::open(parent)?, Entries::open(child)?);
    let mut found = Vec::new();
    for range in candidates {
        let mut at = range.start;
        let end = range.start + range.pages * PAGE;
        while at < end {
            let count = ENTRIES.min((end - at) / PAGE);
            let before = of_parent.read(at, count)?;
            let now = of_child.read(at, count)?;
            let after = of_parent.read(at, count)?;
            for ((before, now), after) in before.iter().zip(&now).zip(&after) {
                let same = (before ^ now) & IDENTITY == 0 && (before ^ after) & IDENTITY == 0;
                if same && now & FRAME != 0 {
                    super::pages::push(&mut found, at, 1);
                }
                at += PAGE;
            }
        }
    }
    let enough = super::pages::total(&found) / PAGE >= WORTHWHILE;
    Ok(if enough { found } else { Vec::new() })
}

/// /proc/PID/pagemap.
struct Entries {
    pid: Pid,
    file: File,
}

impl Entries {
    fn open(pid: Pid) -> Result<Entries> {
        let path = crate::procfs::path(pid, "pagemap");
        let file = File::open(&path).during("opening", Subject::Path(path.clone()))?;
        Ok(Entries { pid, file })
    }

    fn read(&mut self, at: u64, count: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0u8; usize::try_from(count * 8).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, at / PAGE * 8).during("reading the page map", Subject::Pid(self.pid))?;
        Ok(bytes.chunks_exact(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap_or_default())).collect())
    }
}

/// What two ascending lists of ranges have in common, outside the vDSO and what may be one of another kernel.
pub fn candidates(parent: &[PageRange], child: &[PageRange], mappings: &[Mapping]) -> Vec<PageRange> {
    let code = |mapping: &&Mapping| mapping.prot & libc::PROT_EXEC != 0 && !super::is_file(mapping);
    let special = mappings.iter().filter(code);
    let special: Vec<PageRange> =
        special.map(|mapping| PageRange { start: mapping.start.0, pages: mapping.len() / PAGE }).collect();
    subtract(&intersect(parent, child), &special)
}

fn end(range: &PageRange) -> u64 {
    range.start + range.pages * PAGE
}

/// What is in both of two ascending lists.
pub fn intersect(one: &[PageRange], other: &[PageRange]) -> Vec<PageRange> {
    let (mut out, mut a, mut b) = (Vec::new(), 0, 0);
    while let (Some(left), Some(right)) = (one.get(a), other.get(b)) {
        let (from, to) = (left.start.max(right.start), end(left).min(end(right)));
        if from < to {
            out.push(PageRange { start: from, pages: (to - from) / PAGE });
        }
        if end(left) < end(right) { a += 1 } else { b += 1 }
    }
    out
}

/// What is in the first of two ascending lists and not in the second.
pub fn subtract(one: &[PageRange], other: &[PageRange]) -> Vec<PageRange> {
    let (mut out, mut first) = (Vec::new(), 0);
    for range in one {
        let mut at = range.start;
        while other.get(first).is_some_and(|taken| end(taken) <= at) {
            first += 1;
        }
        for taken in other[first..].iter().take_while(|taken| taken.start < end(range)) {
            if at < taken.start {
                out.push(PageRange { start: at, pages: (taken.start - at) / PAGE });
            }
            at = at.max(end(taken));
        }
        if at < end(range) {
            out.push(PageRange { start: at, pages: (end(range) - at) / PAGE });
        }
    }
    out
}

/// The page map of a process: what is stored, and what is the parent's.
pub fn to_pagemap(id: u32, stored: &[PageRange], common: &[PageRange]) -> Pagemap {
    let run = |flags| move |range: &PageRange| pb::PagemapEntry::run(range.start, range.pages, flags);
    let own = stored.iter().map(run(pagemap::PE_PRESENT));
    let mut entries: Vec<pb::PagemapEntry> = own.chain(common.iter().map(run(pagemap::PE_PARENT))).collect();
    entries.sort_by_key(|entry| entry.vaddr);
    Pagemap { head: pb::PagemapHead { pages_id: id }, entries }
}

/// Pages in an image: where they belong, and where they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub range: PageRange,
    /// The process whose file of pages has them, and the offset there in bytes.
    pub pid: u32,
    pub offset: u64,
}

/// Whose pages the common ones of a process are.
pub fn pages_of(images: &Images, pid: u32) -> Option<u32> {
    images.own_task(pid)?.pages_of
}

/// All pages of a process, ascending.
pub fn ranges(images: &Images, pid: u32) -> Vec<PageRange> {
    let entries = images.pagemaps.get(&pid).into_iter().flat_map(|pagemap| &pagemap.entries);
    let mut out = Vec::new();
    entries.for_each(|entry| super::pages::push(&mut out, entry.vaddr, entry.pages()));
    out
}

/// The pages that a process has in common with another one, ascending.
pub fn common_ranges(images: &Images, pid: u32) -> Vec<PageRange> {
    let entries = images.pagemaps.get(&pid).into_iter().flat_map(|pagemap| &pagemap.entries);
    let mut out = Vec::new();
    entries
        .filter(|entry| entry.is_in_parent())
        .for_each(|entry| super::pages::push(&mut out, entry.vaddr, entry.pages()));
    out
}

/// Where the pages of a process are stored, but for those of `kept` that it has in common with another one. None where a page is nowhere.
pub fn stored(images: &Images, pid: u32, kept: &[PageRange]) -> Option<Vec<Stored>> {
    let mut out = Vec::new();
    // A chain of parents is no longer than the tree.
    let mut wanted = vec![(pid, subtract(&ranges(images, pid), &intersect(&common_ranges(images, pid), kept)))];
    for _ in 0..=images.pstree.len() {
        let Some((pid, ranges)) = wanted.pop() else { break };
        let elsewhere = collect(images, pid, &ranges, &mut out)?;
        if !elsewhere.is_empty() {
            wanted.push((pages_of(images, pid)?, elsewhere));
        }
    }
    out.sort_by_key(|stored: &Stored| stored.range.start);
    wanted.is_empty().then_some(out)
}

/// Adds the part of `wanted` that is in the process's own file; yields the part that is another one's.
fn collect(images: &Images, pid: u32, wanted: &[PageRange], out: &mut Vec<Stored>) -> Option<Vec<PageRange>> {
    let (mut offset, mut elsewhere, mut covered) = (0, Vec::new(), 0);
    for entry in &images.pagemaps.get(&pid)?.entries {
        let whole = PageRange { start: entry.vaddr, pages: entry.pages() };
        let first = wanted.partition_point(|range| end(range) <= whole.start);
        for part in intersect(&[whole], &wanted[first..]) {
            covered += part.pages;
            if entry.is_in_parent() {
                super::pages::push(&mut elsewhere, part.start, part.pages);
            } else {
                out.push(Stored { range: part, pid, offset: offset + part.start - whole.start });
            }
        }
        if !entry.is_in_parent() {
            offset += whole.pages * PAGE;
        }
    }
    (covered * PAGE == super::pages::total(wanted)).then_some(elsewhere)
}

/// The ranges of its maker's memory that a process keeps: those of like private mappings with pages in common.
pub fn kept(images: &Images, maker: u32, pid: u32) -> Vec<PageRange> {
    let (Some(theirs), Some(ours)) = (images.mm.get(&maker), images.mm.get(&pid)) else { return Vec::new() };
    let common = common_ranges(images, pid);
    let mut out = Vec::new();
    for vma in ours.vmas.iter().filter(|vma| can_be_kept(images, pid, vma)) {
        let first = theirs.vmas.partition_point(|their| their.end <= vma.start);
        for their in theirs.vmas[first..].iter().take_while(|their| their.start < vma.end) {
            let (from, to) = (vma.start.max(their.start), vma.end.min(their.end));
            let range = PageRange { start: from, pages: (to - from) / PAGE };
            if can_be_kept(images, maker, their) && are_alike(vma, their) && !intersect(&[range], &common).is_empty() {
                super::pages::push(&mut out, range.start, range.pages);
            }
        }
    }
    out
}

fn can_be_kept(images: &Images, pid: u32, vma: &pb::VmaEntry) -> bool {
    let private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
    let grows = vma.flags & libc::MAP_GROWSDOWN as u32 != 0;
    let own = images.own_task(pid).map_or(&[][..], |own| &own.vmas);
    let droppable = own.iter().any(|own| own.start == Some(vma.start) && own.droppable == Some(true));
    private && super::restore::is_made(vma) && !grows && !droppable
}

/// Whether a part of the one can stand for a part of the other at the same address: what cannot be changed afterwards is the same.
fn are_alike(one: &pb::VmaEntry, other: &pb::VmaEntry) -> bool {
    let backing = status::ANON_PRIVATE | status::FILE_PRIVATE;
    let flags = !(libc::MAP_LOCKED as u32);
    let at = |vma: &pb::VmaEntry| vma.pgoff.wrapping_sub(vma.start);
    let file = one.status & status::FILE_PRIVATE != 0;
    one.status & backing == other.status & backing
        && one.flags & flags == other.flags & flags
        && (!file || one.shmid == other.shmid && at(one) == at(other))
}

/// The parts of a mapping outside the kept ranges, as mappings.
pub fn parts(vma: &pb::VmaEntry, kept: &[PageRange]) -> Vec<pb::VmaEntry> {
    let whole = PageRange { start: vma.start, pages: (vma.end - vma.start) / PAGE };
    let part = |part: PageRange| {
        let pgoff = if vma.pgoff == 0 && vma.shmid == 0 { 0 } else { vma.pgoff + part.start - vma.start };
        pb::VmaEntry { start: part.start, end: end(&part), pgoff, ..*vma }
    };
    subtract(&[whole], kept).into_iter().map(part).collect()
}

/// The kept ranges of a mapping.
pub fn within<'a>(vma: &'a pb::VmaEntry, kept: &'a [PageRange]) -> impl Iterator<Item = Range<u64>> + 'a {
    let first = kept.partition_point(|range| end(range) <= vma.start);
    let overlapping = kept[first..].iter().take_while(|range| range.start < vma.end);
    overlapping.map(|range| range.start.max(vma.start)..end(range).min(vma.end))
}

/// The pages in kept ranges that only the maker has.
pub fn dropped(images: &Images, maker: u32, pid: u32, kept: &[PageRange]) -> Vec<PageRange> {
    subtract(&intersect(&ranges(images, maker), kept), &ranges(images, pid))
}

/// As ranges of addresses.
pub fn addresses(ranges: &[PageRange]) -> impl Iterator<Item = Range<u64>> + '_ {
    ranges.iter().map(|range| range.start..end(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(list: &[(u64, u64)]) -> Vec<PageRange> {
        list.iter().map(|(start, pages)| PageRange { start: start * PAGE, pages: *pages }).collect()
    }

    #[test]
    fn lists_are_intersected_and_subtracted() {
        let (one, other) = (pages(&[(1, 4), (10, 2), (20, 1)]), pages(&[(0, 2), (3, 1), (4, 8)]));
        assert_eq!(intersect(&one, &other), pages(&[(1, 1), (3, 1), (4, 1), (10, 2)]));
        assert_eq!(subtract(&one, &other), pages(&[(2, 1), (20, 1)]));
        assert_eq!(subtract(&one, &[]), one);
        assert_eq!(intersect(&one, &[]), []);
    }

    fn tree() -> Images {
        let mut images = Images::default();
        images.pagemaps.insert(1, to_pagemap(1, &pages(&[(1, 4), (8, 2)]), &[]));
        images.pagemaps.insert(2, to_pagemap(2, &pages(&[(3, 1)]), &pages(&[(1, 2), (8, 2)])));
        images.pagemaps.insert(3, to_pagemap(3, &pages(&[(2, 1), (20, 1)]), &pages(&[(1, 1), (3, 1), (9, 1)])));
        let own = images.own.get_or_insert_default();
        for (pid, of) in [(1, None), (2, Some(1)), (3, Some(2))] {
            own.tasks.push(pb::PtyagentTask { pid: Some(pid), pages_of: of, ..Default::default() });
            images.pstree.push(pb::PstreeEntry { pid, ..Default::default() });
        }
        images
    }

    #[test]
    fn pages_are_found_where_they_are_stored() {
        let at = |page: u64, pages: u64, pid: u32, offset: u64| Stored {
            range: PageRange { start: page * PAGE, pages },
            pid,
            offset: offset * PAGE,
        };
        let all = stored(&tree(), 3, &[]).unwrap();
        assert_eq!(all, [at(1, 1, 1, 0), at(2, 1, 3, 0), at(3, 1, 2, 0), at(9, 1, 1, 5), at(20, 1, 3, 1)]);
        let kept = stored(&tree(), 3, &pages(&[(0, 4)])).unwrap();
        assert_eq!(kept, [at(2, 1, 3, 0), at(9, 1, 1, 5), at(20, 1, 3, 1)]);
        assert_eq!(dropped(&tree(), 1, 2, &pages(&[(0, 6)])), pages(&[(4, 1)]));
    }

    #[test]
    fn a_page_that_is_nowhere_is_noticed() {
        let mut images = tree();
        images.pagemaps.insert(1, to_pagemap(1, &pages(&[(1, 1)]), &[]));
        assert_eq!(stored(&images, 2, &[]), None);
        let mut images = tree();
        images.own.as_mut().unwrap().tasks[0].pages_of = Some(2);
        images.pagemaps.insert(1, to_pagemap(1, &[], &pages(&[(1, 4), (8, 2)])));
        assert_eq!(stored(&images, 2, &[]), None);
    }
}
