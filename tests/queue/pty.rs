//! A pair of a scenario, everything that its users can see, and the comparison with one that was left alone.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ptyagent::parasite_side::queue as side;
use ptyagent::sys::tty::{self, Termios2};
use ptyagent::tty::queue::{Queues, empty_hold};

pub const ECHO: u32 = libc::ECHO;

pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
    /// Another one, in raw mode.
    canary: (OwnedFd, OwnedFd),
}

/// How a scenario puts input back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Any,
    NoSimulation,
}

impl Pty {
    pub fn new() -> Pty {
        let canary = Pty::pair();
        let mut raw = tty::get_termios(canary.1.as_fd()).unwrap();
        (raw.c_iflag, raw.c_lflag) = (0, 0);
        tty::set_termios(canary.1.as_fd(), &raw).unwrap();
        let (master, slave) = Pty::pair();
        Pty { master, slave, canary }
    }

    pub fn pair() -> (OwnedFd, OwnedFd) {
        let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_NONBLOCK;
        let master: OwnedFd = nix::pty::posix_openpt(flags).unwrap().into();
        tty::set_lock(master.as_fd(), false).unwrap();
        let slave = tty::open_peer(master.as_fd(), libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK).unwrap();
        (master, slave)
    }

    pub fn change(&self, change: impl FnOnce(&mut Termios2)) {
        let mut termios = tty::get_termios(self.slave.as_fd()).unwrap();
        change(&mut termios);
        tty::set_termios(self.slave.as_fd(), &termios).unwrap();
    }

    /// Types bytes in small writes and waits until they are processed as far as they will be.
    pub fn keys(&self, bytes: &[u8]) {
        self.feed(self.master.as_fd(), bytes);
    }

    pub fn say(&self, bytes: &[u8]) {
        self.feed(self.slave.as_fd(), bytes);
    }

    /// Fills the line buffer first, then what the kernel keeps behind it, so that two ptys end up alike; until there is no room.
    pub fn feed(&self, fd: BorrowedFd<'_>, bytes: &[u8]) {
        for (at, chunk) in bytes.chunks(455).enumerate() {
            if nix::unistd::write(fd, chunk).is_err() {
                break;
            }
            if at % 4 == 3 && at < 16 {
                self.settle();
            }
        }
        self.settle();
    }

    /// Polls until both sides show the same readable counts for 4 ms, in which the kernel's worker has been at another terminal.
    pub fn settle(&self) {
        let mut seen = None;
        loop {
            nix::unistd::write(&self.canary.0, b"x").unwrap();
            while !ready(self.canary.1.as_fd(), libc::POLLIN) {}
            nix::unistd::read(&self.canary.1, &mut [0; 9]).unwrap();
            ready(self.slave.as_fd(), libc::POLLIN);
            let now = (tty::unread(self.slave.as_fd()).ok(), tty::unread(self.master.as_fd()).ok());
            if seen == Some(now) {
                return;
            }
            seen = Some(now);
            nix::poll::poll(&mut [], 4u16).unwrap();
        }
    }

    pub fn drain(&self) -> Box<side::Hold> {
        let mut hold = empty_hold();
        (hold.slave, hold.master) = (self.slave.as_raw_fd(), self.master.as_raw_fd());
        assert_eq!(side::drain(&mut hold), 0);
        assert_eq!(hold.phase, side::HELD);
        hold
    }

    pub fn put(&self, queues: &Queues, way: Way) -> i64 {
        let mut hold = queues.to_hold(self.slave.as_raw_fd(), self.master.as_raw_fd()).unwrap();
        hold.no_sti = u32::from(way == Way::NoSimulation);
        side::put_back(&mut hold)
    }
}

pub fn ready(fd: BorrowedFd<'_>, events: i16) -> bool {
    let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::from_bits_truncate(events))];
    let found = match nix::poll::poll(&mut fds, 0u16) {
        Ok(n) if n > 0 => fds[0].revents().map_or(0, |flags| flags.bits()),
        _ => 0,
    };
    found & events != 0
}

pub fn reads(fd: BorrowedFd<'_>, size: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while ready(fd, libc::POLLIN) {
        let mut buffer = vec![0; size];
        let count = nix::unistd::read(fd, &mut buffer).unwrap();
        buffer.truncate(count);
        all.push(buffer);
    }
    all
}

