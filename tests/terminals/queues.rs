//! Queues, byte for byte, with read boundaries.

use crate::cases::Case;
use ptyagent::sys::tty::FIONREAD;

use crate::support::{Arg, Stage, parse, room};

const GROUP: &str = "queues";
const M: i32 = 10;
const S: i32 = 20;

pub fn cases() -> Vec<Case> {
    let mut cases = input();
    cases.extend(pastes());
    cases.extend(output());
    cases
}

fn typed(name: &'static str, setup: fn(&mut Stage)) -> Case {
    Case::kept(GROUP, name, setup)
}

fn with(s: &mut Stage, bytes: &[u8]) {
    s.pair("root", M, S);
    s.type_in("root", M, bytes);
}

fn raw(s: &mut Stage, bytes: &[u8]) {
    s.pair("root", M, S);
    s.set_termios("root", S, |flags, _| flags[3] &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN));
    s.type_in("root", M, bytes);
}

/// More than the line buffer holds: that is filled first, since how much fits behind it depends on what is in it by then. The kernel counts
/// what can be read.
fn type_much(s: &mut Stage, bytes: &[u8]) {
    let (first, rest) = bytes.split_at(4095);
    let end = first.iter().rposition(|byte| matches!(byte, b'\r' | b'\n')).map_or(first.len(), |at| at + 1);
    s.type_in("root", M, first);
    while unread(s, S) < end {}
    assert_eq!(s.type_in("root", M, rest), rest.len());
}

fn unread(s: &mut Stage, fd: i32) -> usize {
    s.must("root", libc::SYS_ioctl, &[fd.into(), FIONREAD.into(), room(4)]).number() as usize
}

fn input() -> Vec<Case> {
    vec![
        typed("several lines", |s| with(s, b"one\rtwo\r\rfour\r")),
        typed("an unfinished line", |s| with(s, b"half a li")),
        typed("lines and an unfinished one", |s| with(s, b"one\rtwo\rpart")),
        typed("an EOF mark alone", |s| with(s, b"\x04")),
        typed("two EOF marks", |s| with(s, b"\x04\x04")),
        typed("text ended by EOF", |s| with(s, b"abc\x04def\x04g")),
        typed("text ended by VEOL and VEOL2", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |_, rest| (rest[1 + libc::VEOL], rest[1 + libc::VEOL2]) = (b';', b'!'));
            s.type_in("root", M, b"one;two!three\rfour;five\x04part");
        }),
        typed("quoted control characters", |s| with(s, b"a\x16\x03b\x16\x04c\x16\x16d\x16\r\rpa\x16\x7frt")),
        typed("a literal-next that waits for its character", |s| with(s, b"one\rab\x16")),
        typed("NUL and high bytes", |s| {
            s.pair("root", M, S);
            let all: Vec<u8> = (0..=255).flat_map(|byte| [0x16, byte]).collect();
            s.type_in("root", M, &[&all[..], b"\r\0\xff\xfe\r\0part\xff"].concat());
        }),
        typed("without echo", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| flags[3] &= !libc::ECHO);
            s.type_in("root", M, b"secret\rpass");
        }),
        typed("raw input, 1 byte", |s| raw(s, b"x")),
        typed("raw input, 4,000 bytes", |s| raw(s, &pattern(4000))).verified(joined),
        typed("raw input, 20,000 bytes", |s| {
            raw(s, b"");
            type_much(s, &pattern(20000));
        })
        .verified(joined),
        typed("raw input with the INTR character", |s| raw(s, b"a\x03b\x1c\x1a")),
        typed("a reader that is blocked in read() stays blocked", |s| {
            s.pair("root", M, S);
            s.fork("root", "reader");
            s.block("reader", libc::SYS_read, &[S.into(), room(100), 100.into()]);
        })
        .verified(|s| answered(s, "reader")),
        typed("a poll() that waits for input does not fire", |s| {
            s.pair("root", M, S);
            s.fork("root", "poller");
            let watched = [S.to_ne_bytes(), [libc::POLLIN as u8, 0, 0, 0]].concat();
            s.post("poller", &Stage::line(libc::SYS_poll, &[Arg::Both(watched), 1.into(), (-1).into()]));
            s.wait_in("poller", &format!("{} ", libc::SYS_poll));
            s.blocked.insert("poller".into());
        })
        .verified(|s| answered(s, "poller")),
        typed("an epoll_wait() that waits for input does not fire", |s| {
            s.pair("root", M, S);
            s.fork("root", "poller");
            let set = s.must("poller", libc::SYS_epoll_create1, &[0.into()]).result as i32;
            let event = [libc::EPOLLIN.to_ne_bytes(), [7; 4], [9; 4]].concat();
            s.must("poller", libc::SYS_epoll_ctl, &[set.into(), 1.into(), S.into(), event.as_slice().into()]);
            s.block("poller", libc::SYS_epoll_wait, &[set.into(), room(12), 1.into(), (-1).into()]);
        })
        .verified(|s| answered(s, "poller")),
    ]
}

