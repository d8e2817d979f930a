//! A tree of actors (`tests/victims/actor.c`) that make the system calls a test asks for, and everything that they can observe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::host::{TempDir, until};
use super::{PATIENCE, Subreaper, compile, subreaper};

/// An argument of a system call.
#[derive(Debug, Clone)]
pub enum Arg {
    Number(i64),
    /// Bytes that the kernel reads.
    In(Vec<u8>),
    /// Bytes that the kernel reads and writes.
    Both(Vec<u8>),
    /// Room that the kernel writes.
    Out(usize),
}

impl From<i32> for Arg {
    fn from(number: i32) -> Arg {
        Arg::Number(number.into())
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Arg {
        Arg::Number(number as i64)
    }
}

impl From<&[u8]> for Arg {
    fn from(bytes: &[u8]) -> Arg {
        Arg::In(bytes.to_vec())
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Arg {
        Arg::In([text.as_bytes(), b"\0"].concat())
    }
}

/// Room that the kernel writes.
pub fn room(size: usize) -> Arg {
    Arg::Out(size)
}

/// What a system call returned (an errno negated) and wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub result: i64,
    pub rooms: Vec<Vec<u8>>,
}

impl Answer {
    pub fn number(&self) -> u32 {
        u32::from_ne_bytes(self.rooms[0][..4].try_into().unwrap())
    }
}

struct Actor {
    pid: i32,
    script: File,
    answers: File,
    heard: Vec<u8>,
}

/// The tree; its root is "root". Dropping it kills all that it has made.
pub struct Stage {
    pub dir: TempDir,
    actors: BTreeMap<String, Actor>,
    /// Actors that are stopped, and cannot be asked, or wait in a call.
    pub stopped: BTreeSet<String>,
    pub blocked: BTreeSet<String>,
    _subreaper: Subreaper,
}

impl Stage {
    pub fn new() -> Stage {
        let (dir, subreaper) = (TempDir::in_memory(), subreaper());
        let mut stage = Stage {
            dir,
            actors: BTreeMap::new(),
            stopped: BTreeSet::new(),
            blocked: BTreeSet::new(),
            _subreaper: subreaper,
        };
        stage.invite("root");
        let mut command = Command::new(compile("actor"));
        command.arg(stage.dir.path()).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        stage.meet("root");
        stage
    }

    /// Makes the FIFOs of an actor that is to come.
    fn invite(&mut self, name: &str) {
        let [script, answers] = ["in", "out"].map(|end| {
            let path = self.dir.join(&format!("{name}.{end}"));
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            File::options().read(true).write(true).open(path).unwrap()
        });
        self.actors.insert(name.into(), Actor { pid: 0, script, answers, heard: Vec::new() });
    }

    /// Waits for an invited actor.
    fn meet(&mut self, name: &str) -> i32 {
        let pid = self.hear(name).parse().unwrap();
        self.actors.get_mut(name).unwrap().pid = pid;
        pid
    }

    pub fn pid(&self, name: &str) -> i32 {
        self.actors[name].pid
    }

    pub fn names(&self) -> Vec<String> {
        self.actors.keys().cloned().collect()
    }

    /// Those that can be asked.
    pub fn running(&self) -> Vec<String> {
        let busy = |name: &String| self.stopped.contains(name) || self.blocked.contains(name);
        self.names().into_iter().filter(|name| !busy(name)).collect()
    }

