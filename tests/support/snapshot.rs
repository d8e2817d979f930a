//! What /proc shows of a task, to compare before and after.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// One process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSnapshot {
    pub maps: String,
    pub stat: Stat,
    /// By descriptor number: where it leads, and its fdinfo.
    pub fds: BTreeMap<i32, (String, String)>,
    /// By thread: the signal sets of its status file, and its seccomp and tracer lines.
    pub threads: BTreeMap<i32, Vec<String>>,
}

/// Fields of /proc/PID/stat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    pub state: char,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    pub tty_nr: i32,
    pub tpgid: i32,
}

impl Stat {
    /// Without the chance of whether it runs at this instant, sleeps or waits for a page.
    pub fn at_rest(&self) -> Stat {
        let state = if matches!(self.state, 'R' | 'D') { 'S' } else { self.state };
        Stat { state, ..self.clone() }
    }
}

/// What /proc/PID/stat says; none where there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(") ")?;
    let (_, comm) = head.split_once(" (")?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Stat {
        comm: comm.to_owned(),
        state,
        ppid: number()?,
        pgrp: number()?,
        session: number()?,
        tty_nr: number()?,
        tpgid: number()?,
    })
}

/// The thread whose directory shows a process: another one where its main thread has ended before it.
pub fn seen(pid: i32) -> i32 {
    let ended = |tid: i32| stat(tid).is_none_or(|stat| stat.state == 'Z');
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let numbers = || threads().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    if ended(pid) { numbers().find(|tid| !ended(*tid)).unwrap_or(pid) } else { pid }
}

/// A snapshot of a living process; panics where it is gone. The process is not stopped, so a busy one may change meanwhile.
pub fn snapshot(pid: i32) -> TaskSnapshot {
    let shown = seen(pid);
    let read = |name: &str| fs::read_to_string(format!("/proc/{shown}/{name}")).unwrap();
    let numbers = |name: &str| {
        let entries = fs::read_dir(format!("/proc/{shown}/{name}")).unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    let fds = numbers("fd").into_iter().filter_map(|fd| {
        let link = fs::read_link(format!("/proc/{shown}/fd/{fd}")).ok()?;
        let info = fs::read_to_string(format!("/proc/{shown}/fdinfo/{fd}")).ok()?;
        Some((fd, (link.to_string_lossy().into_owned(), info)))
    });
    let threads = numbers("task").into_iter().filter_map(|tid| {
        // A thread may have ended since, and those of this name come and go.
        if fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).ok()? == "brief\n" {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let wanted = |line: &&str| {
            // SigQ counts the signals of all of the user's processes.
            !line.starts_with("SigQ")
                && ["Sig", "Shd", "Seccomp", "TracerPid", "NoNewPrivs"].iter().any(|name| line.starts_with(name))
        };
        Some((tid, status.lines().filter(wanted).map(str::to_owned).collect()))
    });
    TaskSnapshot { maps: read("maps"), stat: stat(pid).unwrap(), fds: fds.collect(), threads: threads.collect() }
}

/// A snapshot without the chance of whether the process ran.
pub fn quiet_snapshot(pid: i32) -> TaskSnapshot {
    let mut task = snapshot(pid);
    task.stat.state = 'S';
    task
}

impl TaskSnapshot {
    /// The lines that one of the two has and the other has not, each with its sign; empty where they are equal.
    pub fn difference(&self, after: &TaskSnapshot) -> String {
        let (before, after) = (self.lines(), after.lines());
        let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("-{line}\n"));
        let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+{line}\n"));
        gone.chain(new).collect()
    }

    fn lines(&self) -> Vec<String> {
        let fds = self.fds.iter().map(|(fd, (link, info))| format!("fd {fd} {link} {}", info.replace('\n', " ")));
        let threads = self.threads.iter().map(|(tid, lines)| format!("thread {tid} {}", lines.join(" ")));
        let maps = self.maps.lines().map(str::to_owned);
        maps.chain(fds).chain(threads).chain([format!("{:?}", self.stat.at_rest())]).collect()
    }
}

