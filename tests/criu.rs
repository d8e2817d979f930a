//! CRIU and we restore each other's images. The tests that need a CRIU run in the kernel matrix, or here with `CRIU=path` and `--ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ptyagent::image::{Images, Kind, codec};
use ptyagent::sys::tty;
use support::{
    Holder, PATIENCE, RDWR, Stage, TempDir, dump, ps_line, ptyagent, report, restore, room, serial, tree, until,
    with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);
const MASTER: i32 = 10;
const SLAVE: i32 = 20;

/// What makes the images, or what brings the session back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Ptyagent,
    Criu,
}

impl Tool {
    /// Dumps the tree into a new directory and ends it.
    fn dump(self, root: i32, dir: &Path) {
        if self == Tool::Ptyagent {
            return dump(root, dir);
        }
        fs::create_dir(dir).unwrap();
        criu("dump", dir, &["-t", &root.to_string()]);
        let gone = || (!Path::new(&format!("/proc/{root}")).exists()).then_some(());
        until("free number of the dumped root", PATIENCE, gone, String::new);
    }

    fn restore(self, dir: &Path) {
        match self {
            Tool::Ptyagent => restore(dir),
            Tool::Criu => criu("restore", dir, &["-d"]),
        }
    }
}

fn criu(action: &str, dir: &Path, args: &[&str]) {
    let path = std::env::var_os("CRIU").expect("CRIU says where a criu is");
    let log = dir.join(format!("{action}.log"));
    let mut command = Command::new(path);
    command.arg(action).args(args).arg("-D").arg(dir).args(["-v4", "-o"]).arg(&log).stdin(Stdio::null());
    // What it restores might hold a pipe of ours open.
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "criu {action}: {status}\n{}", said());
}

/// A bash with a variable, a directory, a job and a line that is not finished.
fn a_bash(dumper: Tool, restorer: Tool) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::bash();
        holder.type_keys("cd /usr; answer=42; sleep 1000 &\r");
        holder.wait_for_process("sleep");
        holder.type_keys("echo $answer $PWD");
        holder.wait_for_text("$ echo $answer $PWD");
        let pids = tree(holder.pid());
        let before = numbers(&pids);
        dumper.dump(holder.pid(), &dir.join("images"));
        restorer.restore(&dir.join("images"));
        assert_eq!(numbers(&pids), before);
        holder.type_keys("$((6*7))\r");
        holder.wait_for_text("\n42 /usr42\n");
        holder.type_keys("clear; jobs; kill %1; wait %1; echo ended $?\r");
        holder.wait_for_screen("job", PATIENCE, |screen| {
            let text = screen.contents();
            text.contains("[1]+  Running") && text.contains("ended 143")
        });
        holder.type_keys("exit 3\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(3));
    });
}

/// Process, parent, group, session and name of each; CRIU gives the terminal to a session's leader alone.
fn numbers(pids: &[i32]) -> Vec<String> {
    let of = |pid: &i32| {
        let stat = support::stat(*pid).unwrap_or_else(|| panic!("{}", ps_line(pids)));
        format!("{pid} {} {} {} {}", stat.ppid, stat.pgrp, stat.session, stat.comm)
    };
    pids.iter().map(of).collect()
}

/// A terminal with both its sides in one process, its settings changed.
fn a_pair(dumper: Tool, restorer: Tool) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let mut stage = Stage::new();
        let index = stage.pair("root", MASTER, SLAVE);
        stage.set_termios("root", SLAVE, |flags, rest| {
            flags[3] &= !libc::ECHO;
            rest[1 + libc::VINTR] = 7;
        });
        let size: Vec<u8> = [30u16, 90, 3, 4].iter().flat_map(|part| part.to_ne_bytes()).collect();
        stage.ioctl_in("root", MASTER, tty::TIOCSWINSZ, &size);
        let before = facts(&mut stage);
        let dir = stage.dir.join("images");
        dumper.dump(stage.pid("root"), &dir);
        restorer.restore(&dir);
        assert_eq!(facts(&mut stage), before);
        // Nothing was unread, nothing is echoed, and both ways are open.
        assert_eq!(stage.write("root", MASTER, b"typed\n"), 6);
        assert_eq!(stage.tell("root", &format!("drain {SLAVE} 1")), "6:74797065640a");
        assert_eq!(stage.write("root", SLAVE, b"shown\n"), 6);
        assert_eq!(stage.tell("root", &format!("drain {MASTER} 1")), "7:73686f776e0d0a");
        stage.open("root", SLAVE + 1, &format!("/dev/pts/{index}"), RDWR);
    });
}