    /// Sends a line without waiting for its answer: for calls that block.
    pub fn post(&mut self, name: &str, line: &str) {
        let actor = self.actors.get_mut(name).unwrap();
        actor.script.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Posts a system call that blocks on a descriptor, and waits until the actor is in it.
    pub fn block(&mut self, name: &str, nr: i64, args: &[Arg]) {
        self.post(name, &Stage::line(nr, args));
        let Some(Arg::Number(fd)) = args.first() else { panic!("the first argument is no number") };
        self.wait_in(name, &format!("{nr} {fd:#x} "));
        self.blocked.insert(name.into());
    }

    /// Waits until /proc says that the actor is in a call: its number and arguments begin like this.
    pub fn wait_in(&self, name: &str, start: &str) {
        let path = format!("/proc/{}/syscall", self.pid(name));
        let is_in = || fs::read_to_string(&path).is_ok_and(|text| text.starts_with(start)).then_some(());
        until("blocked actor", PATIENCE, is_in, || format!("{:?}", fs::read_to_string(&path)));
    }

    /// Whether an answer comes within 50 ms.
    pub fn has_answer(&self, name: &str) -> bool {
        self.answers_within(name, 50)
    }

    /// Whether an answer is there.
    pub fn has_answer_now(&self, name: &str) -> bool {
        self.answers_within(name, 0)
    }

    fn answers_within(&self, name: &str, ms: u8) -> bool {
        let mut fds = [PollFd::new(self.actors[name].answers.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(ms)).unwrap() > 0
    }

    /// The next answer.
    pub fn hear(&mut self, name: &str) -> String {
        let actor = self.actors.get_mut(name).unwrap();
        loop {
            if let Some(end) = actor.heard.iter().position(|byte| *byte == b'\n') {
                let rest = actor.heard.split_off(end + 1);
                let line = std::mem::replace(&mut actor.heard, rest);
                return String::from_utf8(line).unwrap().trim_end().to_owned();
            }
            let mut fds = [PollFd::new(actor.answers.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
            assert!(ready > 0, "actor {name} does not answer: {:?}", super::stat(actor.pid));
            let mut bytes = vec![0; 1 << 16];
            let count = actor.answers.read(&mut bytes).unwrap();
            actor.heard.extend(&bytes[..count]);
        }
    }

    pub fn tell(&mut self, name: &str, line: &str) -> String {
        self.post(name, line);
        self.hear(name)
    }

    /// Makes an actor as a child of another one.
    pub fn fork(&mut self, parent: &str, name: &str) -> i32 {
        self.invite(name);
        let told: i32 = self.tell(parent, &format!("fork {name}")).parse().unwrap();
        assert_eq!(self.meet(name), told);
        told
    }

    pub fn line(nr: i64, args: &[Arg]) -> String {
        let mut line = format!("sys {nr}");
        for arg in args {
            match arg {
                Arg::Number(number) => write!(line, " {number}").unwrap(),
                Arg::Out(size) => write!(line, " @{size}").unwrap(),
                Arg::Both(bytes) => write!(line, " ~{}", hex(bytes)).unwrap(),
                Arg::In(bytes) => write!(line, " #{}", hex(bytes)).unwrap(),
            }
        }
        line
    }

    /// A system call.
    pub fn sys(&mut self, name: &str, nr: i64, args: &[Arg]) -> Answer {
        parse(&self.tell(name, &Stage::line(nr, args)))
    }

    /// System calls one after another, told at once.
    pub fn all(&mut self, name: &str, calls: &[(i64, Vec<Arg>)]) -> Vec<Answer> {
        let lines: Vec<String> = calls.iter().map(|(nr, args)| Stage::line(*nr, args)).collect();
        self.post(name, &lines.join("\n"));
        lines.iter().map(|_| parse(&self.hear(name))).collect()
    }

    /// A system call that has to succeed.
    pub fn must(&mut self, name: &str, nr: i64, args: &[Arg]) -> Answer {
        let answer = self.sys(name, nr, args);
        assert!(answer.result >= 0, "{name}: call {nr} {args:?} failed: {}", answer.result);
        answer
    }

    /// Forgets an actor that has ended.
    pub fn forget(&mut self, name: &str) {
        self.actors.remove(name);
    }
}

/// What an actor said to a system call.
pub fn parse(line: &str) -> Answer {
    let mut words = line.split(' ');
    let result = words.next().unwrap().parse().unwrap_or_else(|_| panic!("{line:?}"));
    Answer { result, rooms: words.map(unhex).collect() }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        for actor in self.actors.values() {
            // Only what is still ours: a restored actor has the same directory.
            if fs::read_link(format!("/proc/{}/cwd", actor.pid)).is_ok_and(|cwd| cwd == self.dir.path()) {
                let _ = kill(Pid::from_raw(actor.pid), Signal::SIGKILL);
            }
        }
    }
}
