//! Free address ranges.

use std::ops::Range;

use crate::procfs::Mapping;

/// Where the search starts: above what executables that are not position independent use with their heap, far below the mmap area.
const SEARCH_FROM: u64 = 0x10_0000_0000;
/// The end of the lower half with 4-level page tables, less the guard page.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Kept free on both sides, so that no mapping of the task's can grow into the hole or merge with what is put there.
const MARGIN: u64 = 16 * 4096;

/// The lowest hole of `size` bytes (a multiple of the page size) that touches none of the ranges.
pub fn hole(taken: impl IntoIterator<Item = Range<u64>>, size: u64) -> Option<u64> {
    let mut taken: Vec<Range<u64>> = taken.into_iter().collect();
    taken.sort_by_key(|range| range.start);
    let mut at = SEARCH_FROM;
    for range in &taken {
        if range.end.saturating_add(MARGIN) <= at {
            continue;
        }
        if range.start >= at.checked_add(size)?.checked_add(MARGIN)? {
            return Some(at);
        }
        at = at.max(range.end.checked_add(MARGIN)?);
    }
    (at.checked_add(size)? <= TASK_SIZE).then_some(at)
}

/// The address ranges of mappings.
pub fn ranges(mappings: &[Mapping]) -> impl Iterator<Item = Range<u64>> + '_ {
    mappings.iter().map(|mapping| mapping.start.0..mapping.end.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_touches_nothing() {
        assert_eq!(hole([], 4096), Some(SEARCH_FROM));
        let near = SEARCH_FROM + 4096..SEARCH_FROM + 8192;
        assert_eq!(hole([near.clone()], 4096), Some(near.end + MARGIN));
        assert_eq!(hole(std::iter::once(0x40_0000..0x50_0000), 4096), Some(SEARCH_FROM));
        assert_eq!(hole(std::iter::once(SEARCH_FROM..TASK_SIZE), 4096), None);
    }
}
