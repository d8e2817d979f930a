//! Programs that fill the screen.

use crate::Program;
use crate::support::{Holder, PATIENCE};

pub fn programs() -> Vec<Program> {
    vec![vim(), less(), top()]
}

fn wait_for(holder: &Holder, text: &str) {
    holder.wait_for_screen(text, PATIENCE, |screen| screen.contents().contains(text));
}

/// An unsaved buffer with its undo history, a register, and a shell in a window of its own.
fn vim() -> Program {
    Program {
        name: "vim with a :terminal",
        work: "unsaved text, undo history, a register, a shell in `:terminal`",
        needs: &[("vim", "vim")],
        argv: &["vim", "--clean", "-n", "text"],
        begin: |holder, _| {
            wait_for(holder, "All");
            holder.type_keys("ifirst line\x1byyp:s/first/second/\r");
            wait_for(holder, "second line");
            holder.type_keys(":belowright terminal bash --norc --noprofile -i\r");
            wait_for(holder, "$ ");
            holder.type_keys("n=7; cd /usr; echo in $PWD\r");
            wait_for(holder, "in /usr");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            holder.type_keys(format!("echo \"n is <$((n += {round}))>\"\r"));
            wait_for(holder, &format!("n is <{}>", 7 + round * (round + 1) / 2));
            // To the buffer and back: a line more from the register.
            holder.type_keys("\x17kGp:s/first/round/\r\x17j");
            wait_for(holder, "round line");
        },
        end: |holder, dir| {
            // The last substitution is undone.
            let file = dir.join("notes");
            holder.type_keys(format!("\x17ku:w {}\r", file.display()));
            wait_for(holder, "written");
            let text = std::fs::read_to_string(file).unwrap();
            assert_eq!(text, "first line\nsecond line\nround line\nround line\nfirst line\n");
        },
        rests: true,
    }
}

/// On a pipe that goes on to be filled.
fn less() -> Program {
    Program {
        name: "less on a pipe",
        work: "a search in what a running command still writes",
        needs: &[("less", "less")],
        argv: &["bash", "-c", "seq 100000 | less"],
        begin: |holder, _| {
            wait_for(holder, "\n23");
            holder.type_keys("/^77$\r");
            wait_for(holder, "\n99");
        },
        rest: |_, _| (),
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
        work: "its display",
        needs: &[("top", "procps")],
        argv: &["top", "-d", "0.5"],
        begin: |holder, _| wait_for(holder, "load average"),
        rest: |_, _| (),
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
