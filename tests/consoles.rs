//! Terminals that are no pseudoterminals: virtual consoles, and two serial lines that are wired to each other (`CONSOLES_LINES=ttyS1,ttyS2`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ptyagent::parasite_side::queue as side;
use ptyagent::sys::tty::{self, Termios2};
use ptyagent::tty::queue::empty_hold;
use support::{
    EndSession, PATIENCE, RDWR, Stage, TempDir, dump, dump_running, ptyagent, report, require_from, restore, room,
    serial, skip, subreaper, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);
const FD: i32 = 20;
/// Virtual consoles that nothing uses, one for each test.
const SETTINGS: u32 = 40;
const SHELL: u32 = 41;
const SWITCHED: u32 = 42;
const VT_SETMODE: u64 = 0x5602;

/// Another view of a terminal, which controls nobody.
fn open(path: &str) -> File {
    File::options().read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path).unwrap()
}

/// Whether there are virtual consoles; notes the check that is left out where not.
fn has_consoles() -> bool {
    let there = fs::metadata("/dev/tty1").is_ok() && fs::metadata("/sys/class/tty/tty1").is_ok();
    if !there {
        skip("this kernel has no virtual consoles");
    }
    there
}

/// The two ends of a serial line that leads from one to the other.
fn lines() -> Option<(String, String)> {
    let named = std::env::var("CONSOLES_LINES").ok();
    let pair = named.as_deref().and_then(|text| text.split_once(','));
    if pair.is_none() {
        skip("this machine has no two serial lines that are wired to each other");
    }
    pair.map(|(one, other)| (format!("/dev/{one}"), format!("/dev/{other}")))
}

/// Lets a line pass everything on as it is; yields its settings.
fn make_raw(line: &File) -> Termios2 {
    let mut raw = tty::get_termios(line.as_fd()).unwrap();
    (raw.c_iflag, raw.c_oflag, raw.c_lflag) = (0, 0, 0);
    tty::set_termios(line.as_fd(), &raw).unwrap();
    raw
}

/// What only such a terminal is asked.
fn modes(stage: &mut Stage) -> Vec<String> {
    let requests = [tty::TIOCMGET, tty::KDGETMODE, tty::KDGKBMODE, tty::KDGKBMETA, tty::KDGKBLED, tty::VT_GETMODE];
    let ask = |request: u64| {
        let answer = stage.sys("root", libc::SYS_ioctl, &[FD.into(), request.into(), room(8)]);
        format!("{request:#x}: {} {:?}", answer.result, answer.rooms)
    };
    requests.map(ask).to_vec()
}

fn type_into(terminal: &File, keys: &[u8]) {
    keys.iter().for_each(|key| tty::simulate_input(terminal.as_fd(), *key).unwrap());
}

/// The settings of a terminal, its own modes and unread input survive; in between another program has set everything otherwise.
fn settings_survive(path: &str, set: fn(&mut Stage), reset: impl Fn(&File), give: impl Fn(&[u8])) {
    let mut stage = Stage::new();
    stage.open("root", FD, path, RDWR | libc::O_NONBLOCK);
    stage.set_termios("root", FD, |flags, control| {
        flags[3] &= !libc::ECHO;
        control[1 + libc::VINTR] = 7;
    });
    set(&mut stage);
    give(b"whole line\nhalf");
    let arrived = |stage: &mut Stage| {
        let count = stage.must("root", libc::SYS_ioctl, &[FD.into(), tty::FIONREAD.into(), room(4)]).number();
        (count == 11).then_some(())
    };
    until("input", PATIENCE, || arrived(&mut stage), String::new);
    let (root, dir) = (stage.pid("root"), stage.dir.join("images"));
    let before = [stage.observe(), modes(&mut stage)].concat();
    dump_running(root, &stage.dir.join("first"));
    assert_eq!(before, [stage.observe(), modes(&mut stage)].concat(), "after a dump that left it running");
    dump(root, &dir);
    reset(&open(path));
    restore(&dir);
    assert_eq!(before, [stage.observe(), modes(&mut stage)].concat(), "after the restore");
    let first = stage.drain("root", FD);
    give(b" and half\n");
    until("rest of the line", PATIENCE, || (stage.events("root", FD, libc::POLLIN) != 0).then_some(()), String::new);
    assert_eq!([first, stage.drain("root", FD)].concat(), ["11:whole line\\n", "14:half and half\\n"]);
}

