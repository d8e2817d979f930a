//! Kernels and containers that lack a call: a slower way, or a clear message and a session that runs on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use support::{Holder, compile, ps_line, report, restore, serial, tree, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the built binary where this is missing, see tests/victims/without.c.
fn without(lack: &str, args: &[&str]) -> Output {
    let mut command = Command::new(compile("without"));
    command.arg(lack).arg(env!("CARGO_BIN_EXE_ptyagent")).args(args).stdin(Stdio::null());
    command.output().unwrap()
}

fn dump_without(lack: &str, holder: &Holder, dir: &Path) -> Output {
    without(lack, &["dump", "--inject", &holder.pid().to_string(), "-D", dir.to_str().unwrap()])
}

/// A shell with a job and a variable.
fn session() -> Holder {
    let holder = Holder::bash();
    holder.type_keys("sleep 1000 &\r");
    holder.wait_for_text("[1] ");
    holder.type_keys("n=41; echo set$((n))\r");
    holder.wait_for_text("set41");
    holder
}

fn goes_on(holder: &Holder) {
    holder.type_keys("clear; jobs; echo n is $((n + 1))\r");
    holder.wait_for_text("n is 42");
    assert!(holder.screen_text().contains("Running                 sleep 1000 &"), "{}", holder.screen_text());
}

/// It is carried all the same, and `check` says what is missing.
fn slower(lack: &'static str, item: &'static str) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let holder = session();
        let (images, pids) = (holder.dir().join("images"), tree(holder.pid()));
        let before = ps_line(&pids);
        let output = dump_without(lack, &holder, &images);
        assert!(output.status.success(), "{}", report(&output));
        restore(&images);
        assert_eq!(ps_line(&pids), before);
        goes_on(&holder);
        says_no(lack, item);
    });
}

fn says_no(lack: &str, item: &str) {
    let check = report(&without(lack, &["check"]));
    let line = check.lines().find(|line| line.starts_with(item)).unwrap();
    assert_eq!(line[item.len()..].split_whitespace().next(), Some("no"), "{check}");
}

#[test]
fn page_maps_without_a_scan() {
    slower("pagemap_scan", "PAGEMAP_SCAN");
}

#[test]
fn restartable_sequences_that_are_not_told() {
    slower("rseq_query", "rseq state");
}

#[test]
fn no_fetching_of_descriptors() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = session();
        let images = holder.dir().join("images");
        let output = dump_without("pidfd_getfd", &holder, &images);
        assert_eq!(output.status.code(), Some(1), "{}", report(&output));
        assert!(report(&output).contains("pidfd_getfd(2) is missing"), "{}", report(&output));
        assert!(!images.exists());
        goes_on(&holder);
        says_no("pidfd_getfd", "pidfd_getfd");
    });
}
