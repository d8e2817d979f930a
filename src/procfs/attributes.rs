//! The small files of /proc/PID: one attribute each.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{failure, key_value, lines, lossy, number, read, read_optional, readlink, thread_path, words};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::process::attributes::{Rlimit, prlimit};

/// The auxiliary vector that the program was started with: type and value, AT_NULL left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auxv(pub Vec<(u64, u64)>);

impl Auxv {
    /// For a 64-bit process. Empty for a zombie and a kernel thread. EACCES: no ptrace access.
    pub fn read(pid: Pid) -> Result<Auxv> {
        Auxv::parse(&read("reading the auxiliary vector", pid, "auxv")?)
    }

    pub fn parse(bytes: &[u8]) -> Result<Auxv> {
        if bytes.len() % 16 != 0 {
            return Err(Error::unexpected("the auxiliary vector", format!("{} bytes", bytes.len())));
        }
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let pairs = bytes.chunks_exact(16).map(|pair| (word(&pair[..8]), word(&pair[8..])));
        Ok(Auxv(pairs.take_while(|(kind, _)| *kind != 0).collect()))
    }

    /// The value of a type, such as 33, AT_SYSINFO_EHDR.
    pub fn get(&self, kind: u64) -> Option<u64> {
        self.0.iter().find(|(entry, _)| *entry == kind).map(|(_, value)| *value)
    }
}

/// The most physical memory that a process has had so far, in KiB (VmHWM); none for a zombie and a kernel thread.
pub fn peak_memory_kib(pid: Pid) -> Result<Option<u64>> {
    let text = read("reading the status", pid, "status")?;
    Ok(parse_peak_memory_kib(&text))
}

fn parse_peak_memory_kib(text: &[u8]) -> Option<u64> {
    let (_, value) = lines(text).filter_map(key_value).find(|(key, _)| *key == b"VmHWM")?;
    number(value.strip_suffix(b" kB")?, 10)
}

/// What [`syscall`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InSyscall {
    /// On a processor or about to be; nothing else is known.
    Running,
    /// Blocked, but not in a system call (number -1): stopped or in a page fault.
    Outside { sp: u64, pc: u64 },
    /// Blocked in this call.
    Inside { number: u64, args: [u64; 6], sp: u64, pc: u64 },
}

/// Where a thread is. EACCES or EPERM: no ptrace access. CONFIG_HAVE_ARCH_TRACEHOOK, fs/proc/base.c, Linux 2.6.27.
pub fn syscall(pid: Pid, tid: Tid) -> Result<InSyscall> {
    let text = super::whole(&thread_path(pid, tid, "syscall"));
    let text = text.map_err(|error| failure("reading the current system call", pid, &error))?;
    parse_syscall(&text).ok_or_else(|| Error::unexpected("the current system call", lossy(&text)))
}

fn parse_syscall(text: &[u8]) -> Option<InSyscall> {
    let words: Vec<&[u8]> = words(text).collect();
    let hex = |word: &[u8]| number::<u64>(word.strip_prefix(b"0x")?, 16);
    match words.as_slice() {
        [b"running"] => Some(InSyscall::Running),
        [b"-1", sp, pc] => Some(InSyscall::Outside { sp: hex(sp)?, pc: hex(pc)? }),
        [nr, a, b, c, d, e, f, sp, pc] => Some(InSyscall::Inside {
            number: number(nr, 10)?,
            args: [hex(a)?, hex(b)?, hex(c)?, hex(d)?, hex(e)?, hex(f)?],
            sp: hex(sp)?,
            pc: hex(pc)?,
        }),
        _ => None,
    }
}

/// What the scheduler notes of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// When it was last on a processor, in nanoseconds of that processor's own clock.
    pub last_run_ns: i64,
    /// How often it has gone to sleep.
    pub sleeps: u64,
}

