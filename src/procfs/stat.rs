//! /proc/PID/stat.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

use super::{Device, failure, lossy, number, read, thread_path, words};
use crate::error::{Error, Result};
use crate::ids::{Pgid, Pid, Sid, Tid};

/// The run state letter. fs/proc/array.c, task_state_array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running,
    Sleeping,
    /// In a wait that no signal but at most SIGKILL ends.
    DiskSleep,
    /// Group-stopped.
    Stopped,
    /// In a ptrace stop.
    Traced,
    Zombie,
    /// Past the zombie: being reaped.
    Dead,
    Idle,
    Parked,
    Other(u8),
}

impl State {
    fn from_letter(letter: u8) -> State {
        match letter {
            b'R' => State::Running,
            b'S' => State::Sleeping,
            b'D' => State::DiskSleep,
            b'T' => State::Stopped,
            b't' => State::Traced,
            b'Z' => State::Zombie,
            b'X' | b'x' => State::Dead,
            b'I' => State::Idle,
            b'P' => State::Parked,
            other => State::Other(other),
        }
    }

    /// Whether it has no memory and no descriptors any more.
    pub fn is_dead(self) -> bool {
        matches!(self, State::Zombie | State::Dead)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Running => f.write_str("running"),
            State::Sleeping => f.write_str("sleeping"),
            State::DiskSleep => f.write_str("in uninterruptible sleep"),
            State::Stopped => f.write_str("stopped"),
            State::Traced => f.write_str("in a trace stop"),
            State::Zombie => f.write_str("a zombie"),
            State::Dead => f.write_str("dead"),
            State::Idle => f.write_str("idle"),
            State::Parked => f.write_str("parked"),
            State::Other(letter) => write!(f, "in state {}", letter.escape_ascii()),
        }
    }
}

/// One process or thread as its stat line has it. Addresses and `exit_code` read 0 where we have no ptrace access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub pid: Pid,
    /// Up to 15 bytes of anything but NUL; kernel threads have up to 63.
    pub comm: OsString,
    pub state: State,
    /// 0 where the parent is outside our pid namespace.
    pub ppid: Pid,
    pub pgrp: Pgid,
    pub session: Sid,
    /// The controlling terminal.
    pub tty: Option<Device>,
    /// The foreground process group of the controlling terminal; -1 without one.
    pub tpgid: i32,
    /// The kernel's PF_ bits.
    pub flags: u32,
    pub nice: i32,
    pub num_threads: u32,
    /// Clock ticks since boot: with the pid, the identity of a process.
    pub start_time: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub exit_signal: i32,
    pub rt_priority: u32,
    pub policy: u32,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// In wait status form; meaningful for a zombie.
    pub exit_code: i32,
}

const PF_KTHREAD: u32 = 0x0020_0000;

impl Stat {
    pub fn read(pid: Pid) -> Result<Stat> {
        Stat::parse(&read("reading the stat", pid, "stat")?)
    }

    /// The stat of one thread; `pid` in it is the thread's id.
    pub fn read_thread(pid: Pid, tid: Tid) -> Result<Stat> {
        let bytes = super::whole(&thread_path(pid, tid, "stat"));
        Stat::parse(&bytes.map_err(|error| failure("reading the stat of a thread", pid, &error))?)
    }

    /// What a process is like whose leader, a zombie, shows this, and another thread `seen`.
    pub fn of_leader(self, seen: Stat) -> Stat {
        let Stat { pid, comm, nice, start_time, exit_signal, rt_priority, policy, exit_code, .. } = self;
        Stat { pid, comm, nice, start_time, exit_signal, rt_priority, policy, exit_code, ..seen }
    }

    /// The comm begins at the first parenthesis and ends at the last: it may hold parentheses, blanks and newlines itself.
    pub fn parse(text: &[u8]) -> Result<Stat> {
        let malformed = || Error::unexpected("the stat of a process", lossy(text));
        let open = text.iter().position(|byte| *byte == b'(').ok_or_else(malformed)?;
        let close = text.iter().rposition(|byte| *byte == b')').filter(|close| *close > open).ok_or_else(malformed)?;
        let comm = OsString::from_vec(text[open + 1..close].to_vec());
        let fields: Vec<&[u8]> = words(&text[close + 1..]).collect();
        let pid = number(text[..open].trim_ascii(), 10).ok_or_else(malformed)?;
        Fields { fields }.stat(Pid(pid), comm).ok_or_else(malformed)
    }

