//! States that somebody outside the tree has a part in: an index that is taken, a master that is held. And terminals of other kinds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use ptyagent::sys::tty;

use crate::beside::{self, Tried};
use crate::cases::{Case, Checked};
use crate::support::{
    LINE, PATIENCE, RDWR, Stage, dump, dump_running, front_without_descriptor, held_outside, ptyagent, report, restore,
    room, until,
};

const M: i32 = 10;
const S: i32 = 20;

pub fn cases() -> Vec<Case> {
    let elsewhere = "consoles.rs in the kernel matrix; here where the machine has such a terminal";
    vec![
        Case::special("pairs", "an index that somebody else has by now", taken).beside(with_taken_index),
        Case::special("pairs", "another index (--pts-index any)", any).beside(with_taken_index),
        Case::special("pairs", "a devpts instance of its own (--pts-index private)", private).beside(with_taken_index),
        Case::special("queues", "a master outside, the session left running", left_running).beside(left_running_beside),
        Case::special("queues", "a master outside, the session restored without it", without_master)
            .beside(|criu| restored_beside(criu, held_outside(), "root")),
        Case::special("queues", "a master outside, the terminal open in the background only", |checked| {
            typed_ahead(checked, &[])
        })
        .beside(|criu| restored_beside(criu, front_without_descriptor(), "job")),
        Case::special("queues", "a master outside, the terminal open nowhere", |checked| {
            typed_ahead(checked, &["root"])
        })
        .beside(|criu| {
            let (mut stage, master) = front_without_descriptor();
            stage.close("root", S);
            restored_beside(criu, (stage, master), "job")
        }),
        Case::special("queues", "a master outside, nobody in the foreground: refused by name", nobody_in_front).beside(
            |criu| {
                let (mut stage, master) = front_without_descriptor();
                job_ends(&mut stage);
                restored_beside(criu, (stage, master), "root")
            },
        ),
        Case::elsewhere("consoles", "a virtual console: settings, KD and keyboard modes, meta, LEDs, input", elsewhere),
        Case::elsewhere("consoles", "a serial line: settings, speed, modem lines, input", elsewhere),
        Case::elsewhere("consoles", "a shell with a job on /dev/tty41, on /dev/ttyS1", elsewhere),
        Case::elsewhere("consoles", "a console that is switched by signals, /dev/tty0: refused by name", elsewhere),
    ]
}

fn with_input() -> (Stage, u32) {
    let mut stage = Stage::new();
    let index = stage.pair("root", M, S);
    stage.type_in("root", M, b"line\rpart");
    stage.events("root", S, libc::POLLIN);
    (stage, index)
}

/// A tree whose terminal has input is dumped, and its index taken meanwhile.
fn dumped_and_taken() -> (Stage, u32, OwnedFd) {
    let (stage, index) = with_input();
    dump(stage.pid("root"), &stage.dir.join("images"));
    let master = take(index);
    (stage, index, master)
}

fn take(index: u32) -> OwnedFd {
    let mut held = Vec::new();
    loop {
        let master = open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let got = tty::get_index(master.as_fd()).unwrap();
        assert!(got <= index, "index {index} is not free");
        if got == index {
            return master;
        }
        held.push(master);
    }
}

