//! Fixed scenarios.

use std::os::fd::AsFd;

use ptyagent::sys::tty;
use ptyagent::tty::queue::Queues;

use crate::pty::{ECHO, Pty, Way, check, reads};

fn quoted(bytes: impl Iterator<Item = u8>) -> Vec<u8> {
    bytes.flat_map(|byte| [0x16, byte]).collect()
}

#[test]
fn nothing_is_queued() {
    check("canonical", |_| {});
    check("raw", |p| p.change(|t| t.c_lflag &= !libc::ICANON));
}

#[test]
fn lines_and_partials() {
    let inputs: [&[u8]; 12] = [
        b"one\n",
        b"one\ntwo\r\nthree\n",
        b"part",
        b"one\ntwo\npart",
        b"\x04",
        b"\x04\x04",
        b"abc\x04",
        b"abc\x04\x04def\nx",
        b"a\x16\nb\x16\n",
        b"a\x16\nb\n\x16",
        b"\x16",
        b"nul\0in\0\n\0",
    ];
    for input in inputs {
        check(&format!("{input:?}"), |p| p.keys(input));
        check(&format!("{input:?} without echo"), |p| {
            p.change(|t| t.c_lflag &= !ECHO);
            p.keys(input);
        });
    }
}

#[test]
fn ends_of_line() {
    check("VEOL and VEOL2", |p| {
        p.change(|t| (t.c_cc[libc::VEOL], t.c_cc[libc::VEOL2]) = (b';', b'!'));
        p.keys(b"one;two!three\nfour;\x16;five\x16!\x04part;part");
    });
    check("VEOL is what we would use", |p| {
        p.change(|t| (t.c_cc[libc::VEOL], t.c_cc[libc::VEOL2]) = (0x04, 0x16));
        p.keys(b"one\x04two\x16three\nfour");
    });
}

#[test]
fn every_byte() {
    let all = quoted(0..=255);
    check("line", |p| p.keys(&[&all[..], b"\n"].concat()));
    check("partial", |p| p.keys(&all));
    check("ended by EOF", |p| p.keys(&[&all[..], b"\x04"].concat()));
    check("with PARMRK", |p| {
        p.change(|t| t.c_iflag |= libc::PARMRK);
        p.keys(&[&all[..], b"\nrest\xff"].concat());
    });
}

#[test]
fn raw_input() {
    for size in [1, 4000, 4095, 20000] {
        check(&format!("raw {size}"), |p| {
            p.change(|t| t.c_lflag &= !(libc::ICANON | ECHO));
            p.keys(&(0..size).map(|i| b'a' + (i % 23) as u8).collect::<Vec<_>>());
        });
    }
}

#[test]
fn unread_output() {
    check("one byte", |p| p.say(b"x"));
    check("until there is no room", |p| p.say(&b"0123456789abcdef\n".repeat(2000)));
    check("output and input", |p| {
        p.say(b"prompt\n$ ");
        p.keys(b"ls\npart");
    });
}

#[test]
fn flow_is_stopped() {
    check("by TCOOFF", |p| {
        p.say(b"out\n");
        tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
        p.keys(b"line\n");
    });
    check("by ^S", |p| {
        p.say(b"out\n");
        p.keys(b"\x13");
    });
    check("by ^S, then typed", |p| p.keys(b"\x13line\npart"));
    check("master by TCOOFF", |p| {
        p.keys(b"line\n");
        tty::xonc(p.master.as_fd(), tty::TCOOFF).unwrap();
    });
}

/// What waits stays where it was, up to a full queue, whoever stopped it.
#[test]
fn flow_is_stopped_with_output() {
    let full = b"0123456789abcdef\n".repeat(2000);
    for (what, output) in
        [("little", &b"before\n"[..]), ("the line buffer", &full[..3600]), ("all there is room for", &full)]
    {
        check(&format!("{what}, by TCOOFF"), |p| {
            p.say(output);
            tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
        });
        check(&format!("{what}, by ^S"), |p| {
            p.say(output);
            p.keys(b"\x13");
        });
        check(&format!("{what}, by ^S, which is none any more"), |p| {
            p.say(output);
            p.keys(b"\x13");
            p.change(|t| t.c_cc[libc::VSTOP] = 0);
        });
        check(&format!("{what}, by ^S in raw mode"), |p| {
            p.change(|t| t.c_lflag = 0);
            p.say(output);
            p.keys(b"raw \x13bytes");
        });
        check(&format!("{what}, by ^S and TCOOFF"), |p| {
            p.say(output);
            p.keys(b"\x13");
            tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
        });
        check(&format!("{what}, the master by TCOOFF"), |p| {
            p.say(output);
            tty::xonc(p.master.as_fd(), tty::TCOOFF).unwrap();
        });
        check(&format!("{what}, by ^S in packet mode"), |p| {
            tty::set_packet(p.master.as_fd(), true).unwrap();
            p.say(output);
            p.keys(b"\x13");
        });
    }
}

