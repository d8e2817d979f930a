//! Round trips of kinds of memory and of what the kernel keeps for a process, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::time::Duration;

use support::{
    Holder, PATIENCE, TempDir, asleep, check, check_and, check_images, dump, refused, restore, same_images, serial,
    subreaper, tree, with_timeout,
};

#[test]
fn advice_names_locks_guards_and_seals() {
    check("memory", "advice", 2);
}

#[test]
fn posix_timers() {
    check("attributes", "timers", 2);
}

/// Six processes that have 64 MiB in common do not take six times as much, neither in the images nor in memory.
#[test]
fn memory_in_common_with_the_parent() {
    check_and("memory", "heirs", 2, |images, root| {
        let sizes = fs::read_dir(images).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        let stored = sizes.sum::<u64>() >> 20;
        assert_eq!(tree(root).len(), 6);
        let used = used(root);
        assert!((50..75).contains(&stored), "{stored} MiB of images");
        assert!((50..75).contains(&used), "{used} MiB of memory");
    });
}

/// MiB that a program and those it has forked use, what they share counted once.
fn used(root: i32) -> u64 {
    let share = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    tree(root).into_iter().map(share).sum()
}

/// A Python program with much data and four forked children, each of which has written to some of it. `HEIRS_MIB` is how much data.
#[test]
fn forked_python_programs_share_their_memory_again() {
    support::require("python3");
    const PROGRAM: &str = "\
import os, sys, zlib
mib = int(sys.argv[1])
data = [os.urandom(1 << 20) for _ in range(mib)]
names = {n: str(n) for n in range(10000)}
digest = lambda: [zlib.crc32(block) for block in data]
before = digest()
ready, hold = os.pipe(), os.pipe()
for child in range(4):
    if os.fork() == 0:
        data[child] = bytes(1 << 20)
        mine = digest()
        os.write(ready[1], b'x')
        os.read(hold[0], 1)
        os._exit(0 if digest() == mine and names[4711] == '4711' else 1)
for _ in range(4):
    os.read(ready[0], 1)
print('prepared')
input()
os.write(hold[1], b'xxxx')
print('kept', digest() == before, [os.wait()[1] for _ in range(4)])
";
    let mib: u64 = std::env::var("HEIRS_MIB").map_or(64, |mib| mib.parse().unwrap());
    let _serial = serial();
    with_timeout(Duration::from_secs(120), move || {
        let _subreaper = subreaper();
        let dir = TempDir::new();
        let holder = Holder::spawn(&["python3", "-c", PROGRAM, &mib.to_string()]);
        holder.wait_for_text("prepared");
        asleep(holder.leader());
        let before = used(holder.pid());
        for round in 0..2 {
            let images = dir.join(&format!("images{round}"));
            dump(holder.pid(), &images);
            let files = fs::read_dir(&images).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
            let stored = files.sum::<u64>() >> 20;
            restore(&images);
            let now = used(holder.pid());
            println!("{before} MiB before, {now} MiB restored, {stored} MiB of images");
            assert!(now <= before + before / 8, "{now} MiB of memory, {before} MiB before");
            assert!(stored <= before + before / 8, "{stored} MiB of images");
        }
        holder.type_keys("\r");
        holder.wait_for_text("kept True [0, 0, 0, 0]");
        assert!(holder.wait_for_exit(PATIENCE).success());
    });
}

#[test]
fn seccomp_filters() {
    check("attributes", "filters", 2);
}

#[test]
fn seccomp_filters_of_another_user() {
    check("attributes", "filters_of_another_user", 2);
}

#[test]
fn seccomp_filters_of_threads() {
    check_images("attributes", "threads_with_filters", 3, same_images);
}

#[test]
fn seccomp_filters_of_threads_in_step() {
    check("attributes", "threads_in_step", 2);
}

#[test]
fn seccomp_under_which_a_dump_would_be_harmful_is_refused() {
    refused("attributes", "harmful_filter", "kills it for system call 36");
    refused("attributes", "strict", "it runs in strict seccomp mode");
    refused("attributes", "strict_thread", "runs in strict seccomp mode");
}
