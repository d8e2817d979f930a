//! Round trips of kinds of descriptors that are neither plain files nor terminals, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{check, refused};

#[test]
fn eventfds() {
    let fd = ptyagent::sys::event::eventfd(0, 0).unwrap();
    let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    if std::fs::read_to_string(info).unwrap().contains("eventfd-semaphore") {
        check("kinds", "eventfds", 2);
    } else {
        refused("kinds", "eventfds", "an eventfd of which this kernel does not tell whether it is a semaphore");
    }
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
