//! The PAGEMAP_SCAN ioctl on /proc/PID/pagemap. Source: fs/proc/task_mmu.c, Linux 6.7.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// Page categories.
pub const PAGE_IS_FILE: u64 = 1 << 2;
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;
pub const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Linux 6.16; EINVAL before.
pub const PAGE_IS_GUARD: u64 = 1 << 8;

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Consecutive pages of the same categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96 && size_of::<Region>() == 24);

/// Fills `regions` with the pages from `start` that are in any of `any` and in none of `none`; yields how many it filled and
/// where the walk stopped. ENOTTY: the kernel lacks it.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    any: u64,
    none: u64,
    regions: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut argument = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: none,
        category_mask: none,
        category_anyof_mask: any,
        return_mask: any,
        ..ScanArg::default()
    };
    // SAFETY: the kernel reads and writes `argument` and writes at most `vec_len` regions.
    let count = Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) })?;
    Ok((usize::try_from(count).unwrap_or(0), argument.walk_end))
}
