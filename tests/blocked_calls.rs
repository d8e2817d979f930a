//! Calls on a terminal that are in progress, dumped and restored twice and left running once in between: none returns because of us, and each
//! ends as one call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use ptyagent::sys::tty;
use support::{Arg, Stage, dump, dump_running, parse, restore, room, serial, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);
const M: i32 = 10;
const S: i32 = 20;

/// Dump and restore, a dump that leaves it running, dump and restore; in between something happens.
fn disturb(stage: &mut Stage, actor: &str, mut between: impl FnMut(&mut Stage)) {
    let root = stage.pid("root");
    for round in 0..3 {
        let dir = stage.dir.join(&format!("images{round}"));
        if round == 1 {
            dump_running(root, &dir);
        } else {
            dump(root, &dir);
            restore(&dir);
        }
        assert!(!stage.has_answer(actor), "the call of {actor} returned in round {round}");
        between(stage);
    }
}

fn on_stage(body: fn(&mut Stage)) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        body(&mut Stage::new());
    });
}

/// Reads what is there, and yields how much.
fn take(stage: &mut Stage, into: &mut Vec<u8>) -> usize {
    if stage.events("root", M, libc::POLLIN) == 0 {
        return 0;
    }
    let answer = stage.must("root", libc::SYS_read, &[M.into(), room(3000), Arg::Number(3000)]);
    into.extend_from_slice(&answer.rooms[0][..answer.result as usize]);
    answer.result as usize
}

#[test]
fn a_write_that_found_no_room_goes_on() {
    on_stage(|stage| {
        let text: Vec<u8> = (0..50_000u32).map(|n| b'a' + (n % 23) as u8).collect();
        stage.pair("root", M, S);
        stage.fork("root", "writer");
        stage.block("writer", libc::SYS_write, &[S.into(), text.as_slice().into(), 50_000.into()]);
        while stage.events("root", S, libc::POLLOUT) != 0 || stage.events("root", M, libc::POLLIN) == 0 {}
        let mut seen = Vec::new();
        disturb(stage, "writer", |stage| {
            // Some room, so that it moves a piece and is cut short there the next time.
            take(stage, &mut seen);
            while stage.events("root", S, libc::POLLOUT) != 0 {}
        });
        while !stage.has_answer("writer") {
            take(stage, &mut seen);
        }
        assert_eq!(parse(&stage.hear("writer")).result, 50_000);
        while take(stage, &mut seen) > 0 {}
        assert!(seen == text, "{} bytes came, the first difference is at {:?}", seen.len(), difference(&seen, &text));
    });
}

/// How the output is stopped.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Character,
    Call,
}

/// A write of 50,000 bytes that waits while the output is stopped; the queue is full or empty by then. Nothing of it comes early, and all
/// of it in order when the output goes on.
fn a_stopped_write_goes_on(stage: &mut Stage, stop: Stop, before: usize) {
    let text: Vec<u8> = (0..50_000u32).map(|n| b'a' + (n % 23) as u8).collect();
    let halt = |stage: &mut Stage| match stop {
        Stop::Character => drop(stage.type_in("root", M, b"\x13")),
        Stop::Call => stage.ioctl("root", S, tty::TCXONC, tty::TCOOFF),
    };
    let may_write = |stage: &mut Stage| stage.events("root", S, libc::POLLIN | libc::POLLOUT) & libc::POLLOUT != 0;
    stage.pair("root", M, S);
    stage.fork("root", "writer");
    if before == 0 {
        halt(stage);
        while may_write(stage) {}
    }
    stage.block("writer", libc::SYS_write, &[S.into(), text.as_slice().into(), 50_000.into()]);
    let mut seen = Vec::new();
    if before > 0 {
        while may_write(stage) || stage.events("root", M, libc::POLLIN) == 0 {}
        halt(stage);
        // Asking makes the kernel process what was typed.
        stage.events("root", S, libc::POLLIN);
    }
    disturb(stage, "writer", |stage| {
        assert!(!may_write(stage), "{stop:?}: the output runs");
        take(stage, &mut seen);
    });
    while take(stage, &mut seen) > 0 {}
    assert!(seen.len() >= before && seen.len() < 25_000 && (before > 0 || seen.is_empty()), "{stop:?}: {}", seen.len());
    assert!(!stage.has_answer("writer"));
    match stop {
        Stop::Character => drop(stage.type_in("root", M, b"\x11")),
        Stop::Call => stage.ioctl("root", S, tty::TCXONC, tty::TCOON),
    }
    while !stage.has_answer("writer") {
        take(stage, &mut seen);
    }
    assert_eq!(parse(&stage.hear("writer")).result, 50_000);
    while take(stage, &mut seen) > 0 {}
    assert!(seen == text, "{stop:?}: {} bytes, first difference at {:?}", seen.len(), difference(&seen, &text));
}

