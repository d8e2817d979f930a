//! Boots: tasks on a kernel, and what became of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::archive::Entry;
use crate::criu;
use crate::job::{self, Ending, Job, Task, Verdict};
use crate::kernels::Kernel;
use crate::machine::{self, Boot, Engine};
use crate::report::Outcome;

/// A boot takes this long at most, without its tasks.
const BOOT: Duration = Duration::from_secs(120);

/// What all boots have in common.
#[derive(Debug)]
pub struct Bench<'a> {
    pub engine: Engine,
    /// The archive of the guests' system.
    pub base: &'a Path,
    pub dir: &'a Path,
    /// Added to the kernel's command line.
    pub options: &'a str,
}

/// One boot that is to be made.
#[derive(Debug, Default)]
pub struct Plan {
    /// The folder for its logs, below the bench's.
    pub name: String,
    pub entries: Vec<Entry>,
    /// As [`Job::settings`].
    pub settings: Vec<(String, String)>,
    /// As [`Job::keep`].
    pub keep: Option<PathBuf>,
    pub tasks: Vec<Task>,
}

impl Bench<'_> {
    /// The outcome of each task, in their order, and all that the guest left.
    pub fn run(&self, kernel: &Kernel, plan: Plan) -> (Vec<Outcome>, Vec<Entry>) {
        let dir = self.dir.join(&plan.name);
        let limit = BOOT + Duration::from_secs(plan.tasks.iter().map(|task| task.seconds).sum());
        let mut entries = plan.entries;
        let mut modules = Vec::new();
        for path in &kernel.modules {
            let there = Path::new("/").join(path.file_name().unwrap());
            entries.push(Entry { path: there.clone(), ..Entry::read(path).unwrap() });
            modules.push(there);
        }
        entries.extend(kernel.criu.iter().flat_map(|folder| criu::entries(folder)));
        let job = Job { modules, settings: plan.settings, keep: plan.keep, tasks: plan.tasks };
        entries.push(Entry::file(job::JOB, serde_json::to_vec(&job).unwrap()));
        let boot = Boot { kernel: &kernel.image, options: self.options, base: self.base, entries, limit, dir: &dir };
        let (left, error) = machine::boot(self.engine, &boot);
        let verdicts: Vec<Verdict> = left
            .iter()
            .find(|entry| entry.path == Path::new(job::VERDICTS))
            .and_then(|entry| serde_json::from_slice(&entry.bytes).ok())
            .unwrap_or_default();
        let error = error.unwrap_or_else(|| "it did not run".into());
        let outcomes = job.tasks.iter().map(|task| outcome(task, &verdicts, &left, &error, &dir)).collect();
        println!("{}, {}: done", kernel.name, plan.name);
        (outcomes, left)
    }
}

/// What became of a task; its log goes to the boot's folder.
fn outcome(task: &Task, verdicts: &[Verdict], left: &[Entry], error: &str, dir: &Path) -> Outcome {
    let log = dir.join(format!("{}.log", task.name));
    if let Some(entry) = left.iter().find(|entry| entry.path.file_name() == log.file_name()) {
        fs::write(&log, &entry.bytes).unwrap();
    }
    let failed = |reason: String| Outcome::Failed { reason, log: log.display().to_string() };
    match verdicts.iter().find(|verdict| verdict.name == task.name) {
        Some(Verdict { ending: Ending::Exited(0), seconds, .. }) => Outcome::Passed { seconds: *seconds },
        Some(verdict) => failed(format!("{:?} after {:.0} s", verdict.ending, verdict.seconds)),
        None => failed(error.to_owned()),
    }
}

/// Works on all of them, so many at a time; the answers are in their order.
pub fn side_by_side<T: Sync, R: Send>(jobs: usize, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work_on = || {
        let mut answers = Vec::new();
        while let Some((index, item)) =
            Some(next.fetch_add(1, Relaxed)).and_then(|index| Some((index, all.get(index)?)))
        {
            answers.push((index, work(item)));
        }
        answers
    };
    let mut answers = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work_on)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
