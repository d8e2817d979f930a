//! Restores where numbers are taken: terminal indexes and process ids, in namespaces of the session's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use ptyagent::sys::process::pidfd_open;
use ptyagent::sys::tty;
use serde_json::Value;
use support::{
    Holder, PATIENCE, Pty, TempDir, dump, dump_running, ptyagent, report, serial, tree, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

fn restore(dir: &Path, options: &[&str]) -> Output {
    ptyagent(&[&["restore", "--detach", "--json", "-D", dir.to_str().unwrap()], options].concat())
}

/// What a restore that has to succeed reports.
fn restored(dir: &Path, options: &[&str]) -> Value {
    let output = restore(dir, options);
    assert!(output.status.success(), "restore {options:?}: {}", report(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a restore that has to fail says.
fn complaint(dir: &Path, options: &[&str]) -> String {
    let output = restore(dir, options);
    assert_eq!(output.status.code(), Some(1), "restore {options:?}: {}", report(&output));
    String::from_utf8(output.stderr).unwrap()
}

/// A command in the namespaces of a process.
fn inside(pid: i64, argv: &[&str]) -> Output {
    support::inside(pid as i32, argv)
}

/// Dumps and kills the tree of `root` in the namespaces of a process.
fn dump_inside(pid: i64, root: i32, dir: &Path) {
    let exe = env!("CARGO_BIN_EXE_ptyagent");
    let output = inside(pid, &[exe, "dump", "--inject", &root.to_string(), "-D", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", report(&output));
}

fn index_of(pid: i32, fd: i32) -> u32 {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    link.to_str().unwrap().strip_prefix("/dev/pts/").unwrap().parse().unwrap()
}

/// Types a command and waits for the line that it prints.
fn answer(holder: &Holder, command: &str, text: &str) {
    let seen = holder.output().len();
    holder.type_keys(format!("{command}\n"));
    holder.wait_for_new_output(seen, text);
}

/// A master of this test's with this index, taken from between the free ones.
fn take_index(wanted: u32) -> std::os::fd::OwnedFd {
    let mut held = Vec::new();
    loop {
        let master = open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let index = tty::get_index(master.as_fd()).unwrap();
        assert!(index <= wanted, "index {wanted} is not free");
        if index == wanted {
            return master;
        }
        held.push(master);
    }
}

#[test]
fn a_taken_index_is_named_and_can_be_avoided() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = Holder::bash();
        let (dir, index) = (TempDir::new(), index_of(holder.leader(), 0));
        answer(&holder, "x=13", "$ ");
        dump(holder.pid(), &dir.join("images"));
        let master = take_index(index);
        let said = complaint(&dir.join("images"), &[]);
        let us = format!("terminal /dev/pts/{index} is in use by process {} (", std::process::id());
        assert!(said.contains(&us) && said.contains("which has its master open"), "{said}");
        assert!(said.contains("--pts-index any") && said.trim().lines().count() == 1, "{said}");
        let report = restored(&dir.join("images"), &["--pts-index", "any"]);
        let moved = report["moved"].as_array().unwrap();
        assert_eq!(moved.len(), 1, "{report}");
        assert_eq!(moved[0][0], index);
        let now = moved[0][1].as_u64().unwrap();
        answer(&holder, "echo \"x is $x on $(tty)\"", &format!("x is 13 on /dev/pts/{now}\r\n"));
        drop(master);
    });
}

#[test]
fn a_private_devpts_has_every_index_free() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = Holder::bash();
        let (dir, index) = (TempDir::new(), index_of(holder.leader(), 0));
        dump(holder.pid(), &dir.join("images"));
        let master = take_index(index);
        let report = restored(&dir.join("images"), &["--pts-index", "private"]);
        assert_eq!(report["moved"].as_array().unwrap().len(), 0, "{report}");
        answer(&holder, "echo \"on $(tty)\"", &format!("on /dev/pts/{index}\r\n"));
        answer(&holder, "ls /dev/pts | tr '\\n' ,", &format!("{index},ptmx,"));
        // A job of the restored shell has its terminal, and is stopped by it.
        answer(&holder, "sleep 100 & jobs -l; echo \"dev $(ps -o tty= $$)\"", &format!("dev pts/{index}"));
        drop(master);
        // From outside it is refused by name, from inside it is saved.
        let output =
            ptyagent(&["dump", "--inject", &holder.pid().to_string(), "-D", dir.join("out").to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{}", support::report(&output));
        assert!(said.contains("another namespace than ptyagent (mnt)") && said.contains("nsenter -t"), "{said}");
        dump_inside(holder.pid().into(), holder.pid(), &dir.join("in"));
        let pid = holder.pid();
        until("free number", PATIENCE, || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()), String::new);
        restored(&dir.join("in"), &["--pts-index", "private"]);
        answer(&holder, "jobs -l; echo \"on $(tty)\"", &format!("on /dev/pts/{index}\r\n"));
    });
}

#[test]
fn process_ids_that_are_taken_are_free_in_a_namespace() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = Holder::bash();
        let dir = TempDir::new();
        answer(&holder, "sleep 1000 & x=14; PS1='>'' '", "> ");
        holder.wait_for_process("sleep");
        let before = numbers(tree(holder.pid()).iter().map(|pid| i64::from(*pid)));
        // The original runs on, with all its numbers.
        dump_running(holder.pid(), &dir.join("images"));
        let said = complaint(&dir.join("images"), &["--pts-index", "private"]);
        assert!(said.contains(&format!("process id {} is in use", holder.pid())) && said.contains("--pidns"), "{said}");
        let seen = holder.output().len();
        let file = dir.join("pid");
        let options = ["--pidns", "--pts-index", "private", "--pidfile", file.to_str().unwrap()];
        // Both append to one file, and what is written after the dump would be more than there was.
        let report = restored(&dir.join("images"), &options);
        let outer = report["host_root"].as_i64().unwrap();
        assert_eq!(report["root"], holder.pid(), "{report}");
        assert_ne!(outer, i64::from(holder.pid()));
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{outer}\n"));
        let shown = inside(outer, &["cat", &format!("/proc/{}/comm", holder.leader())]);
        assert_eq!(String::from_utf8_lossy(&shown.stdout), "bash\n", "{}", support::report(&shown));
        let list = inside(outer, &["sh", "-c", "for p in /proc/[0-9]*; do echo ${p#/proc/} $(cat $p/comm); done"]);
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.lines().any(|line| line == "1 ptyagent-init"), "{list}");
        assert_eq!(numbers_inside(outer, &before), before);
        // The two read from one FIFO; the original is stopped so that the restored one gets it.
        let original = Pid::from_raw(holder.pid());
        nix::sys::signal::kill(original, nix::sys::signal::Signal::SIGSTOP).unwrap();
        holder.type_keys("echo \"x is $x in $$, jobs $(jobs -p)\"; kill %1; wait; echo gone\n");
        holder.wait_for_new_output(seen, &format!("x is 14 in {}, jobs ", holder.leader()));
        holder.wait_for_new_output(seen, "gone\r\n");
        nested(&dir, outer, holder.pid());
        nix::sys::signal::kill(original, nix::sys::signal::Signal::SIGCONT).unwrap();
    });
}

