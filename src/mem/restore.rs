//! Building a task's memory from inside: nothing but the parasite and the vDSO, then the recorded mappings with their pages.

use std::ops::Range;

use crate::image::pb;
use crate::inject::batch::Batch;

use super::layout::TASK_SIZE;
use super::pages::PAGE;
use super::status;

/// prctl PR_SET_MM, PR_SET_MM_MAP and PR_SET_MM_MAP_SIZE's structure: thirteen words and two numbers.
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: u64 = 14;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
/// mmap(2), Linux 6.11.
const MAP_DROPPABLE: u32 = 0x08;
/// madvise(2), Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;
/// mseal(2), Linux 6.10.
const SYS_MSEAL: i64 = 462;

/// Adds the calls that unmap everything outside `keep` (sorted, not overlapping).
pub fn unmap_all_but(batch: &mut Batch, keep: &[Range<u64>]) {
    let mut at = 0;
    for range in keep {
        unmap(batch, at..range.start);
        at = range.end;
    }
    unmap(batch, at..TASK_SIZE);
}

/// Adds the call that unmaps a range, unless it is empty.
pub fn unmap(batch: &mut Batch, range: Range<u64>) {
    if range.start < range.end {
        batch.must(libc::SYS_munmap, [range.start.into(), (range.end - range.start).into()]);
    }
}

/// Adds the calls that move the vDSO's group of mappings, in address order and kept at their distances, to `to`.
///
/// The group is vvar, vvar_vclock (6.18) and vdso, contiguous; a `via` range is used when source and target overlap.
pub fn move_vdso(batch: &mut Batch, group: &[Range<u64>], to: u64, via: Option<u64>) {
    let Some(first) = group.first() else { return };
    if first.start == to {
        return;
    }
    let mut from = first.start;
    for target in via.into_iter().chain([to]) {
        for range in group {
            let offset = range.start - first.start;
            let len = range.end - range.start;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            batch.must(
                libc::SYS_mremap,
                [(from + offset).into(), len.into(), len.into(), flags.into(), (target + offset).into()],
            );
        }
        from = target;
    }
}

/// A mapping that the task makes itself.
#[derive(Debug)]
pub struct Backing {
    /// The number under which the task has the mapping's file open, or -1.
    pub fd: i32,
    /// Where the task has inherited the shared memory that the mapping shows, from its start on.
    pub inherited: Option<u64>,
    pub content: Content,
    /// MAP_DROPPABLE takes the place of MAP_PRIVATE.
    pub kind: Kind,
}

/// What the kernel may do with the pages of a private mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ordinary,
    Droppable,
}

impl Kind {
    pub fn of(own: Option<&pb::PtyagentVma>) -> Kind {
        match own.and_then(|own| own.droppable) {
            Some(true) => Kind::Droppable,
            _ => Kind::Ordinary,
        }
    }
}

/// Whether a mapping has to be writable for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Pages are read into it.
    Pages,
    /// It stays as it is mapped. Making it writable would charge it to the commit limit for good, which a large reservation does not
    /// survive, and would merge it with its neighbours.
    None,
}

/// What a mapping gets from a page map.
pub fn content(vma: &pb::VmaEntry, pagemap: &[pb::PagemapEntry]) -> Content {
    // The runs ascend: the first that ends behind the start of the mapping decides.
    let at = pagemap.partition_point(|run| run.vaddr + run.pages() * PAGE <= vma.start);
    match pagemap.get(at) {
        Some(run) if run.vaddr < vma.end && vma.flags & libc::MAP_PRIVATE as u32 != 0 => Content::Pages,
        _ => Content::None,
    }
}

/// Whether a recorded mapping is one that a restore makes.
pub fn is_made(vma: &pb::VmaEntry) -> bool {
    vma.status & (status::VDSO | status::VVAR | status::VSYSCALL) == 0
}

/// Adds the call that makes one mapping, writable where pages are to be read into it.
pub fn map(batch: &mut Batch, vma: &pb::VmaEntry, backing: &Backing) {
    let len = vma.end - vma.start;
    if let Some(inherited) = backing.inherited {
        // A length of 0 makes a second view of shared memory (mremap(2)).
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let from = inherited + vma.pgoff;
        batch.must(libc::SYS_mremap, [from.into(), 0u64.into(), len.into(), flags.into(), vma.start.into()]);
        protect(batch, vma, vma.prot);
        return;
    }
    let prot = match backing.content {
        Content::Pages => vma.prot | libc::PROT_WRITE as u32,
        Content::None => vma.prot,
    };
    // Locking waits until the pages are in place, and growing down is the kernel's to do only afterwards.
    let flags = (vma.flags & !(libc::MAP_LOCKED as u32)) | libc::MAP_FIXED as u32;
    let flags = match backing.kind {
        Kind::Ordinary => flags,
        Kind::Droppable => libc::MAP_ANONYMOUS as u32 | libc::MAP_FIXED as u32 | MAP_DROPPABLE,
    };
    batch.must(
        libc::SYS_mmap,
        [
            vma.start.into(),
            len.into(),
            u64::from(prot).into(),
            u64::from(flags).into(),
            backing.fd.into(),
            vma.pgoff.into(),
        ],
    );
}

/// Adds the call that gives a kept range the mapping's protection, writable until its pages are in place.
pub fn open_up(batch: &mut Batch, vma: &pb::VmaEntry, range: Range<u64>) {
    let prot = vma.prot | libc::PROT_WRITE as u32;
    let len = range.end - range.start;
    batch.must(libc::SYS_mprotect, [range.start.into(), len.into(), u64::from(prot).into()]);
}

