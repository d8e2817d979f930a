//! Calls that wait, sets that watch, messages that hold descriptors.

use ptyagent::sys::tty;

use crate::case::{Case, Terminal};
use crate::random::Random;
use crate::support::{Arg, RDWR, Stage, parse, room};

const SLAVE: i32 = 90;
const SET: i32 = 91;
/// What a waiting write writes.
const LONG: usize = 30_000;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Line,
    /// Of five bytes, of which two are there.
    Bytes,
    Poll,
    Set,
    Write,
}

/// An actor in a call that waits for a terminal.
pub struct Wait {
    actor: String,
    kind: Kind,
    at: Terminal,
}

/// Draws a call that waits for a terminal on which nothing else goes on.
pub fn wait(random: &mut Random, stage: &mut Stage, case: &mut Case, at: &Terminal) {
    let kind = random.of(&[Kind::Line, Kind::Bytes, Kind::Poll, Kind::Set, Kind::Write]);
    let actor = format!("{}.waits{}", case.root, at.master);
    if kind == Kind::Bytes {
        stage.set_termios(&at.user, at.slave, |flags, rest| {
            flags[3] &= !(libc::ICANON | libc::ECHO);
            rest[1 + libc::VMIN] = 5;
        });
        stage.type_in(&at.holder, at.master, b"12");
        stage.events(&at.user, at.slave, libc::POLLIN);
    }
    case.fork(stage, &case.root.clone(), &actor);
    stage.open(&actor, SLAVE, &format!("/dev/pts/{}", at.index), RDWR);
    match kind {
        Kind::Line | Kind::Bytes => stage.block(&actor, libc::SYS_read, &[SLAVE.into(), room(100), 100.into()]),
        Kind::Poll => {
            let watched = [SLAVE.to_ne_bytes(), [libc::POLLIN as u8, 0, 0, 0]].concat();
            stage.post(&actor, &Stage::line(libc::SYS_poll, &[Arg::Both(watched), 1.into(), (-1).into()]));
            stage.wait_in(&actor, &format!("{} ", libc::SYS_poll));
            stage.blocked.insert(actor.clone());
        }
        Kind::Set => {
            watch(stage, &actor, SET, SLAVE, libc::EPOLLIN as u32, 7);
            let args = [SET.into(), room(12), 1.into(), (-1).into()];
            stage.block(&actor, libc::SYS_epoll_wait, &args);
        }
        Kind::Write => {
            let text: Vec<u8> = (0..LONG).map(|n| b'a' + (n % 23) as u8).collect();
            stage.block(&actor, libc::SYS_write, &[SLAVE.into(), text.as_slice().into(), (LONG as u64).into()]);
            // It has found no room.
            while stage.events(&at.user, at.slave, libc::POLLOUT) != 0 {}
            case.free.push((at.index, "poll="));
        }
    }
    case.waits.push(Wait { actor, kind, at: at.clone() });
}

impl Wait {
    pub fn is_over(&self, stage: &Stage) -> String {
        format!("{} has an answer {}", self.actor, stage.has_answer_now(&self.actor))
    }

    /// Gives the call what it waits for; yields what it returned.
    pub fn end(&self, stage: &mut Stage) -> String {
        let (actor, at) = (&self.actor, &self.at);
        if self.kind == Kind::Write {
            return format!("{actor} wrote {}", self.end_write(stage));
        }
        // As many bytes as that one waits for: how many it gets of more is a race.
        stage.type_in(&at.holder, at.master, if self.kind == Kind::Bytes { b"345" } else { b"34567\r" });
        let answer = parse(&stage.hear(actor));
        stage.blocked.remove(actor);
        let bytes = answer.rooms.concat();
        format!("{actor} returned {} {}", answer.result, bytes.escape_ascii())
    }

    /// Reads until all is written.
    fn end_write(&self, stage: &mut Stage) -> String {
        let at = &self.at;
        let mut read = Vec::new();
        while !stage.has_answer_now(&self.actor) || stage.events(&at.holder, at.master, libc::POLLIN) != 0 {
            if stage.events(&at.holder, at.master, libc::POLLIN) != 0 {
                let answer = stage.must(&at.holder, libc::SYS_read, &[at.master.into(), room(4096), 4096.into()]);
                read.extend_from_slice(&answer.rooms[0][..answer.result as usize]);
            }
        }
        stage.blocked.remove(&self.actor);
        let in_order = read.iter().enumerate().all(|(n, byte)| *byte == b'a' + (n % 23) as u8);
        format!("{}, read {}, in order {in_order}", stage.hear(&self.actor), read.len())
    }
}

/// Adds a terminal to a new set.
fn watch(stage: &mut Stage, name: &str, set: i32, fd: i32, events: u32, data: u64) {
    let made = stage.must(name, libc::SYS_epoll_create1, &[0.into()]).result as i32;
    stage.place(name, made, set, 0);
    let event = [&events.to_ne_bytes()[..], &data.to_ne_bytes()].concat();
    stage.must(name, libc::SYS_epoll_ctl, &[set.into(), 1.into(), fd.into(), event.as_slice().into()]);
}

/// Draws a set that watches one end.
pub fn set(random: &mut Random, stage: &mut Stage, case: &mut Case, at: &Terminal) {
    let modes = [0, 0, libc::EPOLLONESHOT, libc::EPOLLET];
    let asked = random.bits((libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI) as u32);
    // A status of packet mode wakes only those who ask for input; see files::epoll.
    let input = if asked & libc::EPOLLPRI as u32 != 0 { libc::EPOLLIN as u32 } else { 0 };
    let events = asked | input | random.of(&modes) as u32;
    let data = random.below(1 << 40);
    let (name, fd) = random.of(&[(&at.user, at.slave), (&at.holder, at.master)]);
    watch(stage, name, 60 + at.master, fd, events, data);
    case.sets.push((name.clone(), 60 + at.master));
}

/// Sends a description in a message that nobody takes.
pub fn message(random: &mut Random, stage: &mut Stage, case: &mut Case, at: &Terminal) {
    let (name, fd) = random.of(&[(&at.user, at.slave), (&at.holder, at.master)]);
    let made = stage.must(name, libc::SYS_socketpair, &[1.into(), 1.into(), 0.into(), room(8)]);
    let ends = [100 + 2 * at.master, 101 + 2 * at.master];
    for (made, fd) in made.rooms[0].chunks_exact(4).zip(ends) {
        stage.place(name, i32::from_ne_bytes(made.try_into().unwrap()), fd, 0);
    }
    assert_eq!(stage.tell(name, &format!("rights {} {fd}", ends[0])), "1");
    case.messages.push((name.clone(), ends[1]));
}

/// What the sets tell, twice.
pub fn asked(stage: &mut Stage, name: &str, set: i32) -> String {
    let ask = [set.into(), room(12), 1.into(), 0.into()];
    let told: Vec<String> = (0..2).map(|_| format!("{:?}", stage.sys(name, libc::SYS_epoll_wait, &ask))).collect();
    format!("{name} set {set} tells {told:?}")
}

/// Lets a stopped flow go on, by whatever has stopped it.
pub fn release(stage: &mut Stage, at: &Terminal) {
    for (name, fd) in [(&at.user, at.slave), (&at.holder, at.master)] {
        stage.sys(name, libc::SYS_ioctl, &[fd.into(), tty::TCXONC.into(), tty::TCOON.into()]);
    }
    stage.type_in(&at.holder, at.master, b"\x11");
}