/// A dump from outside is refused, one from inside is restored into a further namespace.
fn nested(dir: &TempDir, outer: i64, root: i32) {
    let init = parent(outer);
    let output = ptyagent(&["dump", "--inject", &outer.to_string(), "-D", dir.join("out").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", report(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another namespace than ptyagent (pid, mnt)") && said.contains("nsenter -t"), "{said}");
    dump_inside(outer, root, &dir.join("in"));
    // With the session the namespace ends.
    let handle = pidfd_open(ptyagent::ids::Pid(init));
    let ended = handle.is_err() || ptyagent::sys::process::pidfd_poll(handle.unwrap().as_fd(), 20_000).unwrap();
    assert!(ended, "init {init} still runs");
    let report = restored(&dir.join("in"), &["--pidns", "--pts-index", "private"]);
    let again = report["host_root"].as_i64().unwrap();
    let shown = inside(again, &["cat", &format!("/proc/{root}/comm")]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "holder\n");
    nix::sys::signal::kill(Pid::from_raw(parent(again)), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn parent(pid: i64) -> i32 {
    support::stat(pid as i32).unwrap().ppid
}

/// Number, parent in the tree, group and session of processes.
fn numbers(pids: impl Iterator<Item = i64>) -> Vec<[i32; 3]> {
    let of = |pid: i64| support::stat(pid as i32).map(|stat| [pid as i32, stat.pgrp, stat.session]);
    pids.filter_map(of).collect()
}

/// The same as the namespace of a process has them.
fn numbers_inside(outer: i64, wanted: &[[i32; 3]]) -> Vec<[i32; 3]> {
    let stat = |pid: i32| {
        let output = inside(outer, &["cat", &format!("/proc/{pid}/stat")]);
        let text = String::from_utf8(output.stdout).unwrap();
        let fields: Vec<i32> = text
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .skip(2)
            .take(2)
            .map(|word| word.parse().unwrap())
            .collect();
        [pid, fields[0], fields[1]]
    };
    wanted.iter().map(|numbers| stat(numbers[0])).collect()
}

/// A restore in the foreground, whose terminal is the one that the test drives.
#[test]
fn a_session_in_a_namespace_continues_in_this_terminal() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let original = Pty::bash();
        original.type_keys("x=15\r");
        original.wait_for_output("prompt", PATIENCE, |bytes| {
            (bytes.windows(2).filter(|two| *two == b"$ ").count() >= 2).then_some(())
        });
        dump_running(original.pid(), &dir.join("images"));
        let exe = env!("CARGO_BIN_EXE_ptyagent");
        let mut terminal = Pty::spawn(&[
            exe,
            "restore",
            "--pidns",
            "-D",
            dir.join("images").to_str().unwrap(),
            "--pts-index",
            "private",
        ]);
        terminal.wait_for_text("$ ");
        terminal.type_keys("echo \"x is $x in $$ on $(tty)\"\r");
        terminal.wait_for_text(&format!("x is 15 in {} on {}", original.pid(), original.name()));
        // A job that outlives the shell outlives the command too, and the namespace lives as long.
        terminal.type_keys("(trap '' HUP; sleep 1000 & echo job $!) ; \r");
        terminal.wait_for_text("job ");
        terminal.type_keys("exit 7\r");
        assert_eq!(terminal.wait_for_exit(PATIENCE).code(), Some(7));
        let job = until("job", PATIENCE, sleeping_orphan, String::new);
        nix::sys::signal::kill(Pid::from_raw(parent(job)), nix::sys::signal::Signal::SIGKILL).unwrap();
    });
}

