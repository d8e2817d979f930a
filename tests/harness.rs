//! The harness itself: terminals, holders, victims, reaping.

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use support::{Holder, PATIENCE, Pty, TempDir, Victim, serial, snapshot, subreaper, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_terminal_shows_what_bash_computes() {
    with_timeout(LIMIT, || {
        let mut pty = Pty::bash();
        pty.type_keys("echo $((6*7))\r");
        pty.wait_for_text("\n42\n");
        pty.type_keys("exit 3\r");
        assert_eq!(pty.wait_for_exit(PATIENCE).code(), Some(3));
    });
}

#[test]
fn a_holder_keeps_a_session_inside_its_tree() {
    with_timeout(LIMIT, || {
        let holder = Holder::bash();
        holder.type_keys("echo $((6*7)); tty\r");
        holder.wait_for_text("\n42\n/dev/pts/");
        let root = snapshot(holder.pid());
        let leader = snapshot(holder.leader());
        assert_eq!((root.stat.session, root.stat.tty_nr), (holder.pid(), 0));
        assert_eq!((leader.stat.session, leader.stat.ppid), (holder.leader(), holder.pid()));
        assert!(root.fds.values().all(|(link, _)| !link.starts_with("socket:")), "{:?}", root.fds);
        assert_eq!(root.difference(&root), "");
        assert!(root.difference(&leader).contains("+fd 0 /dev/pts/"));
        assert_eq!(support::ps_line(&[holder.pid(), holder.leader()]).lines().count(), 2);
        holder.type_keys("exit 5\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(5));
        let gone = || (!fs::exists(format!("/proc/{}", holder.pid())).unwrap()).then_some(());
        until("reaped holder", PATIENCE, gone, || support::ps_line(&[holder.pid()]));
    });
}

#[test]
fn a_subreaper_leaves_the_tests_own_children_alone() {
    with_timeout(LIMIT, || {
        let _subreaper = subreaper();
        let dir = TempDir::new();
        let script = format!(
            "(sleep 0 & echo $! >{0}/orphan.part; mv {0}/orphan.part {0}/orphan); exit 7",
            dir.path().display()
        );
        let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let orphan = until("orphan", PATIENCE, || fs::read_to_string(dir.join("orphan")).ok(), String::new);
        let gone = || (!fs::exists(format!("/proc/{}", orphan.trim())).unwrap()).then_some(());
        until("reaped orphan", PATIENCE, gone, String::new);
        assert_eq!(child.wait().unwrap().code(), Some(7));
    });
}

#[test]
fn blocked_victims_go_on_when_woken() {
    for mode in ["pipe", "poll", "ppoll", "select", "epoll", "futex", "wait4", "sigsuspend", "sigtimedwait"] {
        with_timeout(LIMIT, move || {
            let victim = Victim::start(mode);
            victim.wake();
            victim.wake();
            victim.counters().assert_unharmed();
        });
    }
}

#[test]
fn busy_and_timed_victims_go_round() {
    for mode in [
        "spin",
        "getppid",
        "nanosleep",
        "clock_nanosleep",
        "clock_absolute",
        "poll_timed",
        "futex_timed",
        "epoll_timed",
    ] {
        with_timeout(LIMIT, move || {
            let victim = Victim::start(mode);
            victim.wait_for_rounds(5);
            victim.counters().assert_unharmed();
        });
    }
}

#[test]
fn terminal_victims_read_and_write_whole() {
    with_timeout(LIMIT, || {
        let mut pty = Pty::new(support::Size { rows: 24, cols: 80 });
        let victim = Victim::start_on(&mut pty, "tty_line");
        pty.type_keys("line\r");
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();

        let mut pty = Pty::new(support::Size { rows: 24, cols: 80 });
        let victim = Victim::start_on(&mut pty, "tty_min");
        pty.type_keys("ab");
        pty.type_keys("cd");
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();

        let mut pty = Pty::new(support::Size { rows: 24, cols: 80 });
        pty.set_reading(support::Reading::Paused);
        let victim = Victim::start_on(&mut pty, "tty_write");
        assert_eq!(victim.counters().rounds, 0);
        pty.set_reading(support::Reading::On);
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();
    });
}

#[test]
fn a_signal_or_a_wrong_byte_is_noticed() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("pipe");
        fs::write(victim.dir().join("in"), [200]).unwrap();
        until("noticed byte", PATIENCE, || (victim.counters().wrong == 1).then_some(()), String::new);

        let victim = Victim::start("epoll");
        let pid = nix::unistd::Pid::from_raw(victim.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
        until("stopped victim", PATIENCE, || (snapshot(victim.pid()).stat.state == 'T').then_some(()), String::new);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
        until("noticed EINTR", PATIENCE, || (victim.counters().eintr == 1).then_some(()), String::new);
    });
}

#[test]
fn the_lock_is_held_once() {
    with_timeout(LIMIT, || {
        let first = serial();
        let second = std::thread::spawn(|| drop(serial()));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap();
    });
}
