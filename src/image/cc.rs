//! The control characters of a termios as CRIU stores them: bytes, four to a 32-bit slot.

use super::pb::TermiosEntry;

/// The length of `c_cc` in the kernel's struct termios2 on x86.
pub const NCCS: usize = 19;

impl TermiosEntry {
    /// The slots for these control characters: CRIU copies the bytes into the front of as many slots; the rest is 0.
    pub fn slots(c_cc: &[u8; NCCS]) -> Vec<u32> {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
        let mut slots: Vec<u32> = c_cc.chunks(4).map(word).collect();
        slots.resize(NCCS, 0);
        slots
    }

    /// The control characters; 0 (disabled) where there are too few slots.
    pub fn control_characters(&self) -> [u8; NCCS] {
        let mut bytes = self.c_cc.iter().flat_map(|slot| slot.to_le_bytes());
        std::array::from_fn(|_| bytes.next().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_four_each() {
        let c_cc = *b"\x03\x1c\x7f\x15\x04\x00\x01\x00\x11\x13\x1a\x00\x12\x0f\x17\x16\x00\x00\xfe";
        let c_cc_slots = TermiosEntry::slots(&c_cc);
        assert_eq!((c_cc_slots.len(), c_cc_slots[0], c_cc_slots[4]), (19, 0x157f_1c03, 0x00fe_0000));
        let entry = TermiosEntry { c_cc: c_cc_slots, ..Default::default() };
        assert_eq!(entry.control_characters(), c_cc);
        assert_eq!(TermiosEntry::default().control_characters(), [0; NCCS]);
    }
}
