//! The digest of a file: xxh3-64 over the little-endian xxh3-64 values of its consecutive blocks of 1 MiB.
//!
//! Blocks are independent, so that several threads can hash one file, in any order, and a file can be hashed while it is
//! written. An empty file has no blocks. The digest finds damage, not malice: whoever can write the directory can write a
//! digest too, which is why its owner and mode are checked.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// In bytes; the last block of a file may be shorter.
pub const BLOCK: usize = 1 << 20;

/// Size in bytes and digest of one file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub size: u64,
    pub value: u64,
}

impl Digest {
    /// The digest of a file that is wholly in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        let blocks: Vec<u64> = bytes.chunks(BLOCK).map(xxh3_64).collect();
        Digest::from_blocks(bytes.len() as u64, &blocks)
    }

    /// The digest of a file of `size` bytes, from the values of all its blocks in order: see [`block`].
    pub fn from_blocks(size: u64, blocks: &[u64]) -> Digest {
        let mut hasher = Xxh3Default::new();
        for block in blocks {
            hasher.update(&block.to_le_bytes());
        }
        Digest { size, value: hasher.digest() }
    }
}

/// The value of one block: at most [`BLOCK`] bytes, fewer only at the end of a file.
pub fn block(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// [`block`] of bytes that come in pieces.
#[derive(Default)]
pub struct Hasher(Xxh3Default);

impl Hasher {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub fn value(&self) -> u64 {
        self.0.digest()
    }
}

/// Hashes a file as it is written, from pieces of any size.
pub struct DigestStream {
    blocks: Vec<u64>,
    hasher: Xxh3Default,
    /// Bytes in the hasher, less than [`BLOCK`].
    filled: usize,
}

impl Default for DigestStream {
    fn default() -> Self {
        DigestStream { blocks: Vec::new(), hasher: Xxh3Default::new(), filled: 0 }
    }
}

impl DigestStream {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            if piece.len() == BLOCK {
                self.blocks.push(xxh3_64(piece));
            } else {
                self.hasher.update(piece);
                self.filled += piece.len();
            }
            if self.filled == BLOCK {
                self.blocks.push(self.hasher.digest());
                self.hasher.reset();
                self.filled = 0;
            }
            bytes = rest;
        }
    }

    pub fn finish(mut self) -> Digest {
        let size = (self.blocks.len() * BLOCK + self.filled) as u64;
        if self.filled > 0 {
            self.blocks.push(self.hasher.digest());
        }
        Digest::from_blocks(size, &self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_whole_agree() {
        let bytes: Vec<u8> = (0..3 * BLOCK + 17).map(|n| ((n * n) >> 3) as u8).collect();
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, bytes.len()] {
            let whole = Digest::of(&bytes[..len]);
            for piece in [4096, 5000, 300_000, BLOCK, 3 * BLOCK] {
                let mut stream = DigestStream::default();
                bytes[..len].chunks(piece).for_each(|piece| stream.update(piece));
                assert_eq!(stream.finish(), whole, "{len} bytes in pieces of {piece}");
            }
        }
    }
}
