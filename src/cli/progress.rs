//! A line on the terminal that says what goes on, when that takes over a second.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const PATIENCE: Duration = Duration::from_secs(1);
const FRAME: Duration = Duration::from_millis(100);

/// A spinner with a thread of its own: not for a restore, whose first task is a fork of this process.
pub struct Spinner {
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Spinner {
    /// Shows `message` on standard error after a second, if that is a terminal, until it is dropped.
    pub fn start(message: String) -> Spinner {
        if !std::io::stderr().is_terminal() {
            return Spinner { running: None };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("progress".into()).spawn(move || {
            if stopped.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} ({elapsed})")).with_message(message);
            while stopped.recv_timeout(FRAME) == Err(RecvTimeoutError::Timeout) {
                bar.tick();
            }
            bar.finish_and_clear();
        });
        Spinner { running: thread.ok().map(|thread| (stop, thread)) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // A spinner that died has shown less than it should, no more.
            let _ = thread.join();
        }
    }
}

/// The steps of a restore, drawn between them and without a thread.
pub struct Steps {
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Steps {
    /// Counts the second from now.
    pub fn start() -> Steps {
        Steps { since: Instant::now(), bar: None }
    }

    /// Says which step comes now.
    pub fn show(&mut self, done: usize, of: usize, step: impl Display) {
        if self.bar.is_none() && (self.since.elapsed() < PATIENCE || !std::io::stderr().is_terminal()) {
            return;
        }
        let bar =
            self.bar.get_or_insert_with(|| ProgressBar::no_length().with_style(style("{bar:30} {pos}/{len} {msg}")));
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        bar.set_message(step.to_string());
        bar.tick();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