#[test]
fn a_write_behind_a_stop_and_a_full_queue_goes_on() {
    on_stage(|stage| a_stopped_write_goes_on(stage, Stop::Character, 4096));
    on_stage(|stage| a_stopped_write_goes_on(stage, Stop::Call, 4096));
}

#[test]
fn a_write_behind_a_stop_goes_on() {
    on_stage(|stage| a_stopped_write_goes_on(stage, Stop::Character, 0));
    on_stage(|stage| a_stopped_write_goes_on(stage, Stop::Call, 0));
}

fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    one.iter().zip(other).position(|(a, b)| a != b)
}

#[test]
fn a_read_that_waits_for_more_bytes_goes_on() {
    on_stage(|stage| {
        stage.pair("root", M, S);
        stage.set_termios("root", S, |flags, rest| {
            flags[3] &= !(libc::ICANON | libc::ECHO);
            (rest[1 + libc::VMIN], rest[1 + libc::VTIME]) = (10, 0);
        });
        stage.fork("root", "reader");
        stage.block("reader", libc::SYS_read, &[S.into(), room(100), 100.into()]);
        let typed = |stage: &mut Stage, bytes: &[u8]| {
            stage.type_in("root", M, bytes);
            // The reader has taken them.
            while stage
                .must("root", libc::SYS_ioctl, &[S.into(), ptyagent::sys::tty::FIONREAD.into(), room(4)])
                .number()
                > 0
            {}
        };
        typed(stage, b"ab");
        disturb(stage, "reader", |stage| typed(stage, b"cd"));
        stage.type_in("root", M, b"ijk");
        let answer = parse(&stage.hear("reader"));
        assert_eq!(answer.result as usize, answer.rooms[0].iter().filter(|byte| **byte != 0).count());
        assert!(answer.rooms[0].starts_with(b"abcdcdcdij"), "{answer:?}");
    });
}

#[test]
fn readers_and_pollers_stay_blocked() {
    on_stage(|stage| {
        stage.pair("root", M, S);
        for name in ["reader", "poller", "epoller"] {
            stage.fork("root", name);
        }
        let number = |fd: i32, events: i16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0, 0]].concat();
        let watched = [number(S, libc::POLLIN | libc::POLLPRI), number(M, libc::POLLIN | libc::POLLPRI)].concat();
        let epoll = stage.must("epoller", libc::SYS_epoll_create1, &[0.into()]).result as i32;
        for fd in [S, M] {
            let event = [&(libc::EPOLLIN as u32).to_ne_bytes()[..], &(fd as u64).to_ne_bytes()].concat();
            let add = [epoll.into(), libc::EPOLL_CTL_ADD.into(), fd.into(), event.as_slice().into()];
            stage.must("epoller", libc::SYS_epoll_ctl, &add);
        }
        stage.block("epoller", libc::SYS_epoll_wait, &[epoll.into(), room(24), 2.into(), (-1).into()]);
        stage.post("poller", &Stage::line(libc::SYS_poll, &[Arg::Both(watched), 2.into(), (-1).into()]));
        stage.wait_in("poller", &format!("{} ", libc::SYS_poll));
        stage.blocked.insert("poller".into());
        stage.block("reader", libc::SYS_read, &[S.into(), room(100), 100.into()]);
        disturb(stage, "reader", |stage| assert!(!stage.has_answer("poller") && !stage.has_answer("epoller")));
        stage.type_in("root", M, b"now\r");
        assert_eq!(&parse(&stage.hear("reader")).rooms[0][..4], b"now\n");
        for name in ["poller", "epoller"] {
            assert!(parse(&stage.hear(name)).result > 0);
        }
    });
}