/// Settings without the speeds, size and descriptors.
fn facts(stage: &mut Stage) -> String {
    let get = |stage: &mut Stage, request: u64, size: usize| {
        stage.must("root", libc::SYS_ioctl, &[SLAVE.into(), request.into(), room(size)]).rooms
    };
    let settings = get(stage, tty::TCGETS2, 44)[0][..36].to_vec();
    format!("{settings:?} {:?} {:?}", get(stage, tty::TIOCGWINSZ, 8), stage.ttys("root"))
}

#[test]
#[ignore = "needs a CRIU"]
fn criu_restores_our_bash() {
    a_bash(Tool::Ptyagent, Tool::Criu);
}

#[test]
#[ignore = "needs a CRIU"]
fn we_restore_the_bash_of_criu() {
    a_bash(Tool::Criu, Tool::Ptyagent);
}

#[test]
#[ignore = "needs a CRIU"]
fn criu_restores_our_pair() {
    a_pair(Tool::Ptyagent, Tool::Criu);
}

#[test]
#[ignore = "needs a CRIU"]
fn we_restore_the_pair_of_criu() {
    a_pair(Tool::Criu, Tool::Ptyagent);
}

/// Takes out of a directory what CRIU would not have written.
fn forget_ours(dir: &Path, change: impl FnOnce(&mut Images)) {
    let mut images = Images::read(dir).unwrap();
    images.inventory.ptyagent_format = None;
    change(&mut images);
    fs::remove_file(dir.join(Kind::Own.name())).unwrap();
    for (kind, bytes) in codec::encode(&images).unwrap() {
        fs::write(dir.join(kind.name()), bytes).unwrap();
    }
    fs::write(dir.join(Kind::Inventory.name()), codec::encode_inventory(&images.inventory).unwrap()).unwrap();
}

#[test]
fn a_bash_comes_back_without_our_own_image() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::bash();
        holder.type_keys("answer=42; sleep 1000 &\r");
        holder.wait_for_process("sleep");
        let pids = tree(holder.pid());
        dump(holder.pid(), &dir.join("images"));
        forget_ours(&dir.join("images"), |_| ());
        restore(&dir.join("images"));
        assert_eq!(tree(holder.pid()), pids);
        holder.type_keys("clear; jobs; kill %1; wait %1; echo $answer $?\r");
        holder.wait_for_text("42 143");
        holder.type_keys("exit 3\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(3));
    });
}

#[test]
fn what_images_of_criu_say_too_little_of_is_refused() {
    let _serial = serial();
    let mut stage = Stage::new();
    stage.pair("root", MASTER, SLAVE);
    let dir = stage.dir.join("images");
    dump(stage.pid("root"), &dir);
    let refused = |expected: &str| {
        let output = ptyagent(&["restore", "--detach", "-D", dir.to_str().unwrap()]);
        let said = report(&output);
        assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    };
    forget_ours(&dir, |images| {
        images.tty_data.push(ptyagent::image::pb::TtyDataEntry { tty_id: images.tty_info[0].id, data: vec![1; 5] });
    });
    refused("it is CRIU's, and 5 unread bytes of its terminal");
    fs::remove_file(dir.join(Kind::TtyData.name())).unwrap();
    fs::write(dir.join("netns-3.img"), "").unwrap();
    refused("nothing is known of its netns-3.img");
    fs::remove_file(dir.join("netns-3.img")).unwrap();
    restore(&dir);
    stage.write("root", MASTER, b"x");
}