fn restored(stage: &Stage, policy: &str) -> serde_json::Value {
    let images = stage.dir.join("images");
    let output = ptyagent(&["restore", "--detach", "--json", "--pts-index", policy, "-D", images.to_str().unwrap()]);
    assert!(output.status.success(), "restore: {}", report(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn reads_the_line(stage: &mut Stage) -> String {
    let first = stage.drain("root", S);
    stage.type_in("root", M, b"ed\r");
    stage.events("root", S, libc::POLLIN);
    [first, stage.drain("root", S)].concat().join(",")
}

fn index_of(stage: &mut Stage) -> u32 {
    stage.must("root", libc::SYS_ioctl, &[M.into(), tty::TIOCGPTN.into(), room(4)]).number()
}

fn taken(checked: &mut Checked) -> String {
    let (mut stage, index, master) = dumped_and_taken();
    let images = stage.dir.join("images");
    let output = ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let us = format!("terminal /dev/pts/{index} is in use by process {} (", std::process::id());
    checked.expect("status", &output.status.code(), &Some(1));
    checked.expect("the holder is named", &said.contains(&us), &true);
    drop(master);
    restore(&images);
    checked.expect("reads", &reads_the_line(&mut stage), &"5:line\\n,7:parted\\n".into());
    "the restore names who holds it, and works once it is free".into()
}

fn any(checked: &mut Checked) -> String {
    let (mut stage, index, _master) = dumped_and_taken();
    let told = restored(&stage, "any");
    let now = index_of(&mut stage);
    checked.expect("moved", &told["moved"], &serde_json::json!([[index, now]]));
    checked.expect("another index", &(now != index), &true);
    checked.expect("reads", &reads_the_line(&mut stage), &"5:line\\n,7:parted\\n".into());
    "kept but for the index, and the restore tells which it is".into()
}

fn private(checked: &mut Checked) -> String {
    let (mut stage, index, _master) = dumped_and_taken();
    let told = restored(&stage, "private");
    checked.expect("moved", &told["moved"], &serde_json::json!([]));
    checked.expect("index", &index_of(&mut stage), &index);
    checked.expect("reads", &reads_the_line(&mut stage), &"5:line\\n,7:parted\\n".into());
    "kept while the index is taken outside".into()
}

/// What the master gives until this text has come, behind which nothing is.
fn shown(master: &mut File, end: &str) -> String {
    let mut text = String::new();
    until(
        "output",
        PATIENCE,
        || {
            let mut bytes = [0; 4096];
            let count = master.read(&mut bytes).unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            text.ends_with(end).then_some(())
        },
        String::new,
    );
    text
}

fn left_running(checked: &mut Checked) -> String {
    let (mut stage, mut master) = held_outside();
    let before = stage.observe();
    dump_running(stage.pid("root"), &stage.dir.join("images"));
    checked.compare("seen after a dump that left it running", &before, &stage.observe());
    checked.expect("output", &shown(&mut master, "part"), &"shown\r\ntyped\r\npart".into());
    let first = stage.drain("root", S);
    master.write_all(b"ed\r").unwrap();
    checked.expect("echo", &shown(&mut master, "ed\r\n"), &"ed\r\n".into());
    checked.expect("reads", &[first, stage.drain("root", S)].concat().join(","), &"6:typed\\n,7:parted\\n".into());
    "kept: the output stays with the holder of the master, the input with the session".into()
}

fn without_master(checked: &mut Checked) -> String {
    let (mut stage, mut master) = held_outside();
    let images = stage.dir.join("images");
    dump(stage.pid("root"), &images);
    checked.expect("output", &shown(&mut master, "part"), &"shown\r\ntyped\r\npart".into());
    drop(master);
    restore(&images);
    checked.expect("reads", &stage.drain("root", S).join(","), &"6:typed\\n".into());
    "kept: the output is left to the holder, the input is there behind the terminal that takes its place".into()
}

/// Nothing is lost where those that have the terminal open may not read it: dumped with these closed as well.
fn typed_ahead(checked: &mut Checked, closed: &[&str]) -> String {
    for leave_running in [true, false] {
        let (mut stage, master) = front_without_descriptor();
        closed.iter().for_each(|name| stage.close(name, S));
        // A restored root has another parent: the one that holds the new master.
        let seen = |stage: &mut Stage| {
            let facts = stage.observe();
            facts.into_iter().filter(|fact| !fact.starts_with("root Stat")).collect::<Vec<String>>()
        };
        let (before, images) = (seen(&mut stage), stage.dir.join("images"));
        if leave_running {
            dump_running(stage.pid("root"), &images);
        } else {
            dump(stage.pid("root"), &images);
        }
        let _outside = Some(master).filter(|_| leave_running);
        if !leave_running {
            restore(&images);
        }
        let what = if leave_running { "seen after the dump" } else { "seen after the restore" };
        checked.compare(what, &before, &seen(&mut stage));
        stage.open("job", S, "/dev/tty", RDWR);
        checked.expect("reads", &stage.drain("job", S).join(","), &"6:typed\\n".into());
        stage.set_termios("job", S, |flags, _| flags[3] &= !libc::ICANON);
        checked.expect("the rest", &stage.drain("job", S).join(","), &"4:part".into());
    }
    "kept: one in the foreground opens /dev/tty for as long as it takes to read".into()
}

fn nobody_in_front(checked: &mut Checked) -> String {
    let (mut stage, _master) = front_without_descriptor();
    job_ends(&mut stage);
    let (root, before, images) = (stage.pid("root"), stage.observe(), stage.dir.join("images"));
    let output = ptyagent(&["dump", "--inject", &root.to_string(), "-D", images.to_str().unwrap(), "--leave-running"]);
    checked.expect("status", &output.status.code(), &Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    checked.expect("named", &said.contains("that no process in its foreground can read"), &true);
    checked.compare("seen after the refusal", &before, &stage.observe());
    let stops = 1u64 << (libc::SIGTTOU - 1);
    let blocked = [libc::SIG_BLOCK.into(), stops.to_ne_bytes().as_slice().into(), 0.into(), 8.into()];
    stage.must("root", libc::SYS_rt_sigprocmask, &blocked);
    stage.ioctl_in("root", S, tty::TIOCSPGRP, &root.to_ne_bytes());
    checked.expect("reads", &stage.drain("root", S).join(","), &"6:typed\\n".into());
    "refused by name, and the session runs on".into()
}

fn job_ends(stage: &mut Stage) {
    let job = stage.pid("job");
    stage.post("job", "exit 0");
    stage.must("root", libc::SYS_wait4, &[job.into(), 0.into(), 0.into(), 0.into()]);
    stage.forget("job");
}

fn with_taken_index(criu: &Path) -> Tried {
    let (mut stage, index) = with_input();
    beside::dump(criu, &stage, &[])?;
    let _master = take(index);
    beside::restore(criu, &stage)?;
    Ok(format!("restored, and reads {}", reads_the_line(&mut stage)))
}

/// With the option that is meant for terminals of others, and left running.
fn left_running_beside(criu: &Path) -> Tried {
    let (mut stage, _master) = held_outside();
    let before = stage.observe();
    beside::dump(criu, &stage, &["--shell-job", "--leave-running"])?;
    let seen = beside::differing(&before, &stage.observe());
    Ok(beside::verdict(&seen, if stage.drain("root", S) == [LINE] { "" } else { "typed" }))
}

/// With that option, killed and restored on a terminal of its own.
fn restored_beside(criu: &Path, (mut stage, master): (Stage, File), reader: &str) -> Tried {
    let before = stage.observe();
    beside::dump(criu, &stage, &["--shell-job"])?;
    drop(master);
    let _pty = beside::restore_here(criu, &stage)?;
    let seen = beside::differing(&before, &stage.observe());
    let opened = [libc::AT_FDCWD.into(), "/dev/tty".into(), RDWR.into(), 0.into()];
    let opened = stage.sys(reader, libc::SYS_openat, &opened).result;
    let is_read = opened >= 0 && stage.drain(reader, opened as i32) == [LINE];
    Ok(beside::verdict(&seen, if is_read { "" } else { "typed" }))
}
