//! Round trips of kinds of memory and of what the kernel keeps for a process, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::check;

#[test]
fn advice_names_locks_guards_and_seals() {
    check("memory", "advice", 2);
}

#[test]
fn posix_timers() {
    check("attributes", "timers", 2);
}