fn answered(s: &mut Stage, name: &str) -> Vec<String> {
    let early = s.has_answer(name);
    s.type_in("root", M, b"for it\r");
    let told = s.hear(name);
    s.blocked.clear();
    [vec![format!("{early} {told}")], s.exhaust()].concat()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| b'a' + (n % 23) as u8).collect()
}

/// The bytes of all reads together: how many come with one read of a full queue is a race with the kernel's worker.
fn joined(s: &mut Stage) -> Vec<String> {
    let mut bytes = String::new();
    for _ in 0..3 {
        for read in s.drain("root", S) {
            bytes.push_str(read.split_once(':').unwrap().1);
        }
    }
    let mut facts = vec![bytes];
    facts.extend(s.exhaust());
    facts
}

fn paste(end: &str) -> Vec<u8> {
    (0..20_000 / 29).flat_map(|n| format!("a line of text number {n:04}{end}").into_bytes()).collect()
}

fn pastes() -> Vec<Case> {
    vec![
        typed("a full line buffer, nothing behind it", |s| with(s, &[&[b'x'; 4000][..], b"\r", &[b'y'; 90]].concat())),
        typed("20 KB of lines that end in LF, with echo", |s| {
            with(s, b"");
            type_much(s, &paste("\n"));
        }),
        typed("20 KB of lines that end in CR, with echo", |s| {
            with(s, b"");
            type_much(s, &paste("\r"));
        }),
        typed("20 KB of lines without echo", |s| {
            s.pair("root", M, S);
            s.set_termios("root", S, |flags, _| flags[3] &= !libc::ECHO);
            type_much(s, &paste("\r"));
        }),
        typed("a line that is longer than the line buffer", |s| with(s, &[&[b'x'; 6000][..], b"\rnext\r"].concat())),
    ]
}

fn output() -> Vec<Case> {
    vec![
        typed("output, 1 byte", |s| {
            s.pair("root", M, S);
            s.write("root", S, b"x");
        }),
        typed("output of lines, unchanged by OPOST", |s| {
            s.pair("root", M, S);
            s.write("root", S, b"one\ntwo\tthree\r\n");
        }),
        typed("output until nothing more fits", |s| {
            s.pair("root", M, S);
            fill_output(s);
        })
        .verified(all_output)
        .but(
            "poll=",
            "a poll of the slave may tell POLLOUT again: how much room is left depends on the sizes of the writes",
        ),
        typed("output until nothing more fits, in packet mode", |s| {
            s.pair("root", M, S);
            s.ioctl_in("root", M, ptyagent::sys::tty::TIOCPKT, &1i32.to_ne_bytes());
            fill_output(s);
        })
        .verified(packet_output)
        .but(
            "poll=",
            "a poll of the slave may tell POLLOUT again: how much room is left depends on the sizes of the writes",
        ),
        typed("output and input", |s| {
            s.pair("root", M, S);
            s.write("root", S, b"prompt\n$ ");
            s.type_in("root", M, b"ls\rpart");
        }),
        typed("a writer that is blocked in write()", |s| {
            s.pair("root", M, S);
            s.fork("root", "writer");
            let text = pattern(48_000);
            s.block("writer", libc::SYS_write, &[S.into(), text.as_slice().into(), 48_000.into()]);
            while s.events("root", S, libc::POLLOUT) != 0 || s.events("root", M, libc::POLLIN) == 0 {}
            assert!(!s.has_answer("writer"));
        })
        .verified(writer)
        .but("poll=", "a poll may tell room again"),
    ]
}

/// The master's line buffer first; what fits behind it depends on nothing but the sizes of the writes.
fn fill_output(s: &mut Stage) {
    s.type_in("root", S, &pattern(30_000)[..4095]);
    while unread(s, M) < 4095 {}
    s.type_in("root", S, &pattern(30_000)[4095..]);
}

fn all_output(s: &mut Stage) -> Vec<String> {
    let reads = s.drain("root", M);
    let mut facts = vec![reads.iter().map(|read| read.split_once(':').unwrap().1).collect()];
    facts.extend(s.exhaust());
    facts
}

fn packet_output(s: &mut Stage) -> Vec<String> {
    // Each read begins with a status byte, and their sizes are a race with the kernel's worker.
    let reads = s.drain("root", M);
    let mut facts = vec![reads.iter().map(|read| read.split_once(':').unwrap().1.replacen("\\x00", "", 1)).collect()];
    facts.extend(s.exhaust());
    facts
}

/// Reads until the blocked write has returned: all is written.
fn writer(s: &mut Stage) -> Vec<String> {
    let mut total = Vec::new();
    let mut ended = false;
    while !ended || s.events("root", M, libc::POLLIN) != 0 {
        ended |= s.has_answer("writer");
        if s.events("root", M, libc::POLLIN) != 0 {
            let answer = s.must("root", libc::SYS_read, &[M.into(), room(8192), Arg::Number(8192)]);
            total.extend_from_slice(&answer.rooms[0][..answer.result as usize]);
        }
    }
    let written = parse(&s.hear("writer")).result;
    s.blocked.clear();
    vec![format!("{written} written, {} read, same {}", total.len(), pattern(48_000).starts_with(&total))]
}
