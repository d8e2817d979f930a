//! Runs of pages.

use super::pb::PagemapEntry;

/// The pages are not stored here but in the directory of the dump before.
pub const PE_PARENT: u32 = 1 << 0;
/// The pages may be fetched after the start: anonymous private memory.
pub const PE_LAZY: u32 = 1 << 1;
/// The pages are stored here.
pub const PE_PRESENT: u32 = 1 << 2;

impl PagemapEntry {
    /// A run of `pages` stored pages from `vaddr` on, with both counts, so that CRIU 3 and 4 can read it.
    pub fn run(vaddr: u64, pages: u64, flags: u32) -> Self {
        // A count over 32 bits is for newer readers only; 0 makes the older ones fail instead of reading a part.
        let compat_nr_pages = u32::try_from(pages).unwrap_or(0);
        PagemapEntry { vaddr, compat_nr_pages, in_parent: None, flags: Some(flags), nr_pages: Some(pages) }
    }

    /// The number of pages of the run, whichever version wrote it.
    pub fn pages(&self) -> u64 {
        self.nr_pages.unwrap_or(u64::from(self.compat_nr_pages))
    }

    /// Whether the pages are in the directory's own file.
    pub fn is_stored(&self) -> bool {
        match self.flags {
            Some(flags) => flags & PE_PRESENT != 0,
            None => self.in_parent != Some(true),
        }
    }

    /// Whether the pages are in the directory of an earlier dump.
    pub fn is_in_parent(&self) -> bool {
        self.in_parent == Some(true) || self.flags.is_some_and(|flags| flags & PE_PARENT != 0)
    }
}
