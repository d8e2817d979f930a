//! Random settings and input.

use std::os::fd::AsFd;

use ptyagent::sys::tty::{self, Termios2};

use crate::pty::{ECHO, Pty, Way, compare, is_stable};
use crate::support::times;

/// A generator that needs no crate: xorshift.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn byte(&mut self) -> u8 {
        match self.below(12) {
            0 => b'\n',
            1 => b'\r',
            2 => 0x04,
            3 => 0x16,
            4 => 0x7f,
            5 => 0x15,
            6 => 0x17,
            7 => b' ',
            8 => self.below(256) as u8,
            _ => b'a' + self.below(26) as u8,
        }
    }
}

/// Settings and input of one random case, up to `longest` bytes.
fn random_case(seed: u64, longest: u64) -> (Termios2, Vec<u8>, usize, Way) {
    let mut random = Random::new(seed);
    let pty = Pty::new();
    let mut termios = tty::get_termios(pty.slave.as_fd()).unwrap();
    if random.below(2) == 0 {
        termios.c_lflag &= !ECHO;
    }
    for (slot, choices) in [(libc::VEOL, [0, b'e', 0x01]), (libc::VEOL2, [0, b'z', b' ']), (libc::VEOF, [4, 4, b'q'])] {
        termios.c_cc[slot] = choices[random.below(3) as usize];
    }
    let flags = [libc::ICRNL, libc::INLCR, libc::PARMRK, libc::IUTF8, libc::IXON];
    for flag in flags {
        if random.below(4) == 0 {
            termios.c_iflag ^= flag;
        }
    }
    termios.c_lflag &= !libc::ISIG;
    let length = random.below(longest) + 1;
    // Flow characters have tests of their own.
    let input = (0..length).map(|_| random.byte()).filter(|byte| ![0x11, 0x13].contains(byte)).collect();
    let size = [1, 7, 64, 1000, 4096][random.below(5) as usize];
    let way = [Way::Any, Way::NoSimulation][random.below(2) as usize];
    (termios, input, size, way)
}

/// Whether random input has quoted characters.
#[derive(Clone, Copy, PartialEq)]
enum Quoting {
    With,
    Without,
}

fn random_failures(seeds: std::ops::Range<u64>, longest: u64, quoting: Quoting) -> Vec<String> {
    let mut failures = Vec::new();
    for seed in seeds {
        let (termios, mut input, size, way) = random_case(seed, longest);
        input.retain(|byte| *byte != 0x16 || quoting == Quoting::With);
        let setup = |pty: &Pty| {
            tty::set_termios(pty.slave.as_fd(), &termios).unwrap();
            pty.keys(&input);
        };
        let text = compare(&setup, size, way);
        if !text.is_empty() && !is_stable(&setup, size) {
            println!("seed {seed}: controls differ among themselves");
        } else if !text.is_empty() {
            failures.push(format!("seed {seed}, {} bytes:\n{text}", input.len()));
        }
    }
    failures
}

/// QUEUE_SEED chooses another start; each failure names its own seed.
pub fn start_seed() -> u64 {
    let seed = std::env::var("QUEUE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("QUEUE_SEED={seed}");
    seed
}

#[test]
fn random_input() {
    let start = start_seed();
    let failures = random_failures(start..start + times(60), 600, Quoting::With);
    assert!(failures.is_empty(), "{}", failures.concat());
}

#[test]
fn random_input_beyond_the_line_buffer() {
    let start = start_seed();
    let failures = random_failures(start..start + times(40), 11000, Quoting::Without);
    assert!(failures.is_empty(), "{} of {} differ\n{}", failures.len(), times(40), failures.concat());
}

/// A quoted terminator before an EOF mark hides the mark's slot.
#[test]
fn random_quoted_input_beyond_the_line_buffer() {
    let start = start_seed();
    let failures = random_failures(start..start + times(60), 16000, Quoting::With);
    assert!(failures.is_empty(), "{} of {} differ\n{}", failures.len(), times(60), failures.concat());
}
