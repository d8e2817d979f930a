//! The state of one terminal peer: what is asked of it, how it is recorded, how it is set again.
//!
//! Asked inside, in the task's one batch: on a slave the kernel answers some requests only to a member of its session. Set again by the
//! restore itself on its own descriptors, before any task has the terminal, so that nothing is signalled. A request that fails with
//! EIO means that the terminal is hung up, which is a state. Exclusive mode, the pty lock and packet mode are set last, see `arm`.

use std::os::fd::BorrowedFd;

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::image::pb;
use crate::inject::batch::{Answers, Arg, Batch, Buffer, CallId};
use crate::sys::tty::{self, LockedTermios, NCCS, Termios2, WinSize};

/// Which end of a pty, or a terminal that is no pty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Master,
    Slave,
}

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    termios: (CallId, Buffer),
    locked: (CallId, Buffer),
    winsize: (CallId, Buffer),
    session: (CallId, Buffer),
    foreground: (CallId, Buffer),
    discipline: (CallId, Buffer),
    exclusive: (CallId, Buffer),
    pty_lock: (CallId, Buffer),
    packet: (CallId, Buffer),
}

/// Adds the questions about the terminal behind a descriptor of the task's, which may be the result of an earlier call.
pub fn ask(batch: &mut Batch, fd: Arg) -> Asked {
    let mut get = |request: u64, size: usize| {
        let value = batch.output(size);
        (batch.call(libc::SYS_ioctl, [fd, request.into(), value.into()]), value)
    };
    Asked {
        termios: get(tty::TCGETS2, size_of::<Termios2>()),
        locked: get(tty::TIOCGLCKTRMIOS, size_of::<LockedTermios>()),
        winsize: get(tty::TIOCGWINSZ, size_of::<WinSize>()),
        session: get(tty::TIOCGSID, 4),
        foreground: get(tty::TIOCGPGRP, 4),
        discipline: get(tty::TIOCGETD, 4),
        exclusive: get(tty::TIOCGEXCL, 4),
        pty_lock: get(tty::TIOCGPTLCK, 4),
        packet: get(tty::TIOCGPKT, 4),
    }
}

/// Reads a termios from its bytes; the locked one has no speeds.
fn termios(answers: &Answers, buffer: Buffer, speeds: bool) -> pb::PtyagentTermios {
    let bytes = answers.bytes(buffer);
    pb::PtyagentTermios {
        c_iflag: Some(answers.u32(buffer, 0)),
        c_oflag: Some(answers.u32(buffer, 4)),
        c_cflag: Some(answers.u32(buffer, 8)),
        c_lflag: Some(answers.u32(buffer, 12)),
        c_line: bytes.get(16).map(|line| u32::from(*line)),
        c_cc: bytes.get(17..17 + NCCS).map(<[u8]>::to_vec),
        c_ispeed: speeds.then(|| answers.u32(buffer, 36)),
        c_ospeed: speeds.then(|| answers.u32(buffer, 40)),
    }
}

