//! The test binaries that run in the guests, and what each boot is asked to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::boots::{Bench, Plan};
use crate::job::Task;
use crate::kernels::Kernel;
use crate::report::{Cell, Outcome};

/// A column of the table: some tests of one binary.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    pub name: &'static str,
    /// The file below tests/; "" for `ptyagent check`.
    pub binary: &'static str,
    /// Tests whose names have one of these in them, with libtest's options.
    pub arguments: &'static [&'static str],
    /// A shell command that comes first.
    pub before: &'static str,
    /// In software emulation, with room.
    pub seconds: u64,
    /// Runs on the oldest and the newest kernel in a plain `cargo test`.
    pub fast: bool,
    /// Only on kernels of releases whose CRIU runs on them.
    pub with_criu: bool,
}

const SUITE: Suite =
    Suite { name: "", binary: "", arguments: &[], before: "", seconds: 600, fast: false, with_criu: false };

/// What a careful administrator forbids; not every kernel knows each of them.
const STRICT: &str = "
    for setting in dev/tty/legacy_tiocsti=0 kernel/yama/ptrace_scope=2 vm/memfd_noexec=2 user/max_user_namespaces=0 \\
        kernel/unprivileged_userns_clone=0 kernel/kptr_restrict=2 kernel/perf_event_paranoid=3 kernel/io_uring_disabled=2 \\
        kernel/unprivileged_bpf_disabled=1 vm/unprivileged_userfaultfd=0 vm/overcommit_memory=2 vm/overcommit_ratio=100; do
        echo ${setting#*=} >/proc/sys/${setting%=*}
    done; head /proc/sys/kernel/yama/ptrace_scope /proc/sys/vm/memfd_noexec";

/// The machine's second and third serial port are wired to each other.
const LINES: &str = "export CONSOLES_LINES=ttyS1,ttyS2";

const CRIU: &str = "export CRIU=/criu/criu; $CRIU check";

/// In the order of the table.
pub const SUITES: [Suite; 17] = [
    Suite { name: "check", seconds: 60, fast: true, ..SUITE },
    Suite { name: "terminals", binary: "terminals", arguments: &["--nocapture"], seconds: 1200, ..SUITE },
    Suite { name: "queues", binary: "queue", ..SUITE },
    Suite { name: "round trips", binary: "roundtrip", fast: true, ..SUITE },
    Suite { name: "objects", binary: "objects", ..SUITE },
    Suite { name: "kinds", binary: "kinds", ..SUITE },
    Suite { name: "threads", binary: "threads", ..SUITE },
    Suite { name: "memory", binary: "memory", ..SUITE },
    Suite { name: "segments", binary: "segments", ..SUITE },
    Suite { name: "kin", binary: "kin", ..SUITE },
    Suite { name: "sockets", binary: "sockets", ..SUITE },
    Suite { name: "vDSO", binary: "vdso", ..SUITE },
    Suite { name: "consoles", binary: "consoles", before: LINES, ..SUITE },
    Suite { name: "calls missing", binary: "lacks", ..SUITE },
    Suite { name: "CRIU", binary: "criu", arguments: &["--include-ignored"], before: CRIU, with_criu: true, ..SUITE },
    // The last, for they leave the settings so.
    Suite { name: "strict settings", binary: "roundtrip", before: STRICT, ..SUITE },
    Suite { name: "no attaching", binary: "lacks", arguments: &["no_attaching", "--ignored"], ..SUITE },
];

/// Builds test binaries in the way that this one was built, and yields where they are, by name.
pub fn build(names: &[&str]) -> BTreeMap<String, PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    for name in names {
        cargo.args(["--test", name]);
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let artifact = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let program = value["executable"].as_str()?;
        Some((value["target"]["name"].as_str()?.to_owned(), PathBuf::from(program)))
    };
    lines.lines().filter_map(artifact).collect()
}

/// Runs suites on a kernel, all in one boot; those that it cannot have are left out.
pub fn run(bench: &Bench, kernel: &Kernel, suites: &[Suite], binaries: &BTreeMap<String, PathBuf>) -> Vec<Cell> {
    let suites: Vec<&Suite> = suites.iter().filter(|suite| suite.runs_on(kernel)).collect();
    let tasks = suites.iter().map(|suite| suite.task(binaries, bench.engine.patience())).collect();
    let (outcomes, _) = bench.run(kernel, Plan { name: kernel.name.clone(), tasks, ..Plan::default() });
    let cell = |(suite, outcome): (&Suite, Outcome)| Cell {
        kernel: kernel.name.clone(),
        column: suite.name.to_owned(),
        outcome,
    };
    suites.into_iter().zip(outcomes).map(cell).collect()
}

impl Suite {
    pub fn runs_on(&self, kernel: &Kernel) -> bool {
        !self.with_criu || kernel.criu.is_some()
    }

    fn task(&self, binaries: &BTreeMap<String, PathBuf>, patience: u32) -> Task {
        let env = vec![("PTYAGENT_PATIENCE".to_owned(), patience.to_string())];
        let mut argv = match self.binary {
            "" => vec![env!("CARGO_BIN_EXE_ptyagent").to_owned(), "check".to_owned()],
            name => {
                let mut argv = vec![text(&binaries[name])];
                argv.extend(self.arguments.iter().map(|argument| (*argument).to_owned()));
                argv
            }
        };
        if !self.before.is_empty() {
            let first = ["bash", "-c", &format!("{}; \"$@\"", self.before), "bash"].map(str::to_owned);
            argv = [first.to_vec(), argv].concat();
        }
        Task { name: self.name.replace(' ', "-"), argv, env, seconds: self.seconds, above_pid: None }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