/// `None` where the kernel does not tell: CONFIG_SCHED_DEBUG before Linux 6.15, proc_sched_show_task() of kernel/sched/debug.c.
pub fn scheduled(pid: Pid, tid: Tid) -> Option<Scheduled> {
    parse_scheduled(&super::whole(&thread_path(pid, tid, "sched")).ok()?)
}

fn parse_scheduled(text: &[u8]) -> Option<Scheduled> {
    let value = |name: &[u8]| {
        let (_, value) = lines(text).filter_map(key_value).find(|(key, _)| key.trim_ascii() == name)?;
        Some(value.trim_ascii())
    };
    let last_run = value(b"se.exec_start")?;
    let point = last_run.iter().position(|byte| *byte == b'.')?;
    let (whole, part) = (number::<i64>(last_run.get(..point)?, 10)?, last_run.get(point + 1..)?);
    let part: i64 = if part.len() == 6 { number(part, 10)? } else { return None };
    let last_run_ns = whole.checked_mul(1_000_000)?.checked_add(part)?;
    Some(Scheduled { last_run_ns, sleeps: number(value(b"nr_voluntary_switches")?, 10)? })
}

/// One POSIX timer as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PosixTimer {
    pub id: i32,
    pub signal: i32,
    /// The `sigev_value`.
    pub value: u64,
    /// Such as "signal/pid.77", "thread/...", "none/...".
    pub notify: String,
    pub clock: i32,
}

/// The POSIX timers; `None` where the kernel has no such file (CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS, 3.10).
pub fn timers(pid: Pid) -> Result<Option<Vec<PosixTimer>>> {
    let Some(text) = read_optional("reading the timers", pid, "timers")? else { return Ok(None) };
    parse_timers(&text).map(Some).ok_or_else(|| Error::unexpected("the timers of a process", lossy(&text)))
}

fn parse_timers(text: &[u8]) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for (key, value) in lines(text).filter_map(super::key_value) {
        if key == b"ID" {
            let (signal, notify) = (0, String::new());
            timers.push(PosixTimer { id: number(value, 10)?, signal, value: 0, notify, clock: 0 });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            b"signal" => {
                let slash = value.iter().position(|byte| *byte == b'/')?;
                timer.signal = number(value.get(..slash)?, 10)?;
                let pointer = value.get(slash + 1..)?;
                // The kernel prints a null pointer without the prefix.
                timer.value = number(pointer.strip_prefix(b"0x").unwrap_or(pointer), 16)?;
            }
            b"notify" => timer.notify = lossy(value),
            b"ClockID" => timer.clock = number(value, 10)?,
            _ => {}
        }
    }
    Some(timers)
}

/// A file with one number; `None` where the process or the kernel has no such file, or it is empty (a zombie).
fn one<T: TryFrom<i128>>(operation: &'static str, pid: Pid, name: &str, base: u32) -> Result<Option<T>> {
    let Some(text) = read_optional(operation, pid, name)? else { return Ok(None) };
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let value = number(text, base);
    value.map(Some).ok_or_else(|| Error::unexpected(format!("the {name} of a process"), lossy(text)))
}

/// -1000 to 1000.
pub fn oom_score_adj(pid: Pid) -> Result<Option<i32>> {
    one("reading the oom_score_adj", pid, "oom_score_adj", 10)
}

/// The personality word. EACCES or EPERM: no ptrace access.
pub fn personality(pid: Pid) -> Result<Option<u32>> {
    one("reading the personality", pid, "personality", 16)
}

/// The mask of mapping types that a core holds. `None` for a zombie.
pub fn coredump_filter(pid: Pid) -> Result<Option<u32>> {
    one("reading the coredump filter", pid, "coredump_filter", 16)
}

/// The nice value that the processes of a session have in common; `None` without CONFIG_SCHED_AUTOGROUP. kernel/sched/autogroup.c, Linux 2.6.38.
pub fn autogroup_nice(pid: Pid) -> Result<Option<i32>> {
    let Some(text) = read_optional("reading the nice value of the session", pid, "autogroup")? else { return Ok(None) };
    // Nothing is shown of a process that belongs to no session's group.
    Ok(words(&text).last().and_then(|word| number(word, 10)))
}