#[test]
fn a_stopped_master_with_lines_and_a_partial() {
    for input in [&b"h\n\x04\x16\x16"[..], b"one\n\x04part", b"b\x04m\x04", b"a\n\x16"] {
        check(&format!("{input:?} behind a master stopped by TCOOFF"), |p| {
            p.keys(input);
            tty::xonc(p.master.as_fd(), tty::TCOOFF).unwrap();
        });
    }
}

/// A status bit comes back, and no other one with it; raw input with the flow characters in it.
#[test]
fn a_status_bit_with_raw_input() {
    for (bits, ixon) in [(1u8, 0), (1, libc::IXON), (4, 0), (4, libc::IXON)] {
        check(&format!("status {bits}"), |p| {
            p.change(|t| (t.c_lflag, t.c_iflag) = (0, 0));
            p.keys(b"raw \x11 \x13 \x16 \x04 \n \r \0 bytes\xff");
            tty::set_packet(p.master.as_fd(), false).unwrap();
            p.change(|t| t.c_iflag = ixon);
            tty::set_packet(p.master.as_fd(), true).unwrap();
            match bits {
                4 => tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap(),
                _ => {
                    tty::flush(p.slave.as_fd(), tty::TCIFLUSH).unwrap();
                    p.keys(b"behind the flush");
                }
            }
        });
    }
}

#[test]
fn packet_mode() {
    for bits in [0u8, 1, 4, 8] {
        check(&format!("status {bits}"), |p| {
            p.say(b"out\n");
            tty::set_packet(p.master.as_fd(), true).unwrap();
            if bits & 1 != 0 {
                tty::flush(p.slave.as_fd(), tty::TCIFLUSH).unwrap();
            }
            if bits & 12 != 0 {
                tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
            }
            if bits & 8 != 0 {
                tty::xonc(p.slave.as_fd(), tty::TCOON).unwrap();
            }
            p.keys(b"line\npart");
        });
    }
}

/// A flush throws away what the master has no room for in its line buffer; what comes behind it may be more than that again.
#[test]
fn a_pending_flush_with_output() {
    let all = b"0123456789abcdef\n".repeat(2000);
    for (queue, size) in
        [tty::TCIFLUSH, tty::TCOFLUSH, tty::TCIOFLUSH].into_iter().flat_map(|q| [(q, 3000), (q, 5000), (q, all.len())])
    {
        let flush = |p: &Pty| {
            tty::set_packet(p.master.as_fd(), true).unwrap();
            tty::flush(p.slave.as_fd(), queue).unwrap();
        };
        check(&format!("flush {queue}, then {size} bytes"), |p| {
            flush(p);
            p.say(&all[..size]);
            p.keys(b"line\npart");
        });
        check(&format!("flush {queue}, then {size} bytes and a stop"), |p| {
            flush(p);
            p.say(&all[..size]);
            tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
        });
        check(&format!("flush {queue}, then {size} bytes and a ^S"), |p| {
            flush(p);
            p.say(&all[..size]);
            p.keys(b"\x13");
        });
        check(&format!("{size} bytes, a stop, flush {queue}"), |p| {
            p.say(&all[..size]);
            tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
            flush(p);
            p.keys(b"line\npart");
        });
        check(&format!("a ^S, {size} bytes, flush {queue}"), |p| {
            p.say(&all[..size]);
            p.keys(b"\x13");
            flush(p);
            p.keys(b"line\npart");
        });
    }
}

#[test]
fn the_victims_flags_stay() {
    let pty = Pty::new();
    for flags in [0, libc::O_NONBLOCK] {
        for fd in [&pty.master, &pty.slave] {
            nix::fcntl::fcntl(fd, nix::fcntl::F_SETFL(nix::fcntl::OFlag::from_bits_truncate(flags))).unwrap();
        }
        nix::unistd::write(&pty.master, b"line\n").unwrap();
        let queues = Queues::from_hold(&pty.drain()).unwrap();
        assert_eq!(queues.lines.len(), 1);
        assert_eq!(pty.put(&queues, Way::Any), 0);
        for fd in [&pty.master, &pty.slave] {
            assert_eq!(nix::fcntl::fcntl(fd, nix::fcntl::F_GETFL).unwrap() & libc::O_NONBLOCK, flags);
        }
        assert_eq!(reads(pty.slave.as_fd(), 100), [b"line\n"]);
    }
}

#[test]
fn pastes_beyond_the_line_buffer() {
    let text = |end: &str| (0..700).map(|i| format!("paste line number {i:04}{end}")).collect::<String>().into_bytes();
    check("LF lines", |p| p.keys(&text("\n")));
    check("CR lines", |p| p.keys(&text("\r")));
    check("a line that overflows", |p| {
        p.change(|t| t.c_lflag &= !ECHO);
        p.keys(&[&[b'x'; 6000][..], b"\n"].concat());
    });
    for size in [4094, 4095, 6000] {
        check(&format!("an unfinished line of {size}"), |p| p.keys(&vec![b'x'; size]));
    }
    check("a full buffer and a literal-next before it was full", |p| p.keys(&[&[b'x'; 4000][..], b"\n\x16"].concat()));
}
