//! A victim in each system call that can wait, or that a stop can cut short, does not notice inspections, dumps that leave it running, and restores.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use support::{
    EndSession, PATIENCE, Victim, asleep, ptyagent, quiet_snapshot, report, restore, serial, subreaper, until,
    with_timeout,
};

const LIMIT: Duration = Duration::from_secs(100);
const INSPECTIONS: usize = 25;
const DUMPS: usize = 3;
/// The status of a refused dump.
const REFUSED: i32 = 3;

/// What becomes of a dump.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dump {
    Carried,
    /// Its object is not the tree's: a queue or a semaphore of System V stays in the kernel.
    Left,
    /// With this in what is said.
    Refused(&'static str),
}

/// How the call comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// When it is woken.
    Waits,
    /// By itself.
    Goes,
}

fn command(victim: &Victim, args: &[&str]) -> (Option<i32>, String) {
    let output = ptyagent(args);
    let counters = victim.counters();
    assert!(counters.eintr + counters.wrong == 0, "{args:?}: {counters:?}");
    (output.status.code(), report(&output))
}

/// Inspections, and dumps that leave it running.
fn disturb(victim: &Victim, mode: &str, dump: Dump) {
    let pid = victim.pid().to_string();
    let before = quiet_snapshot(victim.pid());
    for _ in 0..INSPECTIONS {
        let (status, said) = command(victim, &["inspect", &pid]);
        assert_eq!(status, Some(0), "{said}");
    }
    for turn in 0..DUMPS {
        let dir = victim.dir().join(format!("running{turn}"));
        let (status, said) =
            command(victim, &["dump", "--inject", &pid, "--leave-running", "-D", dir.to_str().unwrap()]);
        match dump {
            Dump::Refused(why) => assert!(status == Some(REFUSED) && said.contains(why), "{said}"),
            Dump::Carried | Dump::Left => assert_eq!(status, Some(0), "{said}"),
        }
    }
    if mode == "sendfile" {
        // The kernel has moved the file's position by what it has sent so far.
        return;
    }
    let difference = || before.difference(&quiet_snapshot(victim.pid()));
    until("state as before", PATIENCE, || difference().is_empty().then_some(()), difference);
}

fn go_on(victim: &Victim, call: Call) {
    match call {
        Call::Waits => (0..3).for_each(|_| victim.wake()),
        Call::Goes => victim.wait_for_rounds(victim.counters().rounds + 3),
    }
    victim.counters().assert_unharmed();
}

fn unnoticed(mode: &'static str, call: Call, dump: Dump) {
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let mut victim = Victim::run("waits", mode);
        let _end = EndSession(victim.pid());
        if call == Call::Waits {
            asleep(victim.pid());
        }
        disturb(&victim, mode, dump);
        if call == Call::Waits {
            assert_eq!(victim.counters().rounds, 0, "the call returned though nobody woke it");
        }
        go_on(&victim, call);
        if dump == Dump::Left {
            let (kind, id) = (if mode.starts_with("msg") { "-q" } else { "-s" }, victim.counters().late_ns.to_string());
            assert!(Command::new("ipcrm").args([kind, &id]).status().unwrap().success());
        }
        if dump == Dump::Carried {
            let dir = victim.dir().join("images");
            let args = ["dump", "--inject", &victim.pid().to_string(), "-D", dir.to_str().unwrap()];
            let (status, said) = command(&victim, &args);
            assert_eq!(status, Some(0), "{said}");
            victim.reap();
            restore(&dir);
            go_on(&victim, call);
        }
    });
}

macro_rules! calls {
    ($call:ident, $dump:expr; $($name:ident)*) => {
        $(#[test] fn $name() { unnoticed(stringify!($name), Call::$call, $dump) })*
    };
}

calls!(Waits, Dump::Carried; read_socket read_timed read_low recvfrom recvfrom_timed recvfrom_all recvmsg recvmsg_timed recvmsg_all
    recvmmsg accept accept_timed connect connect_timed write_socket write_timed write_pipe writev_one writev_two writev_many sendto
    sendmsg sendmsg_two sendmmsg sendfile sendfile_at send_datagram splice tee vmsplice open_fifo flock setlkw
    ofd_setlkw eventfd_read eventfd_write timerfd signalfd inotify pause_call
    waitid);
calls!(Waits, Dump::Left; msgrcv msgsnd semop semtimedop);
calls!(Waits, Dump::Refused("asynchronous I/O"); io_getevents);
calls!(Goes, Dump::Carried; getrandom read_urandom read_zero copy_file_range sendfile_file write_file read_file);
