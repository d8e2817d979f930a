//! As much output as the kernel takes, written in many ways: all of it goes back into the terminal that it came from, and into a fresh one.

use std::os::fd::AsFd;
use std::time::Duration;

use ptyagent::sys::tty;
use ptyagent::tty::queue::Queues;

use crate::pty::{Pty, Way, ready};
use crate::random::{Random, start_seed};
use crate::support::{times, with_timeout};

const SIZES: [usize; 9] = [1, 7, 100, 255, 256, 257, 1000, 1792, 4000];

/// What a terminal has been through before its output is looked at.
struct Fill {
    random: Random,
    /// Bytes written until now.
    written: usize,
    /// What nobody has read yet.
    unread: Vec<u8>,
}

impl Fill {
    fn size(&mut self) -> usize {
        SIZES[self.random.below(SIZES.len() as u64) as usize]
    }

    /// Writes until nothing is taken any more, eight times: all of one size, or each of another; at last byte by byte.
    fn write(&mut self, pty: &Pty, one_size: bool) {
        let first = self.size();
        let mut refused = 0;
        while refused < 8 {
            let size = if refused > 4 {
                1
            } else if one_size {
                first
            } else {
                self.size()
            };
            let bytes: Vec<u8> = (self.written..self.written + size).map(|at| b'a' + (at % 23) as u8).collect();
            match nix::unistd::write(&pty.slave, &bytes) {
                Ok(count) => {
                    self.written += count;
                    self.unread.extend(&bytes[..count]);
                }
                Err(_) => {
                    refused += 1;
                    pty.settle();
                }
            }
        }
    }

    /// The master reads some of it.
    fn read(&mut self, pty: &Pty, most: usize) {
        let packet = usize::from(tty::get_packet(pty.master.as_fd()).unwrap());
        let mut left = most;
        while left > 0 && ready(pty.master.as_fd(), libc::POLLIN) {
            let mut buffer = vec![0; left.min(3000) + packet];
            let count = nix::unistd::read(&pty.master, &mut buffer).unwrap();
            assert_eq!(buffer[packet..count], self.unread[..count - packet]);
            self.unread.drain(..count - packet);
            left -= count - packet;
        }
    }
}

fn fill(pty: &Pty, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let (packet, rounds) = (random.below(2) == 0, random.below(4));
    let mut fill = Fill { random, written: 0, unread: Vec::new() };
    pty.change(|t| t.c_oflag &= !libc::OPOST);
    tty::set_packet(pty.master.as_fd(), packet).unwrap();
    for _ in 0..rounds {
        let one_size = fill.random.below(2) == 0;
        fill.write(pty, one_size);
        let most = [1, 700, 5000, 100_000][fill.random.below(4) as usize];
        fill.read(pty, most);
    }
    let one_size = fill.random.below(2) == 0;
    fill.write(pty, one_size);
    fill.unread
}

#[test]
fn full_output_goes_back_whole() {
    with_timeout(Duration::from_secs(300), all_goes_back);
}

fn all_goes_back() {
    let start = start_seed();
    let mut failures = String::new();
    let mut longest = 0;
    for seed in start..start + times(200) {
        let same = Pty::new();
        let want = fill(&same, seed);
        longest = longest.max(want.len());
        let queues = Queues::from_hold(&same.drain()).unwrap();
        if queues.output != want {
            failures += &format!("seed {seed}: {} bytes, drained {}\n", want.len(), queues.output.len());
        }
        for (name, pty) in [("same", same), ("fresh", Pty::new())] {
            let result = pty.put(&queues, Way::Any);
            let mut rest = Fill { random: Random::new(1), written: 0, unread: want.clone() };
            rest.read(&pty, usize::MAX);
            if result != 0 || !rest.unread.is_empty() {
                failures +=
                    &format!("seed {seed}, {name}: {result}, {} of {} bytes are lost\n", rest.unread.len(), want.len());
            }
        }
    }
    println!("the longest had {longest} bytes");
    assert!(failures.is_empty(), "{failures}");
}
