//! State of one terminal.

use ptyagent::sys::tty;

use crate::cases::Case;
use crate::support::{Stage, room};

const GROUP: &str = "state";
const M: i32 = 10;
const S: i32 = 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::kept(GROUP, "every settable flag on", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| {
                (flags[0], flags[1]) = (0o77777, 0o377);
                (flags[2], flags[3]) = (flags[2] | 0o2760, 0o77777 & !0o400);
            });
        }),
        Case::kept(GROUP, "every settable flag off", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| *flags = [0, 0, flags[2] & 0o10017, 0]);
        }),
        Case::kept(GROUP, "flags beyond the known ones", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| {
                flags[0] |= 0x7000_0000;
                flags[1] |= 0x3000_0000;
                flags[3] |= 0x7000_0000;
            });
        }),
        Case::kept(GROUP, "all control characters", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |_, rest| (1..20).for_each(|n| rest[n] = 0xc0 + n as u8));
        }),
        Case::kept(GROUP, "custom baud rates (BOTHER)", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, rest| {
                flags[2] = flags[2] & !(libc::CBAUD | libc::CIBAUD) | libc::BOTHER | libc::BOTHER << 16;
                rest[20..24].copy_from_slice(&12345u32.to_ne_bytes());
                rest[24..28].copy_from_slice(&250_001u32.to_ne_bytes());
            });
        }),
        Case::kept(GROUP, "locked settings", locked),
        Case::kept(GROUP, "locked settings, the slave closed", |s| {
            locked(s);
            s.close("root", S);
        }),
        Case::refused(GROUP, "another line discipline (N_NULL)", "line discipline 27", |s| {
            s.pair("root", M, S);
            s.ioctl_in("root", S, tty::TIOCSETD, &27i32.to_ne_bytes());
        }),
        Case::kept(GROUP, "window size with pixels", |s| {
            s.pair("root", M, S);
            s.ioctl_in("root", S, tty::TIOCSWINSZ, &[47u16, 133, 1064, 752].map(u16::to_ne_bytes).concat());
        }),
        Case::kept(GROUP, "exclusive mode of a slave", |s| {
            s.pair("root", M, S);
            s.ioctl("root", S, tty::TIOCEXCL, 0);
        }),
        Case::kept(GROUP, "exclusive mode of a slave, opened by others before", |s| {
            let index = s.pair("root", M, S);
            s.open("root", S + 1, &format!("/dev/pts/{index}"), libc::O_WRONLY | libc::O_NOCTTY);
            s.fork("root", "child");
            s.ioctl("root", S, tty::TIOCEXCL, 0);
        }),
        Case::kept(GROUP, "exclusive mode of a master", |s| {
            s.pair("root", M, S);
            s.ioctl("root", M, tty::TIOCEXCL, 0);
        }),
        Case::kept(GROUP, "packet mode", |s| packet(s, |_| ())),
        Case::kept(GROUP, "packet mode, flush pending", |s| {
            packet(s, |s| s.ioctl("root", S, tty::TCFLSH, tty::TCIFLUSH))
        }),
        Case::kept(GROUP, "packet mode, output flush pending", |s| {
            packet(s, |s| s.ioctl("root", S, tty::TCFLSH, tty::TCOFLUSH));
        }),
        Case::kept(GROUP, "packet mode, both flushes pending", |s| {
            packet(s, |s| s.ioctl("root", S, tty::TCFLSH, tty::TCIOFLUSH));
        }),
        Case::kept(GROUP, "packet mode, stop pending", |s| packet(s, |s| s.ioctl("root", S, tty::TCXONC, tty::TCOOFF))),
        Case::kept(GROUP, "packet mode, start pending", |s| {
            packet(s, |s| {
                s.ioctl("root", S, tty::TCXONC, tty::TCOOFF);
                s.ioctl("root", S, tty::TCXONC, tty::TCOON);
            });
        }),
        Case::kept(GROUP, "packet mode, flow characters changed", |s| {
            packet(s, |s| s.set_termios("root", S, |flags, _| flags[0] &= !libc::IXON));
        }),
        Case::kept(GROUP, "packet mode, settings changed under EXTPROC", |s| {
            packet(s, |s| s.set_termios("root", S, |flags, _| flags[3] |= libc::EXTPROC));
        }),
        Case::kept(GROUP, "packet mode with input and output", |s| {
            packet(s, |s| {
                s.write("root", S, b"shown\n");
                s.type_in("root", M, b"line\rpart");
            });
        }),
        Case::kept(GROUP, "EXTPROC", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| flags[3] |= libc::EXTPROC);
            s.type_in("root", M, b"line\npart");
        }),
        Case::kept(GROUP, "output stopped by ^S", |s| {
            s.pair("root", M, S);
            s.write("root", S, b"before\n");
            s.type_in("root", M, b"\x13");
        })
        .verified(|s| {
            released(s, |s| {
                s.type_in("root", M, b"\x11");
            })
        }),
        Case::kept(GROUP, "output stopped by ^S, and typed on", |s| {
            s.pair("root", M, S);
            s.type_in("root", M, b"\x13line\rpart");
        })
        .verified(|s| {
            released(s, |s| {
                s.type_in("root", M, b"\x11");
            })
        }),
        Case::kept(GROUP, "output stopped by TCOOFF", |s| {
            s.pair("root", M, S);
            s.write("root", S, b"before\n");
            s.ioctl("root", S, tty::TCXONC, tty::TCOOFF);
        })
        .verified(|s| released(s, |s| s.ioctl("root", S, tty::TCXONC, tty::TCOON))),
        Case::kept(GROUP, "the master's output stopped by TCOOFF", |s| {
            s.pair("root", M, S);
            s.ioctl("root", M, tty::TCXONC, tty::TCOOFF);
        })
        .verified(|s| released(s, |s| s.ioctl("root", M, tty::TCXONC, tty::TCOON))),
        Case::kept(GROUP, "owner, group and mode of the node", |s| {
            s.pair("root", M, S);
            s.must("root", libc::SYS_fchown, &[S.into(), 65534.into(), 12.into()]);
            s.must("root", libc::SYS_fchmod, &[S.into(), 0o604.into()]);
        }),
        Case::kept(GROUP, "no controlling terminal given by a master opened without O_NOCTTY", |s| {
            s.pair("root", M, S);
            s.must("root", libc::SYS_ioctl, &[M.into(), tty::TIOCGPTN.into(), room(4)]);
        }),
    ]
}

fn locked(s: &mut Stage) {
    s.pair("root", M, S);
    let mut lock = [0u8; 36];
    lock[..4].copy_from_slice(&libc::ICRNL.to_ne_bytes());
    lock[12..16].copy_from_slice(&(libc::ECHO | libc::ISIG).to_ne_bytes());
    lock[17 + libc::VINTR] = 0xff;
    s.ioctl_in("root", S, tty::TIOCSLCKTRMIOS, &lock);
}

fn packet(s: &mut Stage, then: fn(&mut Stage)) {
    s.pair("root", M, S);
    s.ioctl_in("root", M, tty::TIOCPKT, &1i32.to_ne_bytes());
    // The status of what came before is read, so that only what follows is pending.
    s.drain("root", M);
    then(s);
}

/// Everything that can be done while the flow is stopped, and again when it runs.
fn released(s: &mut Stage, release: fn(&mut Stage)) -> Vec<String> {
    let mut facts = s.exhaust();
    release(s);
    facts.extend(s.exhaust());
    facts
}
