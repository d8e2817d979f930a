//! Terminals that are no pseudoterminals: virtual consoles, serial lines and the system console.
//!
//! Each is known by its device number, and opened again by its path. Its other side is hardware: output that it has not sent yet is sent whatever
//! becomes of the session, and what a screen shows is not the session's. Unread input is taken out and put back as if it were typed
//! (TIOCSTI), without its echo.
//!
//! Refused: a console that its program switches itself (VT_PROCESS), and a terminal that is hung up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::PtyIndex;
use crate::image::pb;
use crate::inject::batch::{Answers, Arg, Batch, Buffer, CallId};
use crate::procfs::{self, Device, Stat};
use crate::sys::tty;

/// What a device is known as: its number with this added, eight bits of it for the minor one.
pub const DEVICE: u32 = 1 << 21;

/// None where a number is beyond all that terminals have (Documentation/admin-guide/devices.txt).
pub fn known_as(device: Device) -> Option<PtyIndex> {
    (device.major < 1 << 8 && device.minor < 1 << 8).then(|| PtyIndex(DEVICE + (device.major << 8) + device.minor))
}

/// The device that is known as this; none where it is a pseudoterminal.
pub fn device_of(known_as: u32) -> Option<Device> {
    let number = known_as.checked_sub(DEVICE)?;
    Some(Device { major: number >> 8, minor: number & 0xff })
}

/// Its node in /dev, by the kernel's own name for it.
pub fn node(device: Device) -> PathBuf {
    let facts = std::fs::read_to_string(format!("/sys/dev/char/{device}/uevent")).unwrap_or_default();
    let name = facts.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("/dev/char/{device}").into(), |name| Path::new("/dev").join(name))
}

/// CRIU's word for it.
pub fn kind(device: Device) -> pb::TtyType {
    match device {
        Device { major: 4, minor: 0..=63 } => pb::TtyType::Vt,
        Device { major: 5, minor: 1 } => pb::TtyType::Console,
        _ => pb::TtyType::Serial,
    }
}

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    modem: (CallId, Buffer),
    kd_mode: (CallId, Buffer),
    keyboard: (CallId, Buffer),
    meta: (CallId, Buffer),
    locks: (CallId, Buffer),
    switching: (CallId, Buffer),
}

/// Adds the questions that only such a terminal answers. ioctl_console(2), ioctl_tty(2).
pub fn ask(batch: &mut Batch, fd: Arg) -> Asked {
    let mut get = |request: u64, size: usize| {
        let value = batch.output(size);
        (batch.call(libc::SYS_ioctl, [fd, request.into(), value.into()]), value)
    };
    Asked {
        modem: get(tty::TIOCMGET, 4),
        kd_mode: get(tty::KDGETMODE, 4),
        keyboard: get(tty::KDGKBMODE, 4),
        meta: get(tty::KDGKBMETA, 4),
        locks: get(tty::KDGKBLED, 1),
        switching: get(tty::VT_GETMODE, 8),
    }
}

impl Asked {
    /// Adds what the task answered; a question of the other sort of terminal has no answer.
    pub fn answers(&self, answers: &Answers, record: &mut pb::PtyagentTty) {
        let number = |(call, buffer): (CallId, Buffer)| answers.result(call).ok().map(|_| answers.u32(buffer, 0));
        let byte = |(call, buffer): (CallId, Buffer)| {
            answers.result(call).ok().and_then(|_| answers.bytes(buffer).first().copied()).map(u32::from)
        };
        record.modem_bits = number(self.modem);
        record.kd_mode = number(self.kd_mode);
        record.keyboard_mode = number(self.keyboard);
        record.keyboard_meta = number(self.meta);
        record.keyboard_locks = byte(self.locks);
        record.vt_mode = byte(self.switching);
    }
}

/// Why the state of a terminal cannot be carried, if it cannot.
pub fn refusal(record: &pb::PtyagentTty) -> Option<&'static str> {
    if record.hung_up == Some(true) {
        return Some("it is hung up");
    }
    record.vt_mode.filter(|mode| *mode != 0).map(|_| "its program switches it by signals (VT_SETMODE)")
}

/// Opens one that belongs to nobody, and sets its state.
pub fn restore(device: Device, record: &pb::PtyagentTty) -> Result<OwnedFd> {
    let path = node(device);
    refuse_taken(device, &path)?;
    let fd = describe(&path, libc::O_RDWR | libc::O_CLOEXEC)?;
    super::state::restore(fd.as_fd(), record)?;
    set_console(fd.as_fd(), record)?;
    Ok(fd)
}

/// A description of it. Only a non-blocking open does not wait for a carrier.
pub fn describe(path: &Path, flags: i32) -> Result<OwnedFd> {
    let subject = || Subject::Path(path.to_owned());
    let first = OFlag::from_bits_retain(flags & !libc::O_ASYNC | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC);
    let fd = open(path, first, Mode::empty()).during("opening", subject())?;
    let then = OFlag::from_bits_retain(flags & !libc::O_ASYNC);
    fcntl(&fd, FcntlArg::F_SETFL(then)).during("setting the flags of", subject())?;
    Ok(fd)
}

/// The outputs of a serial line among the TIOCM_ bits; what the C library does not name is TIOCM_LOOP.
const OUTPUTS: u32 = (libc::TIOCM_DTR | libc::TIOCM_RTS) as u32 | 0x8000;

/// Sets the modem lines, which every open without waiting for a carrier has raised.
pub fn arm(fd: BorrowedFd<'_>, record: &pb::PtyagentTty) -> Result<()> {
    if let Some(bits) = record.modem_bits {
        let now = tty::get_modem(fd).during("asking for the modem lines", Subject::None)?;
        if (now ^ bits) & OUTPUTS != 0 {
            let bits = now & !OUTPUTS | bits & OUTPUTS;
            tty::set_modem(fd, bits).during("setting the modem lines", Subject::None)?;
        }
    }
    Ok(())
}

fn set_console(fd: BorrowedFd<'_>, record: &pb::PtyagentTty) -> Result<()> {
    let numbers = [
        (tty::KDSETMODE, record.kd_mode, "setting the console's mode"),
        (tty::KDSKBMODE, record.keyboard_mode, "setting the keyboard's mode"),
        (tty::KDSKBMETA, record.keyboard_meta, "setting the keyboard's meta mode"),
        (tty::KDSKBLED, record.keyboard_locks, "setting the keyboard's locks"),
    ];
    for (request, value, operation) in numbers {
        let Some(value) = value else { continue };
        tty::set_console(fd, request, value as i32).during(operation, Subject::None)?;
    }
    Ok(())
}

/// It must not be the terminal of a session that is here.
fn refuse_taken(device: Device, path: &Path) -> Result<()> {
    for pid in procfs::tree::all()? {
        let Ok(stat) = Stat::read(pid) else { continue };
        if stat.tty == Some(device) {
            let (path, comm) = (path.display(), stat.comm_text());
            return Err(Error::failed(format!(
                "terminal {path} is in use by process {pid} ({comm}), whose session it controls; end that, then restore"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_number() {
        let serial = Device { major: 4, minor: 65 };
        let known = known_as(serial).unwrap();
        assert_eq!((device_of(known.0), kind(serial)), (Some(serial), pb::TtyType::Serial));
        assert_eq!(device_of(5), None);
        assert_eq!(known_as(Device { major: 188, minor: 300 }), None);
        assert_eq!(kind(Device { major: 4, minor: 3 }), pb::TtyType::Vt);
        assert_eq!(kind(Device { major: 5, minor: 1 }), pb::TtyType::Console);
    }
}