#[test]
fn a_virtual_console_keeps_its_settings_and_modes() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        if !has_consoles() {
            return;
        }
        let path = format!("/dev/tty{SETTINGS}");
        const GRAPHICS: i32 = 1;
        const MEDIUMRAW: i32 = 2;
        const ESCPREFIX: i32 = 4;
        const NUM_AND_CAPS: i32 = 6;
        let keep = open(&path);
        let reset = |console: &File| {
            let text = [(tty::KDSETMODE, 0), (tty::KDSKBMODE, 3), (tty::KDSKBMETA, 3), (tty::KDSKBLED, 0)];
            for (request, value) in text {
                tty::set_console(console.as_fd(), request, value).unwrap();
            }
            let mut termios = tty::get_termios(console.as_fd()).unwrap();
            termios.c_lflag |= libc::ECHO;
            tty::set_termios(console.as_fd(), &termios).unwrap();
        };
        let set = |stage: &mut Stage| {
            stage.ioctl_in("root", FD, VT_SETMODE, &[0; 8]);
            stage.ioctl("root", FD, tty::KDSETMODE, GRAPHICS);
            stage.ioctl("root", FD, tty::KDSKBMODE, MEDIUMRAW);
            stage.ioctl("root", FD, tty::KDSKBMETA, ESCPREFIX);
            stage.ioctl("root", FD, tty::KDSKBLED, NUM_AND_CAPS);
        };
        settings_survive(&path, set, reset, |keys| type_into(&keep, keys));
        reset(&keep);
    });
}

#[test]
fn a_serial_line_keeps_its_settings_and_modem_lines() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let Some((path, other)) = lines() else { return };
        let mut other = open(&other);
        let raw = make_raw(&other);
        let keep = open(&path);
        let reset = |line: &File| {
            tty::set_termios(line.as_fd(), &raw).unwrap();
            tty::set_modem(line.as_fd(), 0).unwrap();
        };
        let set = |stage: &mut Stage| {
            const BAUD: u32 = 0x100f;
            stage.set_termios("root", FD, |flags, _| flags[2] = flags[2] & !BAUD | libc::B57600);
            let dtr = (libc::TIOCM_DTR as u32).to_ne_bytes();
            stage.ioctl_in("root", FD, tty::TIOCMSET, &dtr);
        };
        let give = |keys: &[u8]| (&other).write_all(keys).unwrap();
        settings_survive(&path, set, reset, give);
        drop(keep);
        other.flush().unwrap();
    });
}

/// The outputs of a line are as the program has set them while its queues are read, too, whatever becomes of the dump then.
#[test]
fn reading_a_serial_line_leaves_its_outputs_alone() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let Some((path, _)) = lines() else { return };
        for flags in [libc::O_RDWR, libc::O_RDONLY, libc::O_WRONLY] {
            let mut open = File::options();
            open.read(flags != libc::O_WRONLY).write(flags != libc::O_RDONLY);
            let line = open.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(&path).unwrap();
            tty::set_modem(line.as_fd(), 0).unwrap();
            let before = tty::get_modem(line.as_fd()).unwrap();
            let mut hold = empty_hold();
            hold.slave = line.as_raw_fd();
            assert_eq!(side::drain(&mut hold), 0);
            assert_eq!(tty::get_modem(line.as_fd()).unwrap(), before, "open flags {flags}, drained");
            assert_eq!(side::put_back(&mut hold), 0);
            assert_eq!(tty::get_modem(line.as_fd()).unwrap(), before, "open flags {flags}, put back");
        }
    });
}

/// A bash that leads a session on the terminal.
fn shell(path: &str) -> Child {
    require_from("setsid", "util-linux");
    let terminal = || Stdio::from(open(path));
    let close = "for fd in /proc/self/fd/*; do n=${fd##*/}; (( n > 2 )) && eval \"exec $n>&-\"; done; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args([
        "-c",
        close,
        "bash",
        "setsid",
        "--ctty",
        "env",
        "--default-signal",
        "PS1=$ ",
        "TERM=linux",
        "LC_ALL=C",
        "HISTFILE=",
    ]);
    command.args(["bash", "--norc", "--noprofile", "-i"]);
    command.current_dir("/").stdin(terminal()).stdout(terminal()).stderr(terminal());
    command.spawn().unwrap()
}

