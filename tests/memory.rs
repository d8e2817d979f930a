//! Round trips of kinds of memory and of what the kernel keeps for a process, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use support::{check, check_and, refused, tree};

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
        let share = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
        };
        let members = tree(root);
        assert_eq!(members.len(), 6);
        let used: u64 = members.into_iter().map(share).sum();
        assert!((50..75).contains(&stored), "{stored} MiB of images");
        assert!((50..75).contains(&used), "{used} MiB of memory");
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
fn seccomp_under_which_a_dump_would_be_harmful_is_refused() {
    refused("attributes", "harmful_filter", "kills it for system call 36");
    refused("attributes", "strict", "strict seccomp mode");
}
