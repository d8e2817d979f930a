//! Programs that fill the screen.

use crate::Program;
use crate::support::{Holder, PATIENCE};

pub fn programs() -> Vec<Program> {
    vec![less(), top()]
}

fn wait_for(holder: &Holder, text: &str) {
    holder.wait_for_screen(text, PATIENCE, |screen| screen.contents().contains(text));
}

/// On a pipe that goes on to be filled.
fn less() -> Program {
    Program {
        name: "less on a pipe",
        needs: &[("less", "less")],
        argv: &["bash", "-c", "seq 100000 | less"],
        begin: |holder, _| {
            wait_for(holder, "\n23");
            holder.type_keys("/^77$\r");
            wait_for(holder, "\n99");
        },
        go_on: |holder, _, round| {
            holder.type_keys(format!("{}g", round * 1000));
            wait_for(holder, &format!("\n{}\n", round * 1000 + 5));
        },
        end: |holder, _| {
            holder.type_keys("n?^77$\r");
            wait_for(holder, "\n99");
            holder.type_keys("q");
            assert!(holder.wait_for_exit(PATIENCE).success());
        },
        rests: true,
    }
}

fn top() -> Program {
    Program {
        name: "top",
        needs: &[("top", "procps")],
        argv: &["top", "-d", "0.5"],
        begin: |holder, _| wait_for(holder, "load average"),
        go_on: |holder, _, _| {
            // The summary's first line goes and comes: it reads its keys, and draws.
            holder.type_keys("l");
            holder.wait_for_screen("no load", PATIENCE, |screen| !screen.contents().contains("load average"));
            holder.type_keys("l");
            wait_for(holder, "load average");
        },
        end: |holder, _| {
            holder.type_keys("q");
            assert!(holder.wait_for_exit(PATIENCE).success());
        },
        rests: false,
    }
}