/// Nanoseconds. For another thread than the calling one CAP_SYS_NICE is needed (EPERM).
pub fn timer_slack(pid: Pid) -> Result<Option<u64>> {
    one("reading the timer slack", pid, "timerslack_ns", 10)
}

/// The kernel function that a thread sleeps in; empty when unknown ("0") or hidden.
pub fn wchan(pid: Pid, tid: Tid) -> Result<String> {
    let text = super::whole(&thread_path(pid, tid, "wchan"));
    let text = text.map_err(|error| failure("reading the wait channel", pid, &error))?;
    Ok(if text == b"0" { String::new() } else { lossy(&text) })
}

/// One hierarchy and the path of the process in it, as seen from our cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// 0 for version 2.
    pub hierarchy: u32,
    pub controllers: String,
    pub path: OsString,
}

pub fn cgroups(pid: Pid) -> Result<Vec<Cgroup>> {
    let text = read("reading the control groups", pid, "cgroup")?;
    parse_cgroups(&text).ok_or_else(|| Error::unexpected("the control groups of a process", lossy(&text)))
}

fn parse_cgroups(text: &[u8]) -> Option<Vec<Cgroup>> {
    let parse = |line: &[u8]| {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (hierarchy, controllers) = (number(parts.next()?, 10)?, lossy(parts.next()?));
        Some(Cgroup { hierarchy, controllers, path: OsString::from_vec(parts.next()?.to_vec()) })
    };
    lines(text).map(parse).collect()
}

/// Namespace kinds in the order of [`Namespaces`].
pub const NAMESPACES: [&str; 8] = ["pid", "mnt", "net", "user", "ipc", "uts", "cgroup", "time"];

/// The inode of the namespace of each kind of [`NAMESPACES`] that a process is in; `None` where the kernel has no such kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces(pub [Option<u64>; 8]);

impl Namespaces {
    /// EACCES: no ptrace access. Gone also for a zombie, which is in none.
    pub fn read(pid: Pid) -> Result<Namespaces> {
        let mut inodes = [None; 8];
        for (inode, kind) in inodes.iter_mut().zip(NAMESPACES) {
            match readlink("reading the namespaces", pid, &format!("ns/{kind}")) {
                Ok(target) => *inode = parse_namespace(target.as_bytes()),
                Err(Error::Gone(_)) if kind == "time" || kind == "cgroup" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Namespaces(inodes))
    }

    /// The kinds in which the two differ.
    pub fn differences(&self, other: &Namespaces) -> Vec<&'static str> {
        let pairs = self.0.iter().zip(other.0.iter()).zip(NAMESPACES);
        pairs.filter(|((mine, theirs), _)| mine != theirs).map(|(_, kind)| kind).collect()
    }
}

/// The number in `kind:[number]`.
fn parse_namespace(target: &[u8]) -> Option<u64> {
    let open = target.iter().position(|byte| *byte == b'[')?;
    number(target.get(open + 1..)?.strip_suffix(b"]")?, 10)
}

