//! The harness of the integration tests: real programs on real terminals, waited for by events and deadlines.

#![allow(dead_code, unused_imports)]

mod beside;
mod checkpoint;
mod facts;
mod holder;
mod host;
mod inspection;
mod objects;
mod other_kernel;
mod pty;
mod reaper;
mod scenes;
mod snapshot;
mod stage;
mod stage_tty;
mod victim;

pub use beside::inside;
pub use checkpoint::{dump, dump_running, page_differences, pages, patiently, report, restore};
pub use facts::differences;
pub use holder::Holder;
pub use host::{Serial, TempDir, provide, ptyagent, require, require_from, serial, skip, times, until, with_timeout};
pub use inspection::inspection;
pub use objects::{EndSession, Prepared, asleep, check, check_and, check_images, refused, same_images};
pub use other_kernel::{copy_images, of_another_kernel};
pub use pty::{Pty, Reading, Size};
pub use reaper::{Subreaper, kill_session, subreaper};
pub use scenes::{LINE, front_without_descriptor, held_outside, master_behind};
pub use snapshot::{
    Quiet, Stat, TaskSnapshot, assert_same_lines, ps_line, ps_line_inside, quiet_snapshot, seen, shown, snapshot, stat,
    tree,
};
pub use stage::{Answer, Arg, Stage, hex, parse, room};
pub use stage_tty::RDWR;
pub use victim::{Counters, Victim, compile};

use std::time::Duration;

/// How long a test waits for something that normally takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);
