//! What the host asks of a guest, and what the guest answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its job.
pub const JOB: &str = "/job.json";
/// Where tasks leave what the host is to get: `NAME.log` of each task, [`VERDICTS`], and what else they put there.
pub const OUT: &str = "/out";
/// The list of [`Verdict`]s so far.
pub const VERDICTS: &str = "/out/verdicts.json";

/// All that one boot does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// Loaded first, in this order; those that fail are named on the console.
    pub modules: Vec<PathBuf>,
    /// Files below /proc/sys, and what to write there.
    pub settings: Vec<(String, String)>,
    /// Everything with this beginning goes to the host beside [`OUT`].
    pub keep: Option<PathBuf>,
    pub tasks: Vec<Task>,
}

/// One program to run to its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Task {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// After so many seconds everything that runs is killed.
    pub seconds: u64,
    /// The first process id that it makes is above this one, where that matters.
    pub above_pid: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub name: String,
    pub ending: Ending,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Exited(i32),
    Killed(i32),
    TimedOut,
    /// The program could not be started.
    Missing,
}
