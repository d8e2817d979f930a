//! States of the line discipline that are between one byte and the next.

use std::os::fd::AsFd;

use ptyagent::sys::tty;

use crate::pty::{ECHO, check};

#[test]
fn modes_switched_over_waiting_input() {
    check("lines, then no lines", |p| {
        p.keys(b"one\ntwo\x04\x04part");
        p.change(|t| t.c_lflag &= !libc::ICANON);
    });
    for typed in [&b""[..], b"more", b"more\n", b"\x04", b"\x16"] {
        check(&format!("no lines, then lines, then {typed:?}"), |p| {
            p.change(|t| t.c_lflag &= !libc::ICANON);
            p.keys(b"raw\nbytes");
            p.change(|t| t.c_lflag |= libc::ICANON);
            p.keys(typed);
        });
    }
}

#[test]
fn an_unfinished_line_that_is_erased_later() {
    for (flags, typed) in [
        (libc::IUTF8, "a\u{e9}\u{4e2d}".as_bytes()),
        (libc::IUTF8, &b"caf\xc3"[..]),
        (0, "a\u{e9}\u{4e2d}".as_bytes()),
        (libc::IUTF8, b"\xa9\xa9"),
    ] {
        check(&format!("{typed:?} with {flags:#o}"), |p| {
            p.change(|t| (t.c_iflag, t.c_cc[libc::VEOL]) = (t.c_iflag | flags, b'z'));
            p.keys(typed);
            p.change(|t| (t.c_cc[libc::VERASE], t.c_cc[libc::VWERASE]) = (b'q', b'r'));
        });
    }
    for erase in [libc::ECHOPRT, libc::ECHOKE, 0, libc::ECHOPRT | libc::ECHOKE] {
        for typed in [&b"abc\x7f"[..], b"abc\x7f\n", b"one\nabc\x7f", b"abc\x7f\x7f\x7f", b"a\x7f\x04"] {
            check(&format!("{typed:?} with {erase:#o}"), |p| {
                p.change(|t| t.c_lflag = t.c_lflag & !(libc::ECHOPRT | libc::ECHOKE) | erase);
                p.keys(typed);
            });
        }
    }
}

#[test]
fn waits_and_simulated_input() {
    for (min, time) in [(0, 0), (0, 5), (3, 0), (3, 5), (255, 1)] {
        check(&format!("VMIN {min}, VTIME {time}"), |p| {
            p.change(|t| {
                t.c_lflag &= !(libc::ICANON | ECHO);
                (t.c_cc[libc::VMIN], t.c_cc[libc::VTIME]) = (min, time);
            });
            p.keys(b"ab");
        });
    }
    for local in [libc::NOFLSH, libc::TOSTOP, libc::PENDIN, libc::FLUSHO, libc::XCASE] {
        check(&format!("flag {local:#o}"), |p| {
            p.change(|t| t.c_lflag |= local);
            p.keys(b"line\npart");
        });
    }
    check("TIOCSTI", |p| {
        let bytes = b"line\npa\x16";
        bytes.iter().for_each(|byte| tty::simulate_input(p.slave.as_fd(), *byte).unwrap());
        p.keys(b"rt");
    });
}

/// Where the cursor is to the line discipline shows in tabs that are expanded or erased and in a carriage return that is left out.
#[test]
fn columns() {
    const TAB3: u32 = 0o14000;
    let (far, beyond) = (b"0123456789".repeat(51), b"0123456789".repeat(99));
    for said in [&b""[..], b"$ ", b"12345678", b"$ name: \t", b"one\ntwo", &far, &beyond] {
        for output in [TAB3, libc::ONOCR, TAB3 | libc::ONOCR | libc::ONLRET] {
            check(&format!("{said:?} with {output:#o}"), |p| {
                p.change(|t| t.c_oflag |= output);
                p.say(said);
            });
        }
        for typed in [&b""[..], b"a\tb", b"\t"] {
            check(&format!("{said:?}, typed {typed:?}"), |p| {
                p.say(said);
                p.keys(typed);
                p.change(|t| (t.c_cc[libc::VERASE], t.c_cc[libc::VKILL]) = (b'q', b'r'));
            });
        }
    }
}
