//! The kernel matrix: Debian's kernels, booted in qemu, with the test suites and real sessions on each.
//!
//! `cargo test --test matrix -- --help` lists the options. The same program is the first process of each guest ([`guest`]). Everything is
//! below target/tmp/matrix: kernels, consoles of the boots, logs of the suites.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod apt;
mod archive;
mod boots;
mod criu;
mod crossing;
mod guest;
mod job;
mod kernels;
mod machine;
mod missing;
mod report;
mod suites;
#[path = "../support/mod.rs"]
mod support;
mod system;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use archive::Entry;
use boots::{Bench, Plan, side_by_side};
use clap::Parser;
use crossing::Crossing;
use job::{Job, Task};
use kernels::Kernel;
use machine::{Boot, Engine};
use nix::fcntl::{Flock, FlockArg};
use report::{Outcome, Report};
use suites::{SUITES, Suite};
use system::System;

/// Boots Debian's kernels and runs the suites on each. Without options: a few of them on the oldest and on the newest kernel.
#[derive(Debug, Parser)]
#[command(name = "matrix", disable_version_flag = true)]
struct Options {
    /// Every suite on every kernel
    #[arg(long)]
    all: bool,
    /// Only this kernel: a series, as 6.1, or a path, as IMAGE or IMAGE,FOLDER-WITH-MODULES; may be repeated
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Only suites with this in their names, "crossings" among them; may be repeated
    #[arg(long, value_name = "TEXT")]
    suite: Vec<String>,
    /// Instead of suites, run this shell command in each guest
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Added to the kernels' command lines, as in vdso=0
    #[arg(long, value_name = "OPTIONS", default_value = "", hide_default_value = true)]
    boot: String,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables here as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// How many machines run at the same time
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    jobs: usize,
    /// Where all of it is: kernels, consoles, logs
    #[arg(long, value_name = "FOLDER", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/matrix"), hide_default_value = true)]
    dir: PathBuf,
    /// Runs only if one of these is in the name "matrix", as every test does
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
}

impl Options {
    /// Whether the filters of a whole `cargo test` mean other tests.
    fn is_meant(&self) -> bool {
        let named = |text: &String| if self.exact { text == "matrix" } else { "matrix".contains(text.as_str()) };
        !self.list
            && !self.ignored
            && !self.skip.iter().any(named)
            && (self.filter.is_empty() || self.filter.iter().any(named))
    }

    /// Whether somebody has asked for more than the fast slice.
    fn is_explicit(&self) -> bool {
        self.all || !self.kernel.is_empty() || !self.suite.is_empty() || self.run.is_some()
    }

    fn suites(&self) -> Vec<Suite> {
        let wanted = |suite: &&Suite| {
            if self.run.is_some() {
                return false;
            }
            if self.suite.is_empty() {
                return self.is_explicit() || suite.fast;
            }
            self.suite.iter().any(|text| suite.name.contains(text.as_str()))
        };
        SUITES.iter().filter(wanted).copied().collect()
    }

    /// Whether sessions go from kernel to kernel.
    fn crosses(&self) -> bool {
        self.run.is_none() && self.suite.is_empty() || self.suite.iter().any(|text| "crossings".contains(text.as_str()))
    }

    fn kernels(&self, cache: &Path) -> Result<Vec<Kernel>, String> {
        let paths: Vec<&String> =
            self.kernel.iter().filter(|text| Path::new(text.split(',').next().unwrap()).exists()).collect();
        let mut found = Vec::new();
        if self.kernel.is_empty() || paths.len() < self.kernel.len() {
            found = kernels::of_debian(cache)?;
        }
        if !self.is_explicit() {
            found = vec![found.remove(0), found.pop().unwrap()];
        }
        if !self.kernel.is_empty() {
            if let Some(name) = self
                .kernel
                .iter()
                .find(|name| !paths.contains(name) && !found.iter().any(|kernel| kernel.name == **name))
            {
                let known: Vec<&str> = found.iter().map(|kernel| kernel.name.as_str()).collect();
                return Err(format!("{name} is no file and none of Debian's kernels: {}", known.join(", ")));
            }
            found.retain(|kernel| self.kernel.contains(&kernel.name));
        }
        for path in paths {
            found.push(kernels::by_path(path, cache)?);
        }
        Ok(found)
    }
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
        return ExitCode::FAILURE;
    }
    let options = Options::parse();
    if !options.is_meant() {
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(report) => {
            print!("{}", report.markdown());
            for cell in report.failures() {
                if let Outcome::Failed { reason, log } = &cell.outcome {
                    println!("{}, {}: {reason}; see {log}", cell.kernel, cell.column);
                }
            }
            if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(missing) if options.is_explicit() => {
            eprintln!("the kernel matrix cannot run: {missing}");
            ExitCode::FAILURE
        }
        Err(missing) => {
            support::skip(&format!("the kernel matrix: {missing}"));
            ExitCode::SUCCESS
        }
    }
}

