//! What a drain and its reverse make of other holders, other modes and content that no drain has written.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use ptyagent::parasite_side::queue as side;
use ptyagent::sys::tty;
use ptyagent::tty::queue::{Queues, empty_hold};

use crate::pty::{ECHO, Pty, Way, differences, observe, reads};

/// A master outside the tree sees nothing: input only is taken, and put back by simulated typing.
fn an_external_master_sees_nothing(name: &str, setup: impl Fn(&Pty)) {
    let (control, pty) = (Pty::new(), Pty::new());
    for pty in [&control, &pty] {
        setup(pty);
    }
    let mut hold = empty_hold();
    hold.slave = pty.slave.as_raw_fd();
    match side::can_put_back(&hold, hold.slave) {
        0 => {
            assert_eq!(side::drain(&mut hold), 0);
            assert_eq!(hold.output_len, 0);
            assert_eq!(side::put_back(&mut hold), 0);
        }
        error => {
            println!("simulated input is not allowed here: only the refusal is tested");
            assert_eq!((side::drain(&mut hold), hold.phase), (error, side::EMPTY));
        }
    }
    assert_eq!(differences(&observe(&control, 100), &observe(&pty, 100)), "", "{name}");
    let mut hold = empty_hold();
    (hold.slave, hold.no_sti) = (pty.slave.as_raw_fd(), 1);
    assert_eq!((side::drain(&mut hold), hold.phase), (-i64::from(libc::EPERM), side::EMPTY));
}

const TYPED: [&[u8]; 4] = [b"", b"one\ntwo\x04part", b"\x16", b"\x04"];

#[test]
fn an_external_master() {
    for input in TYPED {
        an_external_master_sees_nothing(&format!("{input:?}"), |p| {
            p.say(b"out");
            p.keys(input);
        });
    }
}

#[test]
fn an_external_master_in_packet_mode() {
    let lines = libc::ICANON | libc::ECHO | libc::IEXTEN;
    for local in [lines, libc::ECHO, lines | libc::EXTPROC, libc::EXTPROC] {
        for input in TYPED {
            let packet = |p: &Pty| {
                p.change(|t| t.c_lflag = local);
                tty::set_packet(p.master.as_fd(), true).unwrap();
                p.say(b"out");
                p.keys(input);
            };
            an_external_master_sees_nothing(&format!("{input:?}, {local:#o}"), packet);
            an_external_master_sees_nothing(&format!("{input:?}, {local:#o}, a flush"), |p| {
                tty::set_packet(p.master.as_fd(), true).unwrap();
                tty::flush(p.slave.as_fd(), tty::TCIOFLUSH).unwrap();
                p.say(b"out");
                p.keys(input);
            });
            an_external_master_sees_nothing(&format!("{input:?}, {local:#o}, stopped"), |p| {
                packet(p);
                tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
            });
            an_external_master_sees_nothing(&format!("{input:?}, {local:#o}, with other flow characters"), |p| {
                p.change(|t| t.c_iflag &= !libc::IXON);
                packet(p);
            });
        }
    }
}

/// A full buffer cannot be given back by simulated typing once more waits behind it: refused before anything is read.
#[test]
fn an_external_master_with_a_full_buffer() {
    let (control, pty) = (Pty::new(), Pty::new());
    for pty in [&control, &pty] {
        pty.keys(&b"0123456789\n".repeat(900));
    }
    let mut hold = empty_hold();
    hold.slave = pty.slave.as_raw_fd();
    assert!(side::drain(&mut hold) < 0);
    assert_eq!(hold.input_len, 0);
    assert_eq!(differences(&observe(&control, 100), &observe(&pty, 100)), "");
}

#[test]
fn an_exclusive_terminal() {
    let pty = Pty::new();
    pty.keys(b"line\n");
    tty::set_exclusive(pty.slave.as_fd()).unwrap();
    let queues = Queues::from_hold(&pty.drain()).unwrap();
    assert_eq!(pty.put(&queues, Way::Any), 0);
    assert!(tty::get_exclusive(pty.slave.as_fd()).unwrap());
    assert_eq!(reads(pty.slave.as_fd(), 100), [b"line\n"]);
}

