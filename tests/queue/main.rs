//! Queues are captured and put back, into the same pty and into a fresh one; a control pty that was left alone must read the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod extproc;
mod fixed;
mod full;
mod halfway;
mod held;
mod pty;
mod random;
