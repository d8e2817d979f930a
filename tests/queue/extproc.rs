//! EXTPROC: whoever has the master edits the lines and echoes; what is typed is read as it is.

use std::os::fd::AsFd;

use ptyagent::sys::tty;

use crate::pty::{Pty, check};

/// Settings beside EXTPROC; what is typed is not edited, whatever they are.
const MODES: [(&str, u32); 4] = [
    ("lines", libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN),
    ("lines without echo", libc::ICANON),
    ("no lines", libc::ECHO),
    ("nothing", 0),
];

fn external(p: &Pty, local: u32) {
    p.change(|t| t.c_lflag = local | libc::EXTPROC);
}

#[test]
fn input_and_output() {
    let inputs: [&[u8]; 7] =
        [b"", b"line\npart", b"\x04", b"text\x04", b"a\x7fb\x15c\x03d\x13e\x11f\rg\x16", b"\x16", b"\0\xff\n\n"];
    for (mode, local) in MODES {
        for input in inputs {
            check(&format!("{input:?}, {mode}"), |p| {
                external(p, local);
                p.say(b"shown\n\t");
                p.keys(input);
            });
        }
        check(&format!("typed before EXTPROC was set, {mode}"), |p| {
            p.say(b"shown\n");
            p.keys(b"line\n\x04half");
            external(p, local);
            p.keys(b"behind");
        });
        check(&format!("stopped by ^S before EXTPROC was set, {mode}"), |p| {
            p.say(b"shown\n");
            p.keys(b"\x13held");
            external(p, local);
            p.keys(b"behind\x11");
        });
        check(&format!("seven bits and small letters, {mode}"), |p| {
            external(p, local);
            p.keys(b"BEFORE \xc1\xff");
            p.change(|t| (t.c_iflag, t.c_lflag) = (libc::ISTRIP | libc::IUCLC | libc::IXON, t.c_lflag | libc::IEXTEN));
            p.keys(b"AFTER \xc1\xff");
        });
    }
}

/// With lines, a buffer of which nothing has been read drops what comes in when it is full; else it makes the master wait.
#[test]
fn more_than_the_line_buffer() {
    let text: Vec<u8> = (0..20_000u32).map(|n| b'a' + (n % 23) as u8).collect();
    for (mode, local) in MODES {
        check(&format!("after a read, {mode}"), |p| {
            external(p, local);
            p.keys(b"first");
            nix::unistd::read(&p.slave, &mut [0; 9]).unwrap();
            p.keys(&text);
        });
        // Under PARMRK the buffer counts as full earlier.
        check(&format!("marked, after a read, {mode}"), |p| {
            external(p, local);
            p.change(|t| t.c_iflag |= libc::PARMRK);
            p.keys(b"first");
            nix::unistd::read(&p.slave, &mut [0; 9]).unwrap();
            p.keys(&text);
        });
        // What is dropped takes the kernel's worker a round each byte, and nobody sees when it is done: a few hundred of them.
        let typed = if local & libc::ICANON != 0 { &text[..4600] } else { &text[..] };
        check(&format!("before any read, {mode}"), |p| {
            external(p, local);
            p.keys(typed);
        });
    }
}

#[test]
fn status_bits() {
    for (mode, local) in MODES {
        for (what, flush) in
            [("", None), ("and a flush of the input", Some(tty::TCIFLUSH)), ("and of the output", Some(tty::TCOFLUSH))]
        {
            check(&format!("settings changed {what}, {mode}"), |p| {
                external(p, local);
                tty::set_packet(p.master.as_fd(), true).unwrap();
                flush.into_iter().for_each(|queue| tty::flush(p.slave.as_fd(), queue).unwrap());
                p.change(|t| t.c_cc[libc::VEOL] = b';');
                p.say(b"shown\n");
                p.keys(b"line\npart");
            });
        }
        check(&format!("stopped, {mode}"), |p| {
            external(p, local);
            tty::set_packet(p.master.as_fd(), true).unwrap();
            p.change(|t| t.c_cc[libc::VEOL] = b';');
            p.say(b"shown\n");
            p.keys(b"line\npart");
            tty::xonc(p.slave.as_fd(), tty::TCOOFF).unwrap();
        });
        for queue in [tty::TCIFLUSH, tty::TCOFLUSH] {
            check(&format!("only a flush, {mode}"), |p| {
                p.change(|t| t.c_iflag |= libc::ISTRIP);
                external(p, local);
                tty::set_packet(p.master.as_fd(), true).unwrap();
                tty::flush(p.slave.as_fd(), queue).unwrap();
                p.say(b"shown\n");
                p.keys(b"line\npart");
            });
        }
        check(&format!("no bit, {mode}"), |p| {
            external(p, local);
            tty::set_packet(p.master.as_fd(), true).unwrap();
            p.say(b"shown\n");
            p.keys(b"line\npart");
        });
    }
}