/// The PIDs of a tree, the root first.
pub fn tree(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        let path = format!("/proc/{0}/task/{0}/children", all[at]);
        // None where it has ended since.
        let children = fs::read_to_string(path).unwrap_or_default();
        all.extend(children.split_whitespace().map(|word| word.parse::<i32>().unwrap()));
        at += 1;
    }
    all
}

/// One line of ps(1) for each process: its place in sessions, groups and terminals, and its state as [`Stat::at_rest`] has it.
pub fn ps_line(pids: &[i32]) -> String {
    super::require_from("ps", "procps");
    let argv = ps(pids);
    at_rest(&Command::new(&argv[0]).args(&argv[1..]).output().unwrap().stdout)
}

/// The same as the namespaces of a process show it; the PIDs are those of the namespace.
pub fn ps_line_inside(outer: i32, pids: &[i32]) -> String {
    let argv = ps(pids);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    at_rest(&super::inside(outer, &argv).stdout)
}

fn at_rest(ps: &[u8]) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (state, rest) = words[6].split_at(1);
        let state = if matches!(state, "R" | "D") { "S" } else { state };
        format!("{} {state}{rest} {}\n", words[..6].join(" "), words[7..].join(" "))
    };
    std::str::from_utf8(ps).unwrap().lines().map(line).collect()
}

fn ps(pids: &[i32]) -> [String; 5] {
    let list = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    ["ps", "-o", "pid=,ppid=,pgid=,sid=,tpgid=,tty=,stat=,comm=", "-p", &list].map(str::to_owned)
}

/// Everything of one task that /proc shows and that a restore has to bring back.
pub fn shown(pid: i32) -> String {
    let task = snapshot(pid);
    let mut text = format!("{:?}\n{}\n", task.stat.at_rest(), task.maps);
    for (fd, (link, info)) in &task.fds {
        // Inode numbers of pipes and mount ids are the kernel's to choose.
        let link = link.split(":[").next().unwrap();
        let info: String = info.lines().filter(|line| line.starts_with("pos") || line.starts_with("flags")).collect();
        writeln!(text, "{fd} {link} {info}").unwrap();
    }
    for (tid, lines) in &task.threads {
        writeln!(text, "{tid} {lines:?}").unwrap();
    }
    text
}

/// Panics with the lines that only one of two texts has.
pub fn assert_same_lines(before: &str, after: &str, what: &str) {
    let only = |one: &str, other: &str, sign: char| -> String {
        one.lines()
            .filter(|line| !other.lines().any(|same| same == *line))
            .map(|line| format!("{sign}{line}\n"))
            .collect()
    };
    assert!(before == after, "{what}, before and after:\n{}{}", only(before, after, '-'), only(after, before, '+'));
}

/// What there is to see of processes between two turns of their work.
pub struct Quiet(BTreeMap<i32, TaskSnapshot>);

impl Quiet {
    pub fn of(pids: &[i32]) -> Quiet {
        let quiet = |pid: i32| {
            let mut task = quiet_snapshot(pid);
            // What the terminal showed is appended to a file, whose position moves on.
            for (_, info) in task.fds.values_mut() {
                *info = info.lines().filter(|line| !line.starts_with("pos:")).collect();
            }
            task
        };
        Quiet(pids.iter().map(|pid| (*pid, quiet(*pid))).collect())
    }

    fn difference(&self) -> String {
        let now = Quiet::of(&self.0.keys().copied().collect::<Vec<_>>());
        self.0.iter().map(|(pid, task)| task.difference(&now.0[pid])).collect()
    }

    /// Waits until nothing of ours is left in any of the processes.
    pub fn assert_untouched(&self) {
        let untouched = || self.difference().is_empty().then_some(());
        super::until("untouched state", super::PATIENCE, untouched, || self.difference());
    }
}
