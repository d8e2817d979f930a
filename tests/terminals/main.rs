//! Every terminal state: made by real system calls, dumped, killed, restored, compared.
//!
//! Each case runs three times on a fresh tree. The control is never dumped: what comes out of its terminals in the end is what the
//! others have to give. The second is dumped, killed and restored; the third is dumped and left running. For both, all that the processes see
//! and all that an inspection reports is the same before and after. `TERMINALS=text` runs the cases with that text in their name;
//! `TERMINALS_TABLE=file` leaves the table there in Markdown, with `CRIU=path` beside what that CRIU makes of each case.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod beside;
mod cases;
mod outside;
mod pairs;
mod queues;
mod sessions;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use cases::{Case, Checked, Outcome};
use support::{serial, with_timeout};

/// Of one case.
const LIMIT: Duration = Duration::from_secs(30);

fn all() -> Vec<Case> {
    [pairs::cases(), state::cases(), sessions::cases(), queues::cases(), outside::cases()].concat()
}

/// Runs what has the wanted text in its name and prints the table; panics with every difference.
#[test]
fn every_state() {
    let _serial = serial();
    let wanted = std::env::var("TERMINALS").unwrap_or_default();
    let criu = std::env::var_os("CRIU").map(PathBuf::from);
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for case in all().into_iter().filter(|case| format!("{}: {}", case.group, case.name).contains(&wanted)) {
        let (group, name, outcome, but) = (case.group, case.name, case.outcome, case.but);
        let is_beside = case.beside.is_some() || matches!(outcome, Outcome::Kept | Outcome::Refused(_));
        let theirs = |criu: &PathBuf| if is_beside { beside::outcome(&case, criu) } else { "not looked at".into() };
        let beside = criu.as_ref().map(|criu| format!(" {} |", theirs(criu))).unwrap_or_default();
        let result = std::panic::catch_unwind(|| with_timeout(LIMIT, move || cases::run(&case)));
        let text = match result {
            Ok(checked) if checked.differences.is_empty() => {
                how(outcome, &checked) + &but.map(|(_, why)| format!("; but {why}")).unwrap_or_default()
            }
            Ok(checked) => {
                failures.push(format!("{group}: {name}\n{}", checked.differences.join("\n")));
                "DIFFERS".into()
            }
            Err(panic) => {
                failures.push(format!("{group}: {name}\n  {}", message(&*panic)));
                "FAILS".into()
            }
        };
        println!("{group} | {name} | {text} |{beside}");
        rows.push(format!("| {group} | {name} | {text} |{beside}"));
    }
    if let Ok(path) = std::env::var("TERMINALS_TABLE") {
        let (title, rule) = if criu.is_some() { (" CRIU |", " --- |") } else { ("", "") };
        let head = format!("| | State | Outcome and how it was checked |{title}\n| --- | --- | --- |{rule}");
        std::fs::write(path, format!("{head}\n{}\n", rows.join("\n"))).unwrap();
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), rows.len(), failures.join("\n\n"));
}

fn how(outcome: Outcome, checked: &Checked) -> String {
    match outcome {
        Outcome::Kept => {
            format!("kept: {} facts, {} of inspect, {} reads", checked.facts, checked.inspected, checked.reads)
        }
        Outcome::Refused(why) => format!("refused: \"{why}\", and the session runs on"),
        Outcome::Special(_) => checked.told.clone(),
        Outcome::Elsewhere(place) => format!("tested by {place}"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