impl Asked {
    /// What the task answered. ENOTTY and EINVAL mean that the request is not this peer's; EIO on all that it is hung up.
    pub fn answers(&self, answers: &Answers, peer: Peer) -> Result<pb::PtyagentTty> {
        let mut record = pb::PtyagentTty { master: Some(peer == Peer::Master), ..Default::default() };
        match answers.result(self.termios.0) {
            Ok(_) => record.hung_up = Some(false),
            Err(Errno::EIO) => {
                record.hung_up = Some(true);
                return Ok(record);
            }
            // Another line discipline than N_TTY: a dump refuses it.
            Err(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) => record.hung_up = Some(false),
            Err(errno) => return Err(Error::sys("asking a terminal for its settings", Subject::None, errno)),
        }
        let number = |(call, buffer): (CallId, Buffer)| answers.result(call).ok().map(|_| answers.u32(buffer, 0));
        if answers.result(self.termios.0).is_ok() {
            record.termios = Some(termios(answers, self.termios.1, true));
        }
        if answers.result(self.locked.0).is_ok() {
            record.termios_locked = Some(termios(answers, self.locked.1, false));
        }
        if answers.result(self.winsize.0).is_ok() {
            let half = |at: usize| answers.u32(self.winsize.1, at);
            let (first, second) = (half(0), half(4));
            record.ws_row = Some(first & 0xffff);
            record.ws_col = Some(first >> 16);
            record.ws_xpixel = Some(second & 0xffff);
            record.ws_ypixel = Some(second >> 16);
        }
        record.session = number(self.session).filter(|sid| *sid != 0);
        record.foreground_pgrp = number(self.foreground);
        record.line_discipline = number(self.discipline).map(|line| line as i32);
        record.exclusive = number(self.exclusive).map(|flag| flag != 0);
        record.locked = number(self.pty_lock).map(|flag| flag != 0);
        record.packet = number(self.packet).map(|flag| flag != 0);
        Ok(record)
    }
}

/// CRIU's entry for a termios: four control characters to a slot, zeros behind, both speeds true.
fn termios_entry(own: &pb::PtyagentTermios) -> pb::TermiosEntry {
    let mut slots = vec![0u32; NCCS];
    for (n, byte) in own.c_cc.iter().flatten().enumerate() {
        if let Some(slot) = slots.get_mut(n / 4) {
            *slot |= u32::from(*byte) << (8 * (n % 4));
        }
    }
    pb::TermiosEntry {
        c_iflag: own.c_iflag.unwrap_or(0),
        c_oflag: own.c_oflag.unwrap_or(0),
        c_cflag: own.c_cflag.unwrap_or(0),
        c_lflag: own.c_lflag.unwrap_or(0),
        c_line: own.c_line.unwrap_or(0),
        c_ispeed: own.c_ispeed.unwrap_or(0),
        c_ospeed: own.c_ospeed.unwrap_or(0),
        c_cc: slots,
    }
}

/// CRIU's entry for a pty peer.
pub fn to_info(own: &pb::PtyagentTty, id: u32, index: u32) -> pb::TtyInfoEntry {
    let alive = own.hung_up != Some(true);
    pb::TtyInfoEntry {
        id,
        r#type: pb::TtyType::Pty as i32,
        locked: own.locked.unwrap_or(false),
        exclusive: own.exclusive.unwrap_or(false),
        packet_mode: own.packet.unwrap_or(false),
        sid: own.session.unwrap_or(0),
        pgrp: own.foreground_pgrp.unwrap_or(0),
        rdev: own.rdev.unwrap_or(0) as u32,
        termios: own.termios.as_ref().filter(|_| alive).map(termios_entry),
        termios_locked: own.termios_locked.as_ref().filter(|_| alive).map(termios_entry),
        winsize: own.ws_row.map(|ws_row| pb::WinsizeEntry {
            ws_row,
            ws_col: own.ws_col.unwrap_or(0),
            ws_xpixel: own.ws_xpixel.unwrap_or(0),
            ws_ypixel: own.ws_ypixel.unwrap_or(0),
        }),
        pty: Some(pb::TtyPtyEntry { index }),
        dev: own.dev.map(|dev| dev as u32),
        uid: own.uid,
        gid: own.gid,
    }
}

/// The kernel's structure from a record.
pub fn to_termios2(own: &pb::PtyagentTermios) -> Termios2 {
    let mut c_cc = [0u8; NCCS];
    for (slot, byte) in c_cc.iter_mut().zip(own.c_cc.iter().flatten()) {
        *slot = *byte;
    }
    Termios2 {
        c_iflag: own.c_iflag.unwrap_or(0),
        c_oflag: own.c_oflag.unwrap_or(0),
        c_cflag: own.c_cflag.unwrap_or(0),
        c_lflag: own.c_lflag.unwrap_or(0),
        c_line: own.c_line.unwrap_or(0) as u8,
        c_cc,
        c_ispeed: own.c_ispeed.unwrap_or(0),
        c_ospeed: own.c_ospeed.unwrap_or(0),
    }
}

