//! The generator, and what is drawn from it without looking at anything else.

/// xorshift.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Neighbouring seeds begin alike.
        for _ in 0..5 {
            random.below(2);
        }
        random
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn bits(&mut self, mask: u32) -> u32 {
        (self.below(1 << 32) as u32) & mask
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Typed text: mostly letters, digits (which [`settings`](super::settings) makes special) and ends of lines, some control and high
    /// bytes, no flow characters.
    pub fn text(&mut self, longest: u64) -> Vec<u8> {
        let len = self.below(longest);
        let byte = |random: &mut Random| match random.below(16) {
            0 | 1 => b'\r',
            2 => b'\n',
            3 => 0x04,
            4 => 0x16,
            5 => 0x7f,
            6 => b'\t',
            7 => random.below(256) as u8,
            8 => b'0' + random.below(10) as u8,
            9 => random.of(&[0x15, 0x17, 0x12, b' ']),
            _ => b'a' + random.below(26) as u8,
        };
        (0..len).map(|_| byte(self)).filter(|byte| ![0x11, 0x13].contains(byte)).collect()
    }
}
