//! What prctl(2) and its relatives keep for a thread and for the memory of a process, checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{check_images, refused, same_images};

fn check(name: &'static str) {
    check_images("modes", name, 3, same_images);
}

#[test]
fn each_thread_keeps_its_modes() {
    check("threads");
}

#[test]
fn the_session_keeps_its_nice_value() {
    check("group");
}

#[test]
fn later_mappings_are_locked() {
    check("locked_later");
    check("locked_now_and_later");
    check("locked_on_fault");
}

#[test]
fn barriers_huge_pages_and_merging() {
    check("memory");
}

#[test]
fn nothing_becomes_executable() {
    check("no_new_code");
}

#[test]
fn calls_that_come_back_as_signals_are_refused() {
    refused("modes", "dispatched", "PR_SET_SYSCALL_USER_DISPATCH");
}