/// Everything that the two users can see from now on.
pub fn observe(pty: &Pty, size: usize) -> HashMap<&'static str, Vec<Vec<u8>>> {
    let mut seen = HashMap::new();
    let (master, slave) = (pty.master.as_fd(), pty.slave.as_fd());
    let canonical = tty::get_termios(slave).unwrap().c_lflag & (libc::ICANON | libc::EXTPROC) == libc::ICANON;
    // How much fits behind a full line buffer depends on the sizes of the writes.
    if tty::unread(master).unwrap() < 4095 && tty::unread(slave).unwrap() < 3900 {
        let both = [slave, master].map(|fd| u8::from(ready(fd, libc::POLLOUT)));
        seen.insert("writable", vec![both.to_vec()]);
    }
    seen.insert("packet", vec![vec![u8::from(tty::get_packet(master).unwrap())]]);
    let mut lines = |name, reads: Vec<Vec<u8>>| {
        let reads = if canonical { reads } else { vec![reads.concat()] };
        seen.insert(name, reads);
    };
    // In packet mode each read of data begins with a 0, and where reads end depends on when the kernel's worker runs.
    let packet = tty::get_packet(master).unwrap();
    let data = |read: Vec<u8>| if packet && read.first() == Some(&0) { read[1..].to_vec() } else { read };
    let output = |fd| vec![reads(fd, 4096).into_iter().map(data).collect::<Vec<_>>().concat()];
    lines("output", output(master));
    lines("input", reads(slave, size));
    lines("echo", output(master));
    pty.keys(b"q\x16\x03r\r\n");
    lines("typed", reads(slave, size));
    lines("typed echo", output(master));
    tty::xonc(slave, tty::TCOON).unwrap();
    seen.insert("writable after TCOON", vec![vec![u8::from(ready(slave, libc::POLLOUT))]]);
    pty.keys(b"\x11z");
    seen.insert("writable after START", vec![vec![u8::from(ready(slave, libc::POLLOUT))]]);
    seen.insert("late echo", output(master));
    pty.say(b"s\n");
    seen.insert("said", output(master));
    pty.change(|t| t.c_lflag &= !libc::ICANON);
    seen.insert("left", vec![reads(slave, size).concat()]);
    // Known gap: what the kernel drops of the echoes that a full output queue holds back depends on how they were cut up.
    if seen["output"].concat().len() > 15000 && !seen["input"].is_empty() {
        for name in ["output", "echo", "typed echo", "late echo"] {
            seen.remove(name);
        }
    }
    seen
}

pub fn differences(
    control: &HashMap<&'static str, Vec<Vec<u8>>>,
    other: &HashMap<&'static str, Vec<Vec<u8>>>,
) -> String {
    let mut text = String::new();
    for (name, want) in control {
        let Some(got) = other.get(name) else { continue };
        if want != got {
            let at = want.concat().iter().zip(got.concat().iter()).position(|(a, b)| a != b);
            let sizes = |list: &Vec<Vec<u8>>| {
                (list.len(), list.concat().len(), list.iter().map(Vec::len).take(12).collect::<Vec<_>>())
            };
            let short =
                |list: &Vec<Vec<u8>>| String::from_utf8_lossy(&list.concat()).chars().take(60).collect::<String>();
            text += &format!(
                "  {name}: want {:?} {:?}, got {:?} {:?}, first difference at {at:?}\n",
                sizes(want),
                short(want),
                sizes(got),
                short(got)
            );
        }
    }
    text
}

/// Empty where the captured pty and a fresh one read as the control does.
pub fn compare(setup: &dyn Fn(&Pty), size: usize, way: Way) -> String {
    let control = Pty::new();
    setup(&control);
    let control = observe(&control, size);
    let same = Pty::new();
    setup(&same);
    let before = tty::get_termios(same.slave.as_fd()).unwrap();
    let queues = Queues::from_hold(&same.drain()).unwrap();
    assert_eq!(tty::get_termios(same.slave.as_fd()).unwrap(), before);
    let fresh = Pty::new();
    let mut text = String::new();
    for (name, pty) in [("same", same), ("fresh", fresh)] {
        let result = pty.put(&queues, way);
        if result != 0 {
            text += &format!(" {name}: put_back {result}\n");
        }
        assert_eq!(tty::get_termios(pty.slave.as_fd()).unwrap(), before);
        let found = differences(&control, &observe(&pty, size));
        if !found.is_empty() {
            text += &format!(" {name}, read size {size}, {way:?}:\n{found}");
        }
    }
    text
}

/// Whether controls read alike at all: with no newline behind a full line buffer the kernel throws away what its worker brings
/// before the reader is there.
pub fn is_stable(setup: &dyn Fn(&Pty), size: usize) -> bool {
    let mut seen = (0..5).map(|_| {
        let pty = Pty::new();
        setup(&pty);
        observe(&pty, size)
    });
    let first = seen.next().unwrap();
    seen.all(|other| differences(&first, &other).is_empty())
}

pub fn check(name: &str, setup: impl Fn(&Pty)) {
    let mut text = String::new();
    for way in [Way::Any, Way::NoSimulation] {
        for size in [4096, 7] {
            text += &compare(&setup, size, way);
        }
    }
    assert!(text.is_empty(), "{name}:\n{text}");
}
