//! Round trips of kinds of descriptors that are neither plain files nor terminals, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::check;

#[test]
fn eventfds() {
    check("kinds", "eventfds", 2);
}

#[test]
fn timerfds() {
    check("kinds", "timerfds", 2);
}

#[test]
fn signalfds() {
    check("kinds", "signalfds", 2);
}

#[test]
fn epolls() {
    check("kinds", "epolls", 2);
}

#[test]
fn pidfds() {
    check("kinds", "pidfds", 2);
}