/// Adds the call that drops private pages: the range reads as if it had never been written.
pub fn drop_pages(batch: &mut Batch, range: Range<u64>) {
    let len = range.end - range.start;
    batch.must(libc::SYS_madvise, [range.start.into(), len.into(), libc::MADV_DONTNEED.into()]);
}

fn protect(batch: &mut Batch, vma: &pb::VmaEntry, prot: u32) {
    batch.must(libc::SYS_mprotect, [vma.start.into(), (vma.end - vma.start).into(), u64::from(prot).into()]);
}

/// Adds the calls that give a mapping its final protection, name, advice, lock and seal, after its pages are in place.
pub fn finish(batch: &mut Batch, vma: &pb::VmaEntry, own: Option<&pb::PtyagentVma>, content: Content) {
    if content == Content::Pages && vma.prot & libc::PROT_WRITE as u32 == 0 {
        protect(batch, vma, vma.prot);
    }
    let len = vma.end - vma.start;
    if let Some(name) = own.and_then(|own| own.anon_name.as_deref()) {
        let name = batch.input(&[name, b"\0"].concat());
        let (option, range) = (PR_SET_VMA_ANON_NAME.into(), [vma.start.into(), len.into()]);
        batch.must(libc::SYS_prctl, [PR_SET_VMA.into(), option, range[0], range[1], name.into()]);
    }
    // A droppable mapping comes with its own advice.
    let madv = if Kind::of(own) == Kind::Ordinary { vma.madv.unwrap_or(0) } else { 0 };
    for advice in (0..64u64).filter(|advice| madv & (1 << advice) != 0) {
        batch.must(libc::SYS_madvise, [vma.start.into(), len.into(), advice.into()]);
    }
    if vma.flags & libc::MAP_LOCKED as u32 != 0 {
        // This fails for want of a right or of room under RLIMIT_MEMLOCK; before Linux 5.18 also for want of access, but not before it has locked.
        let args = [vma.start.into(), len.into(), u64::from(libc::MLOCK_ONFAULT).into()];
        if vma.prot & libc::PROT_READ as u32 != 0 {
            batch.must(libc::SYS_mlock2, args);
        } else {
            batch.may(libc::SYS_mlock2, args);
        }
    }
    if own.is_some_and(|own| own.sealed == Some(true)) {
        batch.must(SYS_MSEAL, [vma.start.into(), len.into(), 0u64.into()]);
    }
}

/// Adds the call that brings in the pages of a mapping that [`finish`] has locked, where it was not locked on fault only.
///
/// mlock(2) fails where a page cannot be had, such as without access or behind a guard; the mapping is locked all the same.
pub fn lock_now(batch: &mut Batch, vma: &pb::VmaEntry, own: Option<&pb::PtyagentVma>) {
    let on_fault = own.is_some_and(|own| own.lock_onfault == Some(true));
    if vma.flags & libc::MAP_LOCKED as u32 != 0 && !on_fault {
        batch.call(libc::SYS_mlock, [vma.start.into(), (vma.end - vma.start).into()]);
    }
}

/// Adds the call that makes guard pages, which have no content; before their mapping is locked or sealed.
pub fn guard(batch: &mut Batch, range: &pb::PtyagentRange) {
    let (start, end) = (range.start.unwrap_or(0), range.end.unwrap_or(0));
    batch.must(libc::SYS_madvise, [start.into(), end.saturating_sub(start).into(), MADV_GUARD_INSTALL.into()]);
}

/// Adds the calls that read consecutive pages from the image.
///
/// One preadv(2) takes 2 GiB at most; the results are checked by the caller against [`Reads::expected`].
pub fn read_pages(batch: &mut Batch, fd: i32, start: u64, pages: u64, offset: u64) -> Reads {
    const MOST: u64 = 1 << 30;
    let size = pages * PAGE;
    let mut reads = Reads { expected: Vec::new() };
    let mut done = 0;
    while done < size {
        let len = MOST.min(size - done);
        let call =
            batch.must(libc::SYS_pread64, [fd.into(), (start + done).into(), len.into(), (offset + done).into()]);
        reads.expected.push((call, len));
        done += len;
    }
    reads
}

/// Reads of a batch, with the bytes that each has to yield.
#[derive(Debug)]
pub struct Reads {
    pub expected: Vec<(crate::inject::batch::CallId, u64)>,
}

/// Adds the call that sets the fields of the task's mm: code, data, heap, stack, arguments, environment, auxv and, with a descriptor, exe.
pub fn set_mm(batch: &mut Batch, mm: &pb::MmEntry, exe_fd: Option<i32>) {
    let auxv: Vec<u8> = mm.mm_saved_auxv.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let auxv_len = auxv.len();
    let auxv = batch.input(&auxv);
    let words = [
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend([0u8; 8]); // the auxv's address, stored below
    bytes.extend((auxv_len as u32).to_ne_bytes());
    bytes.extend((exe_fd.unwrap_or(-1) as u32).to_ne_bytes());
    let map = batch.input(&bytes);
    batch.store_address(map, words.len() * 8, auxv);
    batch.must(libc::SYS_prctl, [PR_SET_MM.into(), PR_SET_MM_MAP.into(), map.into(), bytes.len().into(), 0u64.into()]);
}
