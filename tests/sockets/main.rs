//! Sockets of every kind, made and used by actors, taken through dumps and restores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inet;
mod options;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod unix;

use std::time::Duration;

use scene::Sockets;
use support::{serial, with_timeout};

const LIMIT: Duration = Duration::from_secs(90);

fn run(test: impl FnOnce(&mut Sockets) + Send + 'static) {
    // Waiting for other tests is not the test's time.
    let _serial = serial();
    with_timeout(LIMIT, move || test(&mut Sockets::new()));
}
