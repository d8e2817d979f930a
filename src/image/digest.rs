//! Digests of image files: xxh3-64 over the xxh3-64 values of consecutive blocks, so that several threads can hash one file.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a block.
pub const BLOCK: u64 = 1 << 20;

/// The value of one block.
pub fn block_digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Size and digest of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageDigest {
    /// In bytes.
    pub size: u64,
    pub value: u64,
}

impl PageDigest {
    /// From the values of all blocks, in any order, each with its number.
    pub fn of_blocks(size: u64, mut blocks: Vec<(u64, u64)>) -> PageDigest {
        blocks.sort_unstable();
        let values: Vec<u8> = blocks.iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
        PageDigest { size, value: xxh3_64(&values) }
    }
}