fn to_locked(own: &pb::PtyagentTermios) -> LockedTermios {
    let full = to_termios2(own);
    LockedTermios {
        c_iflag: full.c_iflag,
        c_oflag: full.c_oflag,
        c_cflag: full.c_cflag,
        c_lflag: full.c_lflag,
        c_line: full.c_line,
        c_cc: full.c_cc,
    }
}

/// Sets discipline, window size, termios and owner of a fresh, unlocked terminal, through a descriptor of its slave.
pub fn restore(slave: BorrowedFd<'_>, own: &pb::PtyagentTty) -> Result<()> {
    let set = |operation: &'static str, result: std::result::Result<(), Errno>| result.during(operation, Subject::None);
    if let Some(discipline) = own.line_discipline.filter(|discipline| *discipline != 0) {
        set("setting the line discipline", tty::set_discipline(slave, discipline))?;
    }
    if own.ws_row.is_some() {
        let part = |value: Option<u32>| value.unwrap_or(0) as u16;
        let winsize = WinSize {
            ws_row: part(own.ws_row),
            ws_col: part(own.ws_col),
            ws_xpixel: part(own.ws_xpixel),
            ws_ypixel: part(own.ws_ypixel),
        };
        // Setting a console's size makes it anew.
        if tty::get_winsize(slave) != Ok(winsize) {
            set("setting the window size", tty::set_winsize(slave, &winsize))?;
        }
    }
    if let Some(termios) = &own.termios {
        set("setting the terminal's modes", tty::set_termios(slave, &to_termios2(termios)))?;
    }
    Ok(())
}

/// Gives the device node its owner and mode back, where they differ from a fresh one's.
pub fn restore_node(path: &str, own: &pb::PtyagentTty) -> Result<()> {
    let now = nix::sys::stat::stat(path).during("looking at a terminal's node", Subject::None)?;
    let (uid, gid) = (own.uid.unwrap_or(now.st_uid), own.gid.unwrap_or(now.st_gid));
    if (uid, gid) != (now.st_uid, now.st_gid) {
        nix::unistd::chown(path, Some(uid.into()), Some(gid.into()))
            .during("giving a terminal's node its owner (needs CAP_CHOWN)", Subject::None)?;
    }
    let mode = own.mode.unwrap_or(now.st_mode) & 0o7777;
    if mode != now.st_mode & 0o7777 {
        let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .during("giving a terminal's node its mode", Subject::None)?;
    }
    Ok(())
}

/// Sets what would get in the way before: locked settings (CAP_SYS_ADMIN) and exclusive mode of the slave.
pub fn arm_slave(slave: BorrowedFd<'_>, own: &pb::PtyagentTty) -> Result<()> {
    if let Some(locked) =
        own.termios_locked.as_ref().map(to_locked).filter(|locked| *locked != LockedTermios::default())
    {
        tty::set_locked(slave, &locked).during("locking terminal settings (needs CAP_SYS_ADMIN)", Subject::None)?;
    }
    if own.exclusive == Some(true) {
        tty::set_exclusive(slave).during("setting exclusive mode", Subject::None)?;
    }
    Ok(())
}

/// Sets the master's own flags: exclusive mode and the pty lock. Packet mode belongs to the queues.
pub fn arm_master(master: BorrowedFd<'_>, own: &pb::PtyagentTty) -> Result<()> {
    if own.exclusive == Some(true) {
        tty::set_exclusive(master).during("setting exclusive mode", Subject::None)?;
    }
    if own.locked == Some(true) {
        tty::set_lock(master, true).during("locking the pty", Subject::None)?;
    }
    Ok(())
}
