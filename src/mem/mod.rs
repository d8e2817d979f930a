//! Memory: mappings, the pages that have content of their own, and holes to put the parasite in.
//!
//! Mappings come from /proc/PID/smaps (their flags) and maps, pages from /proc/PID/pagemap, contents by process_vm_readv: that
//! needs nothing from inside, and two threads of the controller read and write at the same time. On the way back the task maps everything itself and
//! reads its pages straight from the image file; of much memory the controller writes a half.
//!
//! Refused: huge pages of hugetlbfs, mappings of devices, userfaultfd and protection keys (the survey names them).

pub mod copy;
pub mod give;
pub mod inherit;
pub mod layout;
pub mod pages;
pub mod policy;
pub mod restore;
pub mod segment;
pub mod shared;
pub mod vdso;

use std::os::unix::ffi::OsStrExt;

use crate::image::pb;
use crate::inject::Place;
use crate::procfs::{self, Mapping, Sharing, VmFlags};

/// CRIU's `status` bits of a mapping.
pub mod status {
    pub const REGULAR: u32 = 1 << 0;
    pub const STACK: u32 = 1 << 1;
    pub const VSYSCALL: u32 = 1 << 2;
    pub const VDSO: u32 = 1 << 3;
    pub const HEAP: u32 = 1 << 5;
    pub const FILE_PRIVATE: u32 = 1 << 6;
    pub const FILE_SHARED: u32 = 1 << 7;
    pub const ANON_SHARED: u32 = 1 << 8;
    pub const ANON_PRIVATE: u32 = 1 << 9;
    pub const SYSVIPC: u32 = 1 << 10;
    pub const VVAR: u32 = 1 << 12;
    pub const MEMFD: u32 = 1 << 14;
}

/// The madvise(2) advice that each VmFlag stands for.
const ADVICE: [(&[u8; 2], u32); 8] = [
    (b"rr", libc::MADV_RANDOM as u32),
    (b"sr", libc::MADV_SEQUENTIAL as u32),
    (b"dc", libc::MADV_DONTFORK as u32),
    (b"mg", libc::MADV_MERGEABLE as u32),
    (b"hg", libc::MADV_HUGEPAGE as u32),
    (b"nh", libc::MADV_NOHUGEPAGE as u32),
    (b"dd", libc::MADV_DONTDUMP as u32),
    (b"wf", libc::MADV_WIPEONFORK as u32),
];

/// What a mapping is, as CRIU's status bits; the vsyscall page is the kernel's and no mapping of the task's.
pub fn status_of(mapping: &Mapping) -> u32 {
    if mapping.is("[vdso]") {
        return status::REGULAR | status::VDSO | status::ANON_PRIVATE;
    }
    if mapping.is("[vvar]") || mapping.is("[vvar_vclock]") {
        return status::REGULAR | status::VVAR | status::ANON_PRIVATE;
    }
    let backing = match (mapping.sharing, is_file(mapping)) {
        (Sharing::Private, true) => status::FILE_PRIVATE,
        (Sharing::Shared, true) => status::FILE_SHARED,
        (Sharing::Private, false) => status::ANON_PRIVATE,
        (Sharing::Shared, false) => status::ANON_SHARED,
    };
    let name = if mapping.is("[stack]") {
        status::STACK
    } else if mapping.is("[heap]") {
        status::HEAP
    } else {
        0
    };
    let memfd = if mapping.deleted && procfs::is_memfd(&mapping.name) { status::MEMFD } else { 0 };
    let segment = if segment::is_view(mapping) { status::SYSVIPC } else { 0 };
    status::REGULAR | backing | name | memfd | segment
}

/// Whether a file that can be opened by its path is behind a mapping; shared memory is a file to the kernel only.
pub fn is_file(mapping: &Mapping) -> bool {
    mapping.has_file() && !shared::is_shown_by(mapping)
}

/// Whether it is shared anonymous memory (the kernel shows it as /dev/zero, or by the name that it was given).
pub fn is_shared_anonymous(mapping: &Mapping) -> bool {
    let named = mapping.name.as_bytes().starts_with(b"[anon_shmem:");
    mapping.sharing == Sharing::Shared && (named || mapping.name == "/dev/zero" && mapping.deleted)
}

/// What CRIU's entry has no field for; none where there is nothing.
pub fn to_own_entry(mapping: &Mapping) -> Option<pb::PtyagentVma> {
    let has = |flag: &[u8; 2]| mapping.flags.as_ref().is_some_and(|flags| flags.has(flag));
    let name = mapping.name.as_bytes();
    let name = name.strip_prefix(b"[anon:").or(name.strip_prefix(b"[anon_shmem:"));
    let special = mapping.name.as_bytes().starts_with(b"[v");
    let entry = pb::PtyagentVma {
        anon_name: name.and_then(|name| name.strip_suffix(b"]")).map(<[u8]>::to_vec),
        lock_onfault: mapping.flags.as_ref().is_some_and(VmFlags::is_locked_on_fault).then_some(true),
        sealed: (has(b"sl") && !special).then_some(true),
        droppable: has(b"dp").then_some(true),
        start: None,
    };
    (entry != pb::PtyagentVma::default()).then_some(pb::PtyagentVma { start: Some(mapping.start.0), ..entry })
}

/// A mapping as CRIU's entry. `file` is the id of its file, or of its shared memory.
pub fn to_entry(mapping: &Mapping, file: Option<u32>) -> pb::VmaEntry {
    let status = status_of(mapping);
    let mut flags = match mapping.sharing {
        Sharing::Private => libc::MAP_PRIVATE,
        Sharing::Shared => libc::MAP_SHARED,
    };
    if status & (status::ANON_PRIVATE | status::ANON_SHARED) != 0 {
        flags |= libc::MAP_ANONYMOUS;
    }
    let has = |flag: &[u8; 2]| mapping.flags.as_ref().is_some_and(|flags| flags.has(flag));
    for (flag, bit) in [(b"gd", libc::MAP_GROWSDOWN), (b"nr", libc::MAP_NORESERVE), (b"lo", libc::MAP_LOCKED)] {
        if has(flag) {
            flags |= bit;
        }
    }
    let madv = ADVICE.iter().filter(|(flag, _)| has(flag)).fold(0u64, |bits, (_, advice)| bits | 1 << advice);
    pb::VmaEntry {
        start: mapping.start.0,
        end: mapping.end.0,
        pgoff: mapping.offset,
        shmid: u64::from(file.unwrap_or(0)),
        prot: mapping.prot as u32,
        flags: flags as u32,
        status,
        fd: -1,
        madv: (madv != 0).then_some(madv),
        fdflags: segment::is_view(mapping).then(|| segment::access_mode(mapping) as u32),
    }
}

/// Where entry code may go in a process: behind its vDSO, else behind the text of its files.
pub fn places(mappings: &[Mapping]) -> Vec<Place> {
    let range = |mapping: &Mapping| mapping.start.0..mapping.end.0;
    let vdso = mappings.iter().filter(|mapping| mapping.is("[vdso]")).map(|mapping| Place::Vdso(range(mapping)));
    let is_text = |mapping: &&Mapping| {
        mapping.prot & libc::PROT_EXEC != 0 && mapping.sharing == Sharing::Private && is_file(mapping)
    };
    vdso.chain(mappings.iter().filter(is_text).map(|mapping| Place::Text(range(mapping)))).collect()
}

/// Whether a process has a vDSO, which a restore needs.
pub fn has_vdso(mappings: &[Mapping]) -> bool {
    mappings.iter().any(|mapping| mapping.is("[vdso]"))
}