    /// The processor that a thread ran on last, which changes too often to be one of its facts.
    pub fn processor(pid: Pid, tid: Tid) -> Option<usize> {
        let text = super::whole(&thread_path(pid, tid, "stat")).ok()?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        Fields { fields: words(&text[close + 1..]).collect() }.get(39)
    }

    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// The comm for messages, with anything unprintable escaped.
    pub fn comm_text(&self) -> String {
        self.comm.to_string_lossy().chars().flat_map(printable).collect()
    }
}

fn printable(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// The words behind the comm.
struct Fields<'a> {
    fields: Vec<&'a [u8]>,
}

impl Fields<'_> {
    /// By the number that proc(5) gives the field; 3 is the state.
    fn get<T: TryFrom<i128>>(&self, field: usize) -> Option<T> {
        number(self.fields.get(field - 3)?, 10)
    }

    fn stat(&self, pid: Pid, comm: OsString) -> Option<Stat> {
        Some(Stat {
            pid,
            comm,
            state: State::from_letter(*self.fields.first()?.first()?),
            ppid: Pid(self.get(4)?),
            pgrp: Pgid(self.get(5)?),
            session: Sid(self.get(6)?),
            tty: Device::from_tty_nr(self.get::<i64>(7)? as i32),
            tpgid: self.get(8)?,
            flags: self.get(9)?,
            nice: self.get(19)?,
            num_threads: self.get(20)?,
            start_time: self.get(22)?,
            start_code: self.get(26)?,
            end_code: self.get(27)?,
            start_stack: self.get(28)?,
            exit_signal: self.get(38)?,
            rt_priority: self.get(40)?,
            policy: self.get(41)?,
            start_data: self.get(45)?,
            end_data: self.get(46)?,
            start_brk: self.get(47)?,
            arg_start: self.get(48)?,
            arg_end: self.get(49)?,
            env_start: self.get(50)?,
            env_end: self.get(51)?,
            exit_code: self.get(52)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAIL: &str = " S 40 41 42 34817 43 4194560 99 0 0 0 1 2 3 4 20 -5 1 0 189451 3133440 358 18446744073709551615 \
        4096 8192 140730056213136 0 0 0 0 2 65536 1 0 0 17 1 0 0 0 0 0 10 11 12 13 14 15 16 256\n";

    #[test]
    fn a_comm_may_hold_parentheses_blanks_and_newlines() {
        let stat = Stat::parse(format!("77 (a) R 1\n(b)){TAIL}").as_bytes()).unwrap();
        assert_eq!(stat.comm, "a) R 1\n(b)");
        assert_eq!(stat.comm_text(), "a) R 1\\n(b)");
        assert_eq!((stat.pid, stat.ppid, stat.pgrp, stat.session), (Pid(77), Pid(40), Pgid(41), Sid(42)));
        assert_eq!((stat.tty, stat.tpgid), (Some(Device { major: 136, minor: 1 }), 43));
        assert_eq!((stat.nice, stat.num_threads, stat.start_time, stat.exit_signal), (-5, 1, 189451, 17));
        assert_eq!((stat.start_data, stat.env_end, stat.exit_code), (10, 16, 256));
        assert_eq!(stat.state, State::Sleeping);
    }

    #[test]
    fn a_cut_line_is_an_error() {
        let whole = format!("77 (sh){TAIL}");
        for len in 0..whole.trim_end().len() - 2 {
            assert!(Stat::parse(&whole.as_bytes()[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn this_process_is_readable() {
        let pid = Pid(std::process::id() as i32);
        let stat = Stat::read(pid).unwrap();
        assert_eq!(stat.pid, pid);
        assert!(!stat.is_kernel_thread() && stat.start_stack > 0 && stat.num_threads > 0);
        assert_eq!(Stat::read_thread(pid, pid.into()).unwrap().start_time, stat.start_time);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, tail: String) {
            let _ = Stat::parse(&bytes);
            let _ = Stat::parse(format!("1 (x) {tail}").as_bytes());
        }
    }
}