/// Another process's master is copied for the drain, and the copy is closed once, whatever has its number later.
#[test]
fn a_borrowed_master() {
    let (control, pty) = (Pty::new(), Pty::new());
    for pty in [&control, &pty] {
        pty.say(b"out");
        pty.keys(b"one\npart");
    }
    let mut hold = empty_hold();
    (hold.slave, hold.master, hold.lender) = (-1, pty.master.as_raw_fd(), std::process::id() as i32);
    assert_eq!(side::drain(&mut hold), 0);
    assert_ne!(hold.master, pty.master.as_raw_fd());
    assert_eq!((side::put_back(&mut hold), hold.master, hold.lender), (0, -1, 0));
    assert_eq!(side::put_back(&mut hold), 0);
    assert_eq!(differences(&observe(&control, 100), &observe(&pty, 100)), "");
    // A lender's number is not ours to close: before the drain, and where it lends nothing.
    let mut hold = empty_hold();
    (hold.master, hold.lender) = (pty.master.as_raw_fd(), i32::MAX);
    assert_eq!(side::put_back(&mut hold), 0);
    assert_eq!((side::drain(&mut hold), hold.phase), (-i64::from(libc::EBADF), side::EMPTY));
    assert_eq!(side::put_back(&mut hold), 0);
    tty::get_index(pty.master.as_fd()).unwrap();
}

#[test]
fn hostile_content_is_refused() {
    let bad: [fn(&mut side::Hold); 9] = [
        |h| h.line_count = u32::MAX,
        |h| h.input_len = u32::MAX,
        |h| h.ring_len = 5,
        |h| h.output_len = side::OUTPUT_SIZE as u32 + 1,
        |h| h.echo_len = u32::MAX,
        |h| h.flow = 9,
        |h| (h.cursor, h.column) = (1, side::MOST_COLUMNS + 1),
        |h| h.status = 256,
        |h| (h.line_count, h.lines[0], h.ring_len, h.input_len) = (1, 7 << 13 | 1, 1, 1),
    ];
    for change in bad {
        let mut hold = empty_hold();
        change(&mut hold);
        assert!(Queues::from_hold(&hold).is_err());
        // In a tracee nothing but an error may come of it.
        hold.phase = side::HELD;
        let pty = Pty::new();
        (hold.slave, hold.master) = (pty.slave.as_raw_fd(), pty.master.as_raw_fd());
        hold.settings = tty::get_termios(pty.slave.as_fd()).unwrap().into();
        side::put_back(&mut hold);
    }
    let queues = Queues { partial: vec![b'x'; 5000], ..Queues::default() };
    assert!(queues.to_hold(0, 0).is_err());
    let queues = Queues { output: vec![b'x'; side::OUTPUT_SIZE + 1], ..Queues::default() };
    assert!(queues.to_hold(0, 0).is_err());
}

#[test]
fn an_idle_terminal_is_fast() {
    for raw in [true, false] {
        let pty = Pty::new();
        if raw {
            pty.change(|t| t.c_lflag &= !(libc::ICANON | ECHO));
        }
        let mut best = (u128::MAX, u128::MAX);
        for _ in 0..50 {
            let mut hold = empty_hold();
            (hold.slave, hold.master) = (pty.slave.as_raw_fd(), pty.master.as_raw_fd());
            let start = Instant::now();
            assert_eq!(side::drain(&mut hold), 0);
            let drained = start.elapsed().as_nanos();
            assert_eq!(side::put_back(&mut hold), 0);
            best = (best.0.min(drained), best.1.min(start.elapsed().as_nanos() - drained));
        }
        println!("raw {raw}: drain {} ns, put back {} ns", best.0, best.1);
        assert!(best.0 < 10_000_000);
    }
}
