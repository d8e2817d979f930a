//! Processes whose main thread has ended while others run on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ptyagent::ids::Pid;
use ptyagent::procfs::{fdinfo, maps};
use support::{Prepared, check_images, refused, same_images};

#[test]
fn other_threads_go_on_without_the_main_one() {
    check_images("leader", "ended", 3, same_images);
}

#[test]
fn the_filters_of_a_main_thread_that_has_ended_are_refused() {
    refused("leader", "filtered", "its main thread has ended while others run on, under a seccomp filter");
}

/// Whoever looks for others that have something open sees through a living thread.
#[test]
fn what_others_have_open_is_seen() {
    let victim = Prepared::start("leader", "filtered");
    let pid = Pid(victim.pid);
    assert!(maps::read(pid).unwrap().is_empty() && !maps::of_any(pid).is_empty());
    let result = victim.dir.join("result");
    assert!(fdinfo::links(pid).iter().any(|link| std::fs::read_link(link).is_ok_and(|target| target == result)));
    victim.verify();
}