/// The sixteen resource limits in the kernel's order.
pub fn limits(pid: Pid) -> Result<[Rlimit; 16]> {
    let mut limits = [Rlimit { soft: 0, hard: 0 }; 16];
    for (resource, limit) in (0u32..).zip(limits.iter_mut()) {
        *limit = prlimit(pid, resource).map_err(|errno| Error::of_pid("reading the limits", pid, errno))?;
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Errno;

    fn me() -> Pid {
        Pid(std::process::id() as i32)
    }

    #[test]
    fn the_peak_is_a_line_of_the_status() {
        assert_eq!(parse_peak_memory_kib(b"VmPeak:\t   90 kB\nVmHWM:\t    4096 kB\n"), Some(4096));
        assert_eq!(parse_peak_memory_kib(b"Name:\tx\n"), None);
        assert!(peak_memory_kib(me()).unwrap().is_some());
    }

    #[test]
    fn own_attributes_are_readable() {
        let auxv = Auxv::read(me()).unwrap();
        assert_eq!(auxv.get(6), Some(4096));
        assert!(oom_score_adj(me()).unwrap().is_some());
        assert!(personality(me()).unwrap().is_some());
        assert!(coredump_filter(me()).unwrap().is_some());
        // Another thread than the leader needs a privilege even here.
        let slack = timer_slack(me());
        assert!(matches!(slack, Ok(Some(_)) | Err(Error::Sys { errno: Errno::EPERM, .. })), "{slack:?}");
        assert!(timers(me()).unwrap().is_none_or(|timers| timers.is_empty()));
        assert!(wchan(me(), me().into()).is_ok() && cgroups(me()).is_ok() && syscall(me(), me().into()).is_ok());
        assert!(scheduled(me(), me().into()).is_none_or(|seen| seen.last_run_ns > 0));
        assert_eq!(limits(me()).unwrap()[7], prlimit(me(), 7).unwrap());
        let namespaces = Namespaces::read(me()).unwrap();
        assert!(namespaces.0[0].is_some());
        assert!(namespaces.differences(&namespaces).is_empty());
    }

    #[test]
    fn the_current_call_is_parsed() {
        assert_eq!(parse_syscall(b"running\n"), Some(InSyscall::Running));
        assert_eq!(parse_syscall(b"-1 0x7f 0x80\n"), Some(InSyscall::Outside { sp: 0x7f, pc: 0x80 }));
        let inside = InSyscall::Inside { number: 35, args: [1, 2, 3, 4, 5, 6], sp: 7, pc: 8 };
        assert_eq!(parse_syscall(b"35 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n"), Some(inside));
        assert_eq!(parse_syscall(b"35 0x1"), None);
    }

    #[test]
    fn what_the_scheduler_notes_is_parsed() {
        let text =
            b"sleep (7, #threads: 1)\n----\nse.exec_start        :    894970.012825\nnr_voluntary_switches  :   17\n";
        assert_eq!(parse_scheduled(text), Some(Scheduled { last_run_ns: 894_970_012_825, sleeps: 17 }));
        assert_eq!(parse_scheduled(b"se.exec_start : 1.5\nnr_voluntary_switches : 1\n"), None);
    }

    #[test]
    fn timers_and_cgroups_are_parsed() {
        let text = b"ID: 1\nsignal: 34/0x00007f0000000010\nnotify: thread/tid.77\nClockID: 1\n\
            ID: 2\nsignal: 10/0000000000000000\nnotify: signal/pid.77\nClockID: 0\n";
        let timers = parse_timers(text).unwrap();
        assert_eq!((timers.len(), timers[0].signal, timers[0].value), (2, 34, 0x7f0000000010));
        assert_eq!((timers[1].value, timers[1].notify.as_str(), timers[0].clock), (0, "signal/pid.77", 1));
        let groups = parse_cgroups(b"1:name=systemd:/a:b\n0::/user.slice\n").unwrap();
        assert_eq!((groups[0].path.to_str(), groups[0].controllers.as_str()), (Some("/a:b"), "name=systemd"));
        assert_eq!((groups[1].hierarchy, groups[1].controllers.as_str()), (0, ""));
        assert_eq!(parse_namespace(b"pid:[4026531836]"), Some(4026531836));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Auxv::parse(&bytes);
            let _ = (parse_syscall(&bytes), parse_scheduled(&bytes), parse_timers(&bytes), parse_cgroups(&bytes), parse_namespace(&bytes));
            let _ = super::super::tree::parse_children(&bytes);
            let _ = super::super::unescape(&bytes);
        }
    }
}
