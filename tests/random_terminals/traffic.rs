//! What is written, typed and flushed, and what is done once all of it has been processed.

use ptyagent::sys::tty;

use crate::case::{Case, Terminal};
use crate::random::Random;
use crate::settings::Echo;
use crate::support::{Stage, room};

/// Done once all that was typed has been processed.
pub enum Late {
    /// An ioctl with a number.
    Call(String, i32, u64, i32),
    /// An ioctl with a number behind a pointer.
    Set(String, i32, u64, i32),
    Type(String, i32, Vec<u8>),
}

impl Late {
    pub fn run(&self, stage: &mut Stage) {
        match self {
            Late::Call(name, fd, request, arg) => stage.ioctl(name, *fd, *request, *arg),
            Late::Set(name, fd, request, arg) => stage.ioctl_in(name, *fd, *request, &arg.to_ne_bytes()),
            Late::Type(name, fd, text) => drop(stage.type_in(name, *fd, text)),
        }
    }
}

/// Where a terminal's queues end up.
#[derive(Clone, Copy, PartialEq)]
pub enum Fill {
    Little,
    /// More input than the line buffer holds.
    Input,
    /// More output than the line buffer of the master holds.
    Output,
}

impl Fill {
    pub fn draw(random: &mut Random) -> Fill {
        match random.below(20) {
            0 => Fill::Input,
            1 => Fill::Output,
            _ => Fill::Little,
        }
    }

    pub fn echo(self) -> Echo {
        if self == Fill::Little { Echo::Drawn } else { Echo::Quiet }
    }
}

pub fn traffic(random: &mut Random, stage: &mut Stage, at: &Terminal, fill: Fill) {
    let (user, slave, holder, master) = (&at.user, at.slave, &at.holder, at.master);
    let packet = random.one_in(4);
    let early = random.one_in(2);
    if packet && early {
        stage.ioctl_in(holder, master, tty::TIOCPKT, &1i32.to_ne_bytes());
    }
    // Together with a flush that is pending, ISTRIP and IUCLC it gets one more bit.
    let extproc = random.one_in(10);
    if extproc {
        stage.set_termios(user, slave, |flags, _| flags[3] |= libc::EXTPROC);
    }
    match fill {
        Fill::Output => fill_output(random, stage, at),
        _ if random.one_in(2) => drop(stage.write(user, slave, &random.text(300))),
        _ => {}
    }
    if packet && !early {
        stage.ioctl_in(holder, master, tty::TIOCPKT, &1i32.to_ne_bytes());
    }
    // A flush would race with output on its way.
    stage.settle();
    if packet && !extproc && random.one_in(2) {
        leave_bits(random, stage, at);
        stage.settle();
    }
    match fill {
        Fill::Input => {
            let text = random.text(16_000);
            for (n, piece) in text.chunks(455).enumerate() {
                stage.type_in(holder, master, piece);
                if n % 4 == 3 && n < 16 {
                    stage.settle();
                }
            }
        }
        _ if random.one_in(2) => drop(stage.type_in(holder, master, &random.text(600))),
        _ => {}
    }
}

/// Actions that a packet mode master is told of.
fn leave_bits(random: &mut Random, stage: &mut Stage, at: &Terminal) {
    let (user, slave) = (&at.user, at.slave);
    for _ in 0..1 + random.below(2) {
        match random.below(6) {
            0 => stage.ioctl(user, slave, tty::TCFLSH, tty::TCIFLUSH),
            1 => stage.ioctl(user, slave, tty::TCFLSH, tty::TCOFLUSH),
            2 => stage.ioctl(user, slave, tty::TCFLSH, tty::TCIOFLUSH),
            3 => {
                stage.ioctl(user, slave, tty::TCXONC, tty::TCOOFF);
                stage.ioctl(user, slave, tty::TCXONC, tty::TCOON);
            }
            4 => stage.set_termios(user, slave, |flags, _| flags[0] ^= libc::IXON),
            _ => stage.set_termios(user, slave, |flags, _| flags[3] ^= libc::EXTPROC),
        }
    }
    if random.one_in(2) {
        stage.type_in(user, slave, &random.text(200));
    }
}

/// Draws what is done last.
pub fn late(random: &mut Random, case: &mut Case, at: &Terminal) {
    let (user, slave, holder, master) = (at.user.clone(), at.slave, at.holder.clone(), at.master);
    let stop = random.below(12);
    if stop < 4 {
        case.stopped_flows.push(at.clone());
    }
    match stop {
        0 => case.late.push(Late::Call(user.clone(), slave, tty::TCXONC, tty::TCOOFF)),
        1 => case.late.push(Late::Call(holder.clone(), master, tty::TCXONC, tty::TCOOFF)),
        2 => case.late.push(Late::Type(holder.clone(), master, b"\x13".to_vec())),
        3 => {
            // Echoes of tabs and erasures that are held back are not told from other text: see `tty::queue`.
            let plain = |byte: &u8| !matches!(byte & 0x7f, 0x7f | 0x15 | 0x17 | b'\t' | b'0'..=b'9');
            let text: Vec<u8> = random.text(60).into_iter().filter(plain).collect();
            case.late.push(Late::Type(holder.clone(), master, [b"\x13", &text[..]].concat()));
        }
        _ => {}
    }
    match random.below(12) {
        0 => case.late.push(Late::Call(user, slave, tty::TIOCEXCL, 0)),
        1 => case.late.push(Late::Call(holder, master, tty::TIOCEXCL, 0)),
        2 => case.late.push(Late::Set(holder, master, tty::TIOCSPTLCK, 1)),
        _ => {}
    }
}

/// The master's line buffer first, then some of what fits behind it. How much that is in all depends on the sizes of all writes before.
fn fill_output(random: &mut Random, stage: &mut Stage, at: &Terminal) {
    let text: Vec<u8> = (0..5000 + random.below(9000)).map(|n| b'a' + (n % 23) as u8).collect();
    stage.type_in(&at.user, at.slave, &text[..4095]);
    let unread = [at.master.into(), tty::FIONREAD.into(), room(4)];
    while stage.must(&at.holder, libc::SYS_ioctl, &unread).number() < 4095 {}
    stage.type_in(&at.user, at.slave, &text[4095..]);
}