/// What one boot does.
enum Work<'a> {
    Suites(&'a Kernel),
    Restores(&'a Kernel),
}

/// An error says what this machine lacks.
fn run(options: &Options) -> Result<Report, String> {
    let dir = options.dir.clone();
    fs::create_dir_all(&dir).unwrap();
    // Two runs would write over each other's machines.
    let lock = fs::File::options().create(true).append(true).open(dir.join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("setpriv", "util-linux"),
        ("dpkg-deb", "dpkg"),
        ("apt-get", "apt"),
        ("xz", "xz-utils"),
        ("strip", "binutils"),
    ] {
        support::provide(program, package)?;
    }
    if !options.is_explicit() {
        missing::is_named(&dir.join("missing"));
    }
    let kernels = options.kernels(&dir.join("kernels"))?;
    let suites = options.suites();
    let begin = Instant::now();
    let mut needed: Vec<&str> = suites.iter().map(|suite| suite.binary).filter(|name| !name.is_empty()).collect();
    if options.crosses() {
        needed.extend(crossing::BINARIES);
    }
    let binaries = if needed.is_empty() { BTreeMap::new() } else { suites::build(&needed) };
    let base = dir.join("base");
    base_system(&binaries, &dir).write(&base);
    println!("system: {} MiB, {:.1} s", fs::metadata(&base).unwrap().len() >> 20, begin.elapsed().as_secs_f64());
    let engine = probe(&kernels[0], &base, &dir);
    println!("machines: {engine:?}");
    let bench = Bench { engine, base: &base, dir: &dir, options: &options.boot };
    if let Some(command) = &options.run {
        let argv = ["bash", "-c", command].map(str::to_owned).to_vec();
        let task = Task { name: "run".into(), argv, seconds: 600, ..Task::default() };
        side_by_side(options.jobs, &kernels, |kernel| {
            let name = format!("{}-run", kernel.name);
            let (outcomes, left) = bench.run(kernel, Plan { name, tasks: vec![task.clone()], ..Plan::default() });
            let log = left.iter().find(|entry| entry.path.ends_with("run.log")).map(Entry::text).unwrap_or_default();
            println!("{}: {:?}\n{log}", kernel.name, outcomes[0]);
        });
    }
    let (from, to, sessions): (_, _, &[&str]) = match kernels.as_slice() {
        _ if !options.crosses() => (&[][..], &[][..], &[]),
        [oldest, .., newest] if !options.is_explicit() => {
            (std::slice::from_ref(oldest), std::slice::from_ref(newest), &crossing::FAST)
        }
        all => (all, all, &crossing::SESSIONS),
    };
    let crossing = Crossing::begin(&bench, options.jobs, from, sessions, &binaries);
    // The long ones first, so that the machine is busy to the end.
    let with_suites = kernels.iter().filter(|kernel| suites.iter().any(|suite| suite.runs_on(kernel)));
    let work: Vec<Work> = with_suites.map(Work::Suites).chain(to.iter().map(Work::Restores)).collect();
    let cells = side_by_side(options.jobs, &work, |work| match work {
        Work::Suites(kernel) => (suites::run(&bench, kernel, &suites, &binaries), Vec::new()),
        Work::Restores(kernel) => (Vec::new(), crossing.go_on(kernel)),
    });
    let (on_each, crossings): (Vec<_>, Vec<_>) = cells.into_iter().unzip();
    let report = Report {
        kernels: kernels.iter().map(|kernel| (kernel.name.clone(), kernel.release.clone())).collect(),
        suites: on_each.concat(),
        crossings: crossings.concat(),
    };
    println!("{:.0} s in all", begin.elapsed().as_secs_f64());
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
    if let Some(path) = &options.markdown {
        fs::write(path, report.markdown()).unwrap();
    }
    Ok(report)
}

fn base_system(binaries: &BTreeMap<String, PathBuf>, dir: &Path) -> System {
    let mut system = System::new();
    for victim in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/victims")).unwrap().flatten() {
        let path = victim.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            system.program(&support::compile(path.file_stem().unwrap().to_str().unwrap()));
        }
    }
    let me = std::env::current_exe().unwrap();
    for program in binaries.values().map(PathBuf::as_path).chain([Path::new(env!("CARGO_BIN_EXE_ptyagent")), &me]) {
        system.built(program, dir);
    }
    system.put(Entry::link("/init", &me));
    system
}

/// KVM where it boots a guest in a moment, which a nested one may not.
fn probe(kernel: &Kernel, base: &Path, dir: &Path) -> Engine {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Engine::Tcg;
    }
    let job = Job {
        tasks: vec![Task { name: "true".into(), argv: vec!["true".into()], seconds: 5, ..Task::default() }],
        ..Job::default()
    };
    let boot = Boot {
        kernel: &kernel.image,
        options: "",
        base,
        entries: vec![Entry::file(job::JOB, serde_json::to_vec(&job).unwrap())],
        limit: Duration::from_secs(10),
        dir: &dir.join("kvm"),
    };
    if machine::boot(Engine::Kvm, &boot).1.is_none() { Engine::Kvm } else { Engine::Tcg }
}
