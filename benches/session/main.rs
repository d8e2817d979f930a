//! How long a session is frozen, dumped and restored: `cargo bench --bench session -- [--json] [--rounds N] [--only TEXT]`.
//!
//! Three subjects: a bash with a background job under the holder of its pty, a tmux server with 20 panes of bash, and a process with 1 GiB of touched memory. Each round starts
//! a fresh one, dumps it while it runs on, dumps and kills it, and restores it. With `CRIU=path` each round does the same with CRIU, and
//! the ratios are printed. Times are of whole processes, from their start to their end, except those of the freeze, which both programs
//! report themselves: ptyagent's from the first stop until the session ran on or could have; CRIU's from the first stop until the session
//! ran on or was dead. A round is a sample; the least of all and the median are printed, since other work of the machine only ever adds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod subject;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod tmux;
mod tool;

use std::path::{Path, PathBuf};
use std::time::Duration;

use subject::{Kind, Subject};
use support::with_timeout;
use table::Results;
use tool::{After, Tool};

const LIMIT: Duration = Duration::from_secs(1800);

struct Options {
    json: bool,
    rounds: Option<usize>,
    /// Only subjects with this text in their name.
    only: String,
}

fn options() -> Options {
    let mut options = Options { json: false, rounds: None, only: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => options.json = true,
            "--rounds" => options.rounds = words.next().and_then(|number| number.parse().ok()),
            "--only" => options.only = words.next().unwrap_or_default(),
            // cargo bench says so.
            "--bench" => {}
            other => panic!("unknown option {other}; there are --json, --rounds N and --only TEXT"),
        }
    }
    options
}

/// Where images go: its name in the table, and the directory.
struct Place {
    name: &'static str,
    dir: PathBuf,
}

fn main() {
    let options = options();
    let mut tools = vec![Tool::Ptyagent];
    tools.extend(std::env::var_os("CRIU").map(|path| Tool::Criu(path.into())));
    let memory = Place { name: "tmpfs", dir: "/dev/shm".into() };
    let disk = Place { name: "temp dir", dir: std::env::temp_dir() };
    let plan =
        [(Kind::Session, &memory, 20), (Kind::Session, &disk, 20), (Kind::Tmux, &memory, 20), (Kind::Big, &memory, 5)];
    let mut results = Results::default();
    for (kind, place, usual) in plan.into_iter().filter(|(kind, ..)| kind.name().contains(&options.only)) {
        for _ in 0..options.rounds.unwrap_or(usual) {
            for tool in &tools {
                results = round(kind, place, tool.clone(), results);
            }
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results.to_json()).unwrap());
    } else {
        print!("{results}");
        if tools.len() == 1 {
            println!("\nNothing to compare with: set CRIU to the path of a working criu.");
        }
    }
}

/// Runs in a thread of its own: the children of the main thread are reaped by the harness.
fn round(kind: Kind, place: &Place, tool: Tool, mut results: Results) -> Results {
    let (name, dir) = (place.name, place.dir.clone());
    with_timeout(LIMIT, move || {
        let dir = tempfile::Builder::new().prefix("ptyagent-bench-").tempdir_in(dir).unwrap();
        let subject = Subject::start(kind);
        let images = |name: &str| dir.path().join(name);
        let mut add = |step, sample| results.add((kind.name(), name, step, tool.name()), sample);
        add("dump, leave running", tool.dump(subject.pid(), &images("running"), After::LeaveRunning));
        remove(&images("running"));
        add("dump, kill", tool.dump(subject.pid(), &images("killed"), After::Kill));
        subject.await_end();
        add("restore", tool.restore(&images("killed")));
        subject.check();
        drop(subject);
        results
    })
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
}