/// A `sleep 1000` whose parent is an init of ours.
fn sleeping_orphan() -> Option<i64> {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i64>().ok());
    let is_it = |pid: &i64| {
        support::stat(*pid as i32).is_some_and(|stat| {
            stat.comm == "sleep" && support::stat(stat.ppid).is_some_and(|parent| parent.comm == "ptyagent-init")
        })
    };
    pids.filter(|pid| *pid > 1).find(is_it)
}

/// Kills the worker and the command in the middle of a restore: nothing is left, or the whole session runs.
#[test]
fn a_killed_restore_leaves_nothing_in_its_namespace() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = Holder::bash();
        let dir = TempDir::new();
        dump_running(holder.pid(), &dir.join("images"));
        let (mut gone, mut complete) = (0, 0);
        for round in 0..24_u64 {
            let mut child = command(&dir.join("images")).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(3 * round));
            // The command's children: init and, if it is there yet, the worker.
            let worker = support::tree(child.id() as i32).into_iter().find(|pid| is_worker(*pid, child.id() as i32));
            let victim = worker.filter(|_| round % 2 == 0).unwrap_or(child.id() as i32);
            nix::sys::signal::kill(Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL).unwrap();
            let settled = || match inits().first() {
                None => Some(false),
                Some(init) if whole(*init) => Some(true),
                Some(_) => None,
            };
            let runs = until("end of the namespace", PATIENCE, settled, || format!("round {round}: {:?}", inits()));
            *if runs { &mut complete } else { &mut gone } += 1;
            child.wait().unwrap();
            let end = || {
                let inits = inits();
                for init in &inits {
                    let _ = nix::sys::signal::kill(Pid::from_raw(*init), nix::sys::signal::Signal::SIGKILL);
                }
                inits.is_empty().then_some(())
            };
            until("end of init", PATIENCE, end, || format!("{:?}", inits()));
        }
        println!("{gone} were gone, {complete} complete");
        assert!(gone > 0, "no round was early enough");
    });
}

fn is_worker(pid: i32, command: i32) -> bool {
    support::stat(pid).is_some_and(|stat| stat.ppid == command && stat.comm != "ptyagent-init")
}

/// Whether the holder and its bash run free in the namespace of an init.
fn whole(init: i32) -> bool {
    let free = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        text.lines().any(|line| line == "TracerPid:\t0")
    };
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace(init);
    let tree: Vec<i32> = tree(std::process::id() as i32).into_iter().filter(|pid| namespace(*pid) == ours).collect();
    let has =
        |comm: &str| tree.iter().any(|pid| support::stat(*pid).is_some_and(|stat| stat.comm == comm) && free(*pid));
    has("holder") && has("bash")
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptyagent"));
    command.args(["restore", "--pidns", "--pts-index", "private", "-D"]).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The inits that this test program's commands have made. One that changes its parent may escape a look, but not two.
fn inits() -> Vec<i32> {
    let found = look_for_inits();
    std::thread::sleep(Duration::from_millis(if found.is_empty() { 20 } else { 0 }));
    if found.is_empty() { look_for_inits() } else { found }
}

fn look_for_inits() -> Vec<i32> {
    let is_init = |pid: &i32| support::stat(*pid).is_some_and(|stat| stat.comm == "ptyagent-init" && stat.state != 'Z');
    tree(std::process::id() as i32).into_iter().filter(is_init).collect()
}
