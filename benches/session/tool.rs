//! The programs that are measured, and how each is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::report;

#[derive(Debug, Clone)]
pub enum Tool {
    Ptyagent,
    Criu(PathBuf),
}

/// What a dump leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Kill,
    LeaveRunning,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall: Duration,
    pub frozen: Option<Duration>,
    /// Physical memory of the controller.
    pub peak_kib: Option<u64>,
}

impl Tool {
    pub fn name(&self) -> &'static str {
        match self {
            Tool::Ptyagent => "ptyagent",
            Tool::Criu(_) => "criu",
        }
    }

    pub fn dump(&self, root: i32, dir: &Path, after: After) -> Sample {
        let (root, text) = (root.to_string(), dir.to_str().unwrap());
        let leave_running = (after == After::LeaveRunning).then_some("--leave-running");
        match self {
            Tool::Ptyagent => {
                let mut args = vec!["dump", "--inject", &root, "-D", text, "--json"];
                args.extend(leave_running);
                ptyagent(&args)
            }
            Tool::Criu(path) => {
                fs::create_dir(dir).unwrap();
                let mut args = vec!["dump", "-t", &root, "-D", text, "-o", "dump.log", "-v0"];
                args.extend(leave_running);
                let wall = criu(path, &args, &dir.join("dump.log"));
                Sample { wall, frozen: Some(frozen(dir)), peak_kib: None }
            }
        }
    }

    pub fn restore(&self, dir: &Path) -> Sample {
        let text = dir.to_str().unwrap();
        match self {
            Tool::Ptyagent => ptyagent(&["restore", "--detach", "-D", text, "--json"]),
            Tool::Criu(path) => {
                let args = ["restore", "-d", "-D", text, "-o", "restore.log", "-v0"];
                let wall = criu(path, &args, &dir.join("restore.log"));
                Sample { wall, frozen: None, peak_kib: None }
            }
        }
    }
}

fn ptyagent(args: &[&str]) -> Sample {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptyagent"));
    command.args(args).stdin(Stdio::null());
    let start = Instant::now();
    let output = command.output().unwrap();
    let wall = start.elapsed();
    assert!(output.status.success(), "ptyagent {args:?}: {}", report(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| said.get(name).and_then(Value::as_u64);
    Sample { wall, frozen: number("frozen_us").map(Duration::from_micros), peak_kib: number("controller_peak_kib") }
}

/// Its output is not waited for: what it restores might hold it open.
fn criu(path: &Path, args: &[&str], log: &Path) -> Duration {
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status().unwrap();
    let wall = start.elapsed();
    assert!(status.success(), "criu {args:?}: {status}\n{}", fs::read_to_string(log).unwrap_or_default());
    wall
}

/// The time that CRIU's own statistics give, from the first stop to the end of the last.
fn frozen(dir: &Path) -> Duration {
    let (_, images) = ptyagent::image::read::read_file(&dir.join("stats-dump")).unwrap();
    let dump = images.stats.and_then(|stats| stats.dump).unwrap();
    Duration::from_micros(u64::from(dump.freezing_time) + u64::from(dump.frozen_time))
}
