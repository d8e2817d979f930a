//! Terminals that a dump cannot read where they are open: it borrows a master, or opens /dev/tty.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use ptyagent::sys::tty;

use super::PATIENCE;
use super::host::until;
use super::stage::{Stage, room};
use super::stage_tty::RDWR;

/// The slave's number in all that have it.
const S: i32 = 20;
const M: i32 = 10;
/// What has been typed there and nobody has read, and how a program reads it.
const TYPED: &[u8] = b"typed\rpart";
pub const LINE: &str = "6:typed\\n";

/// A session on a terminal whose master this process holds, with input that nobody has read and output that we have not.
pub fn held_outside() -> (Stage, File) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname_r(&master).unwrap();
    let mut stage = Stage::new();
    stage.open("root", S, &name, RDWR);
    stage.ioctl("root", S, tty::TIOCSCTTY, 0);
    stage.write("root", S, b"shown\n");
    let mut master = File::from(OwnedFd::from(master));
    master.write_all(TYPED).unwrap();
    typed(&mut stage, "root");
    // The output is told before the input, so asking once more flushes both.
    stage.events("root", S, libc::POLLIN | libc::POLLOUT);
    (stage, master)
}

/// The same with a job in the foreground that has closed the terminal.
pub fn front_without_descriptor() -> (Stage, File) {
    let (mut stage, master) = held_outside();
    let job = stage.fork("root", "job");
    stage.must("job", libc::SYS_setpgid, &[job.into(), job.into()]);
    stage.ioctl_in("root", S, tty::TIOCSPGRP, &job.to_ne_bytes());
    stage.close("job", S);
    (stage, master)
}

/// A session whose master nobody has but "behind", a job in the background; "front" is the foreground.
pub fn master_behind() -> Stage {
    let mut stage = Stage::new();
    stage.pair("root", M, S);
    stage.fork("root", "leader");
    stage.must("leader", libc::SYS_setsid, &[]);
    stage.ioctl("leader", S, tty::TIOCSCTTY, 0);
    for name in ["behind", "front"] {
        let job = stage.fork("leader", name);
        stage.must("leader", libc::SYS_setpgid, &[job.into(), job.into()]);
    }
    stage.ioctl_in("leader", S, tty::TIOCSPGRP, &stage.pid("front").to_ne_bytes());
    stage.type_in("root", M, TYPED);
    typed(&mut stage, "front");
    stage.write("front", S, b"shown\n");
    ["root", "leader", "front"].iter().for_each(|name| stage.close(name, M));
    stage.close("root", S);
    stage
}

/// Waits until the first line has come, with its echo.
fn typed(stage: &mut Stage, name: &str) {
    let has_come =
        |stage: &mut Stage| stage.must(name, libc::SYS_ioctl, &[S.into(), tty::FIONREAD.into(), room(4)]).number();
    until("typed line", PATIENCE, || (has_come(stage) == 6).then_some(()), String::new);
}
