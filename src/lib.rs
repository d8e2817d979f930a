//! ptyagent checkpoints and restores Linux terminal sessions exactly, from the inside.
//!
//! The pipeline, top down: `dump` and `restore` tell the two stories; `plan` turns images into an ordered list of steps; the kinds
//! (`tty`, `files`, `task`, `mem`) know one kernel object each, dump and restore side by side; `inject` runs batches inside
//! a tracee; `trace` owns tracee states; `sys` is one function per system call.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::exit)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod error;
pub mod ids;

#[path = "../parasite/src/wire.rs"]
pub mod wire;

pub mod attach;
pub mod capture;
/// What runs inside a tracee and, where the descriptors are at hand, in this process as well.
#[path = "../parasite/src"]
pub mod parasite_side {
    pub mod queue;
    pub mod sys;
}

pub mod check;
pub mod demo;
pub mod dump;
pub mod files;
pub mod holder;
pub mod image;
pub mod inject;
pub mod inspect;
pub mod mem;
pub mod plan;
pub mod procfs;
pub mod relay;
pub mod restore;
pub mod show;
pub mod sys;
pub mod task;
pub mod trace;
pub mod tty;
