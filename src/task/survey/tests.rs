use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::refusals::{explain_denial, mapping_kind};
use super::*;
use crate::files::kind::FileKind;
use crate::ids::Sid;
use crate::procfs::attributes::InSyscall;
use crate::sys::process::KcmpType;
use crate::task::sharing::groups;

/// A shell that leads a session and runs the lines it is sent; it and its children end with the value.
struct Shell {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn start() -> Shell {
        let mut command = Command::new("setsid");
        command.arg("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Shell { child, output };
        shell.run("true");
        shell
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    /// Runs a line and waits until it is done; yields the last word of the answer.
    fn run(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}\necho done $!").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim().rsplit(' ').next().unwrap_or_default().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid().0), nix::sys::signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn refusal(pid: Pid) -> String {
    let error = survey(pid, SurveyMode::Dump).unwrap_err();
    assert_eq!(error.exit_status(), 3, "{error}");
    error.to_string()
}

#[test]
fn a_session_is_seen_whole_and_changes_are_noticed() {
    let mut shell = Shell::start();
    let sleeper = Pid(shell.run("sleep 1000 <&- &").parse().unwrap());
    let before = loop {
        // Past its own start, so that its mappings are final.
        if matches!(attributes::syscall(sleeper, sleeper.into()), Ok(InSyscall::Inside { number, .. }) if number == libc::SYS_clock_nanosleep as u64)
        {
            break survey(shell.pid(), SurveyMode::Dump).unwrap();
        }
    };
    let pids: Vec<Pid> = before.tasks.iter().map(|task| task.pid).collect();
    assert_eq!(pids, [shell.pid(), sleeper]);
    assert_eq!(before.tasks[1].stat.session, Sid(shell.pid().0));
    let alive = before.tasks[0].alive().unwrap();
    assert!(matches!(alive.descriptors[0].kind, FileKind::Pipe { .. }));
    assert!(alive.maps.iter().all(|mapping| mapping.flags.is_some()));
    let again = recheck(&before).unwrap();
    assert_eq!(again.changes, []);
    // Whether pages are there may have changed, which is not told again.
    let unread = |mapping: &Mapping| Mapping { populated: None, ..mapping.clone() };
    let expected: Vec<Mapping> = alive.maps.iter().map(unread).collect();
    assert_eq!(again.fresh.tasks[0].alive().unwrap().maps, expected);

    shell.run("exec 7</dev/null");
    shell.run(&format!("kill -9 {sleeper}; wait"));
    let newcomer = Pid(shell.run("sleep 1000 &").parse().unwrap());
    let changes = recheck(&before).unwrap().changes;
    assert!(changes.contains(&Change::Descriptors(shell.pid())), "{changes:?}");
    assert!(
        changes.contains(&Change::Vanished(sleeper)) && changes.contains(&Change::Appeared(newcomer)),
        "{changes:?}"
    );
}

#[test]
fn a_zombie_child_is_recorded() {
    let mut parent = Command::new("setsid");
    parent.args(["sh", "-c", "(exit 3) & exec sleep 1000"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut parent = parent.stderr(Stdio::null()).spawn().unwrap();
    let root = Pid(parent.id() as i32);
    let exit_code = loop {
        let Ok(seen) = survey(root, SurveyMode::Inspect) else { continue };
        if let Some(Life::Zombie { exit_code }) = seen.tasks.get(1).map(|task| task.life.clone()) {
            break exit_code;
        }
    };
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(exit_code, 3 << 8);
}

#[test]
fn a_root_that_cannot_be_is_named() {
    let me = Pid(std::process::id() as i32);
    assert!(refusal(me).contains("run it from another terminal"));
    let tid = nix::unistd::gettid().as_raw();
    let error = survey(Pid(tid), SurveyMode::Dump).unwrap_err();
    assert!(tid == me.0 || error.to_string().contains(&format!("a thread of process {me}")), "{error}");
    let error = survey(Pid(i32::MAX), SurveyMode::Dump).unwrap_err();
    assert_eq!((error.exit_status(), error.to_string().starts_with("there is no process")), (1, true));
    assert!(refusal(Pid(1)).contains("init"));
    if Stat::read(Pid(2)).is_ok_and(|stat| stat.is_kernel_thread()) {
        assert!(refusal(Pid(2)).contains("kernel thread"));
    }
}

#[test]
fn a_zombie_root_is_refused() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = Pid(child.id() as i32);
    crate::sys::process::waitid(pid, libc::WEXITED | libc::WNOWAIT).unwrap();
    assert!(refusal(pid).contains("a zombie"));
    child.wait().unwrap();
}

#[test]
fn a_member_without_its_leader_is_refused_with_the_leader() {
    let mut shell = Shell::start();
    let child = Pid(shell.run("sleep 1000 &").parse().unwrap());
    assert!(refusal(child).contains(&format!("ptyagent dump --inject {}", shell.pid())));
    assert!(survey(child, SurveyMode::Inspect).is_ok());
}

#[test]
fn a_traced_process_is_refused_with_its_tracer() {
    let mut shell = Shell::start();
    shell.run("true");
    let pid = nix::unistd::Pid::from_raw(shell.pid().0);
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).unwrap();
    assert!(refusal(shell.pid()).contains("already traced by process"));
}

#[test]
fn a_reparented_member_is_refused() {
    let mut shell = Shell::start();
    shell.run("(sleep 1000 >/dev/null & ); true");
    assert!(refusal(shell.pid()).contains("not below its leader"));
}

#[test]
fn shared_objects_are_found() {
    let me = Pid(std::process::id() as i32);
    let shell = Shell::start();
    let (me, shell) = (Tid::from(me), Tid::from(shell.pid()));
    assert_eq!(groups(&[me, shell], KcmpType::Vm).unwrap(), [(me, me), (shell, shell)].into());
}

#[test]
fn mappings_are_told_apart() {
    let kind = |name: &str, mode: &str, flags: &str| {
        let inode = if name.starts_with('[') || name.is_empty() { 0 } else { 7 };
        let text = format!("1000-2000 {mode} 00000000 00:01 {inode}    {name}\nVmFlags: {flags}\n");
        mapping_kind(&maps::parse(text.as_bytes()).unwrap()[0]).map(|(kind, _)| kind)
    };
    for fine in ["", "[heap]", "[stack]", "[anon:a]", "/usr/bin/a", "/dev/zero (deleted)", "/dev/shm/a"] {
        assert_eq!(kind(fine, "rw-s", "rd wr"), None, "{fine}");
    }
    assert_eq!(kind("[vvar]", "r--p", "rd io pf sl"), None);
    assert_eq!(kind("/dev/zero", "rw-p", "rd"), None);
    assert_eq!(kind("", "rw-p", "rd wr sl"), None);
    let keyed = maps::parse(b"1000-2000 rw-p 00000000 00:00 0 \nProtectionKey: 2\nVmFlags: rd wr\n").unwrap();
    assert!(mapping_kind(&keyed[0]).is_some_and(|(kind, _)| kind.contains("pkeys")));
    for (name, flags, part) in [
        ("/anon_hugepage (deleted)", "rd ht", "huge"),
        ("anon_inode:[io_uring]", "rd", "io_uring"),
        ("/[aio] (deleted)", "rd", "asynchronous"),
        ("/secretmem (deleted)", "rd", "secret memory"),
        ("/sys/devices/x", "rd io", "a device"),
        ("/dev/null", "rd", "a device"),
        ("[uprobes]", "rd", "uprobes"),
        ("", "rd um", "userfaultfd"),
        ("socket:[7]", "rd", "an object"),
    ] {
        assert!(kind(name, "rw-s", flags).is_some_and(|kind| kind.contains(part)), "{name}");
    }
}

#[test]
fn a_denial_says_who_may_look() {
    let me = Pid(std::process::id() as i32);
    let denied = |errno| explain_denial(me, Error::sys("reading the maps", crate::error::Subject::Pid(me), errno));
    let error = denied(crate::error::Errno::EACCES);
    assert_eq!((error.exit_status(), error.to_string().contains("run this as root")), (1, true), "{error}");
    assert!(matches!(denied(crate::error::Errno::EIO), Error::Sys { .. }));
}