/// A shell with a job and a half-typed line goes on where it was.
fn shell_goes_on(path: &str, give: &mut dyn FnMut(&[u8]), shown: &mut dyn FnMut() -> String) {
    let place = TempDir::new();
    let _subreaper = subreaper();
    let mut shell = shell(path);
    let pid = shell.id() as i32;
    let _end = EndSession(pid);
    let mut wait = |text: &str| {
        let mut seen = String::new();
        until(
            text,
            PATIENCE,
            || {
                seen = shown();
                seen.contains(text).then_some(())
            },
            String::new,
        );
    };
    wait("$ ");
    give(b"animal=otter; sleep 1000 & echo begun-$?\n");
    wait("begun-0");
    give(b"echo \"$animal-$((6*7))\" $(jobs -p");
    wait("jobs -p");
    let images = place.join("images");
    let output = ptyagent(&["dump", "--inject", &pid.to_string(), "-D", images.to_str().unwrap()]);
    assert!(output.status.success(), "dump: {}", report(&output));
    shell.wait().unwrap();
    restore(&images);
    give(b" | wc -l)\n");
    wait("otter-42 1");
    give(b"fg\n");
    let in_front = || support::stat(pid).is_some_and(|stat| stat.tpgid != pid).then_some(());
    until("job in the foreground", PATIENCE, in_front, || format!("{:?}", support::stat(pid)));
    give(b"\x03echo \"status $?\"\n");
    wait("status 130");
}

#[test]
fn a_shell_on_a_virtual_console_goes_on() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        if !has_consoles() {
            return;
        }
        let path = format!("/dev/tty{SHELL}");
        let mut screen = || {
            let text = fs::read(format!("/dev/vcs{SHELL}")).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        // The end of a session hangs up every other view of its terminal.
        shell_goes_on(&path, &mut |keys| type_into(&open(&path), keys), &mut screen);
    });
}

#[test]
fn a_shell_on_a_serial_line_goes_on() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let Some((path, other)) = lines() else { return };
        let mut other = open(&other);
        make_raw(&other);
        // A serial line keeps its settings from one session to the next.
        let first = open(&path);
        let mut sane = tty::get_termios(first.as_fd()).unwrap();
        sane.c_iflag = libc::ICRNL;
        sane.c_oflag = libc::OPOST | libc::ONLCR;
        sane.c_lflag = libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN;
        sane.c_cc[libc::VINTR] = 3;
        tty::set_termios(first.as_fd(), &sane).unwrap();
        let mut writer = other.try_clone().unwrap();
        let mut text = String::new();
        let mut read = || {
            let mut fds = [PollFd::new(other.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let count = (&other).read(&mut bytes).unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            text.clone()
        };
        shell_goes_on(&path, &mut |keys| writer.write_all(keys).unwrap(), &mut read);
        other.flush().unwrap();
    });
}

#[test]
fn what_leads_elsewhere_is_refused() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        if !has_consoles() {
            return;
        }
        let refused = |stage: &Stage, text: &str| {
            let dir = stage.dir.join("images");
            let (root, dir) = (stage.pid("root").to_string(), dir.to_str().unwrap());
            let output = ptyagent(&["dump", "--inject", &root, "-D", dir]);
            let said = report(&output);
            assert!(output.status.code() == Some(3) && said.contains(text), "{said}");
        };
        let mut stage = Stage::new();
        stage.open("root", FD, "/dev/tty0", RDWR);
        refused(&stage, "virtual console 0");
        drop(stage);
        let mut stage = Stage::new();
        stage.open("root", FD, &format!("/dev/tty{SWITCHED}"), RDWR);
        // VT_PROCESS, with SIGUSR1 and SIGUSR2.
        stage.ioctl_in("root", FD, VT_SETMODE, &[1, 0, 10, 0, 12, 0, 0, 0]);
        refused(&stage, "by signals");
        assert_eq!(stage.write("root", FD, b"x"), 1, "the session runs on");
        stage.ioctl_in("root", FD, VT_SETMODE, &[0; 8]);
    });
}
