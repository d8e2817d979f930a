//! dump: the request and the report.

use std::path::PathBuf;
use std::process::ExitCode;

use ptyagent::capture::Allowed;
use ptyagent::dump::{self, After};
use ptyagent::error::Result;
use ptyagent::files::outside::{Chosen, LetGo, LetGoOf};
use ptyagent::ids::Pid;
use ptyagent::image::Overwrite;

use super::args::DumpArgs;
use super::output::{count, json, quoted, report, size, time};
use super::progress::Spinner;

pub fn dump(args: &DumpArgs) -> Result<ExitCode> {
    let after = match (args.leave_running, args.leave_stopped) {
        (true, _) => After::LeaveRunning,
        (_, true) => After::LeaveStopped,
        _ => After::Kill,
    };
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Refuse };
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(format!("ptyagent-{}", args.inject)));
    let spinner = Spinner::start(format!("saving process {}", args.inject));
    let allowed = Allowed { let_go: let_go_of(args), removed_bytes: args.ghost_limit };
    let done = dump::dump(&dump::Request { root: Pid(args.inject), dir, after, overwrite, allowed })?;
    drop(spinner);
    report(&if args.json { json(&done) } else { dumped(&done, after) });
    Ok(ExitCode::SUCCESS)
}

fn let_go_of(args: &DumpArgs) -> LetGoOf {
    let let_go = |chosen: &Option<Vec<Chosen>>| match chosen {
        None => LetGo::None,
        Some(chosen) if chosen.is_empty() => LetGo::All,
        Some(chosen) => LetGo::Only(chosen.clone()),
    };
    let (unix, tcp, pipes) = (let_go(&args.ext_unix), let_go(&args.tcp_close), let_go(&args.ext_pipe));
    LetGoOf { unix, tcp, pipes }
}

fn dumped(done: &dump::Report, after: After) -> String {
    let end = match after {
        After::Kill => "ended",
        After::LeaveRunning => "still running",
        After::LeaveStopped => "left stopped",
    };
    let dir = done.dir.to_string_lossy();
    let mut text = format!(
        "saved {} and {} of process {} in {dir} ({}); the session is {end}\n",
        count(done.tasks, "process", "processes"),
        count(done.terminals, "terminal", "terminals"),
        done.root,
        size(done.bytes),
    );
    text += &format!("frozen for {}, {} in all\n", time(done.frozen_us), time(done.total_us));
    for loss in &done.losses {
        text += &format!("lost: {loss}\n");
    }
    text + &format!("to bring it back: ptyagent restore -D {}\n", quoted(&dir))
}
