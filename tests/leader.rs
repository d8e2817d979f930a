//! Processes whose main thread has ended while others run on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{check_images, refused, same_images};

#[test]
fn other_threads_go_on_without_the_main_one() {
    check_images("leader", "ended", 3, same_images);
}

#[test]
fn the_filters_of_a_main_thread_that_has_ended_are_refused() {
    refused("leader", "filtered", "its main thread has ended while others run on, under a seccomp filter");
}
