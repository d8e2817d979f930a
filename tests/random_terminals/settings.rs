//! Settings of a terminal, and descriptions that lead to it.

use ptyagent::sys::tty;

use crate::random::Random;
use crate::support::Stage;

const ECHOES: u32 =
    libc::ECHO | libc::ECHOE | libc::ECHOK | libc::ECHONL | libc::ECHOCTL | libc::ECHOKE | libc::ECHOPRT;
/// Slots that end or edit lines.
const SLOTS: [usize; 6] = [libc::VEOL, libc::VEOL2, libc::VERASE, libc::VKILL, libc::VWERASE, libc::VREPRINT];

/// How a terminal handles what is typed; `quiet` where echoes would compete with output for the last room.
#[derive(Clone, Copy, PartialEq)]
pub enum Echo {
    Drawn,
    Quiet,
}

/// Whether the terminal is hung up in the end.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    Alive,
    HungUp,
}

/// Draws all settings.
pub fn settings(random: &mut Random, stage: &mut Stage, name: &str, fd: i32, echo: Echo) {
    let input = random.bits(0o77777);
    let returns = libc::ONLCR | libc::OCRNL | libc::ONLRET | libc::ONOCR;
    let tabs = if random.one_in(2) { libc::TAB3 } else { 0 };
    let output = random.bits(libc::OPOST | libc::OLCUC | returns) | tabs;
    let more = libc::IEXTEN | libc::NOFLSH | libc::TOSTOP | libc::PENDIN | libc::FLUSHO;
    let echoes = if echo == Echo::Drawn { ECHOES } else { 0 };
    let lines = if random.one_in(3) { 0 } else { libc::ICANON };
    let signals = if random.one_in(4) && echo == Echo::Drawn { libc::ISIG } else { 0 };
    let local = random.bits(echoes | more) | lines | signals;
    let (speed, other) = (random.below(4_000_000) as u32 + 1, random.one_in(2));
    let slots: Vec<(usize, u8)> =
        (0..random.below(4)).map(|_| (random.of(&SLOTS), b'0' + random.below(10) as u8)).collect();
    let least = random.one_in(8).then(|| random.below(4) as u8);
    stage.set_termios(name, fd, |flags, rest| {
        (flags[0], flags[1]) = (input, output);
        flags[3] = flags[3] & !(ECHOES | more | libc::ICANON | libc::ISIG) | local;
        for (slot, byte) in &slots {
            rest[1 + slot] = *byte;
        }
        if let Some(least) = least {
            rest[1 + libc::VMIN] = least;
        }
        if other {
            flags[2] = flags[2] & !libc::CBAUD | libc::BOTHER;
            rest[24..28].copy_from_slice(&speed.to_ne_bytes());
        }
    });
    if random.one_in(2) {
        let size: Vec<u8> = (0..8).map(|_| random.below(256) as u8).collect();
        stage.ioctl_in(name, fd, tty::TIOCSWINSZ, &size);
    }
}

/// Locked settings, and the owner, group and mode of the node.
pub fn node(random: &mut Random, stage: &mut Stage, name: &str, fd: i32) {
    if random.one_in(6) {
        let lock: Vec<u8> = (0..36).map(|_| if random.one_in(4) { random.below(256) as u8 } else { 0 }).collect();
        stage.ioctl_in(name, fd, tty::TIOCSLCKTRMIOS, &lock);
    }
    if random.one_in(6) {
        let (owner, group, mode) = (random.below(70_000), random.below(70_000), random.below(0o1000));
        stage.must(name, libc::SYS_fchown, &[fd.into(), owner.into(), group.into()]);
        stage.must(name, libc::SYS_fchmod, &[fd.into(), mode.into()]);
    }
}

/// Descriptions beside the first slave, and where signals of them go.
///
/// An O_PATH description of a slave that is hung up in the end would be refused.
pub fn opens(random: &mut Random, stage: &mut Stage, name: &str, index: u32, first: i32, end: End) {
    let path = format!("/dev/pts/{index}");
    for fd in (first..).take(random.below(4) as usize) {
        let access = random.below(3) as i32;
        let more = random.bits((libc::O_NONBLOCK | libc::O_APPEND | libc::O_CLOEXEC) as u32) as i32;
        match random.below(10) {
            0..=2 => stage.dup(name, first - 1, fd),
            3 if end == End::Alive => stage.open(name, fd, &path, libc::O_PATH),
            _ => stage.open(name, fd, &path, access | more | libc::O_NOCTTY),
        }
    }
    if random.one_in(6) {
        let owner = stage.pid(name) * if random.one_in(3) { -1 } else { 1 };
        announce(random, stage, name, first - 1, owner);
    }
}

/// Signals of a description go to a process or, negative, a group that leads itself.
fn announce(random: &mut Random, stage: &mut Stage, name: &str, fd: i32, owner: i32) {
    const F_SETSIG: i32 = 10;
    stage.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETOWN.into(), owner.into()]);
    stage.must(name, libc::SYS_fcntl, &[fd.into(), F_SETSIG.into(), (libc::SIGRTMIN() + 3).into()]);
    if random.one_in(2) {
        let flags = stage.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_GETFL.into()]).result as i32;
        stage.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), (flags | libc::O_ASYNC).into()]);
    }
}
