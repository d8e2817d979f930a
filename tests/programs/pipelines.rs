//! Work that runs by itself while it is dumped.

use std::time::Duration;

use crate::Program;
use crate::support::until;

/// For work that uses the processor.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn programs() -> Vec<Program> {
    vec![pipeline()]
}

/// Its sum tells of one byte lost or doubled.
fn pipeline() -> Program {
    Program {
        name: "yes | head -c 1G | sha256sum",
        needs: &[("sha256sum", "coreutils")],
        argv: &["bash", "-c", "yes | head -c 1G | sha256sum"],
        begin: |holder, _| {
            let three = || (crate::support::tree(holder.pid()).len() == 5).then_some(());
            until("pipeline", PATIENCE, three, || crate::support::ps_line(&crate::support::tree(holder.pid())));
        },
        go_on: |_, _, _| (),
        end: |holder, _| {
            assert!(holder.wait_for_exit(PATIENCE).success());
            let right =
                std::process::Command::new("bash").args(["-c", "yes | head -c 1G | sha256sum"]).output().unwrap();
            let right = String::from_utf8(right.stdout).unwrap();
            assert_eq!(holder.screen_text().trim_end(), right.trim_end());
        },
        rests: false,
    }
}
