//! Programs that others have something to do with: servers, and who shares a file with them.

use crate::Program;
use crate::support::{Holder, PATIENCE, until};

const BASH: &[&str] = &["bash", "--norc", "--noprofile", "-i"];

pub fn programs() -> Vec<Program> {
    vec![tmux(), ssh_agent(), node(), sqlite(), tail()]
}

/// A shell below a process that adopts what daemons leave behind, so that they stay in the tree.
const ADOPTING: &[&str] = &["/usr/bin/python3", "-c", ADOPT];
const ADOPT: &str = "import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)
shell = os.spawnvp(os.P_NOWAIT, 'bash', ['bash', '--norc', '--noprofile', '-i'])
while os.wait()[0] != shell: pass";

fn wait_for(holder: &Holder, text: &str) {
    holder.wait_for_screen(text, PATIENCE, |screen| screen.contents().contains(text));
}

/// Types keys and waits for what they make the terminal show.
fn keys(holder: &Holder, keys: &str, answer: &str) {
    let seen = holder.output().len();
    holder.type_keys(keys);
    holder.wait_for_new_output(seen, answer);
}

fn wait_for_file(path: &std::path::Path) {
    until("file", PATIENCE, || path.exists().then_some(()), || path.display().to_string());
}

/// A server and its client in the foreground: two windows, three panes, lines that have scrolled away.
fn tmux() -> Program {
    Program {
        name: "tmux, server and client",
        work: "a client, two windows, three panes, scrollback",
        needs: &[("tmux", "tmux"), ("python3", "python3")],
        argv: ADOPTING,
        begin: |holder, dir| {
            holder.wait_for_text("$ ");
            std::fs::write(
                dir.join("conf"),
                "set -g default-command \"PS1='> ' exec bash --norc --noprofile -i\"\nset -g status off\nset -g assume-paste-time 0\n",
            )
            .unwrap();
            holder.type_keys(format!("cd {}; clear; tmux -S s -f conf new -s work\r", dir.display()));
            wait_for_file(&dir.join("s"));
            keys(holder, "n=1; echo first $((n + 1))\r", "first 2");
            keys(holder, "seq 1000\r", "1000");
            keys(holder, "\x02c", "> ");
            keys(holder, "n=2; echo second $((n + 1))\r", "second 3");
            keys(holder, "\x02\"", "> ");
            keys(holder, "n=3; echo third $((n + 1))\r", "third 4");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            keys(
                holder,
                &format!("echo \"n is <$((n += {round}))>\"\r"),
                &format!("n is <{}>", 3 + round * (round + 1) / 2),
            );
        },
        end: |holder, _| {
            holder.type_keys("\x02o");
            keys(holder, "echo \"other <$n>\"\r", "other <2>");
            // The first window, and its lines.
            keys(holder, "\x02p", "1000");
            holder.type_keys(
                "tmux -S s capture-pane -p -S - | grep -c '^[0-9][0-9]*$'; tmux -S s list-panes -a | wc -l\r",
            );
            wait_for(holder, "\n1000\n3");
            keys(holder, "\x02d", "detached");
            keys(holder, "tmux -S s kill-server; echo \"ended <$?>\"\r", "ended <0>");
        },
        rests: true,
    }
}

/// An agent that holds a key.
fn ssh_agent() -> Program {
    Program {
        name: "ssh-agent",
        work: "a key that is nowhere else",
        needs: &[("ssh-agent", "openssh-client")],
        argv: BASH,
        begin: |holder, dir| {
            holder.wait_for_text("$ ");
            holder.type_keys(format!("cd {}; ssh-agent -D -a agent >out &\r", dir.display()));
            wait_for_file(&dir.join("agent"));
            keys(
                holder,
                "export SSH_AUTH_SOCK=agent; ssh-keygen -q -t ed25519 -N '' -C 'a key' -f key && ssh-add key && rm key; clear; echo \"added <$?>\"\r",
                "added <0>\r\n\x1b[?2004h$ ",
            );
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            keys(
                holder,
                &format!("clear; ssh-add -l; echo listed \"<{round}>\"\r"),
                &format!("listed <{round}>\r\n\x1b[?2004h$ "),
            );
            wait_for(holder, "a key (ED25519)");
        },
        end: |holder, dir| {
            keys(
                holder,
                "echo text >text; ssh-keygen -q -Y sign -f key.pub -n test text; echo \"signed <$?>\"\r",
                "signed <0>",
            );
            assert!(dir.join("text.sig").exists());
            keys(holder, "kill %1; wait %1; echo \"ended <$?>\"\r", "ended <");
        },
        rests: true,
    }
}

/// A REPL with timers, and a value that is not there yet.
fn node() -> Program {
    Program {
        name: "node with timers",
        work: "REPL with an interval timer and a promise that is pending",
        needs: &[("node", "nodejs")],
        argv: &["node", "-i"],
        begin: |holder, _| {
            holder.wait_for_text("> ");
            keys(
                holder,
                "let ticks = 0, before = 0, timer = setInterval(() => ticks++, 20), late = new Promise(done => setTimeout(done, 4000, 'it is <late>'))\r",
                "undefined",
            );
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            keys(
                holder,
                &format!(
                    "before = ticks; setTimeout(() => console.log('round {round} ' + (ticks > before) + '!'), 300); 0\r"
                ),
                &format!("round {round} true!"),
            );
        },
        end: |holder, _| {
            keys(holder, "late.then(console.log); 0\r", "it is <late>");
            holder.type_keys(".exit\r");
            assert!(holder.wait_for_exit(PATIENCE).success());
        },
        rests: true,
    }
}

/// A transaction that is not committed yet: its locks keep other writers away, and its journal is what a crash would be undone by.
fn sqlite() -> Program {
    fn query(dir: &std::path::Path, sql: &str) -> std::process::Output {
        std::process::Command::new("sqlite3").arg(dir.join("db")).arg(sql).output().unwrap()
    }
    fn locked(dir: &std::path::Path) {
        let output = query(dir, "insert into t values (0)");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("database is locked"), "{text}");
        assert_eq!(query(dir, "select count(*) from t").stdout, b"1\n");
    }
    Program {
        name: "sqlite3 with a transaction on a file",
        work: "an open transaction, its journal and its locks",
        needs: &[("sqlite3", "sqlite3")],
        argv: BASH,
        begin: |holder, dir| {
            holder.wait_for_text("$ ");
            keys(holder, &format!("cd {}; clear; sqlite3 db\r", dir.display()), "sqlite> ");
            keys(holder, "create table t (n); insert into t values (1);\r", "sqlite> ");
            keys(holder, "begin immediate; insert into t values (2); select 'rows', count(*) from t;\r", "rows|2");
            locked(dir);
            assert!(dir.join("db-journal").exists());
        },
        rest: |_, _| (),
        go_on: |holder, dir, round| {
            locked(dir);
            let sql = format!("insert into t values ({round}); select 'rows', count(*) from t;\r");
            keys(holder, &sql, &format!("rows|{}", round + 2));
        },
        end: |holder, dir| {
            keys(holder, "commit; select 'committed', count(*) from t;\r", "committed|5");
            assert_eq!(query(dir, "select sum(n) from t").stdout, b"9\n");
            assert!(!dir.join("db-journal").exists());
            keys(holder, ".quit\r", "$ ");
        },
        rests: true,
    }
}

/// A log that is followed by inotify, and turned over in the end.
fn tail() -> Program {
    fn append(dir: &std::path::Path, text: &str) {
        use std::io::Write;
        let mut log = std::fs::File::options().append(true).create(true).open(dir.join("log")).unwrap();
        log.write_all(text.as_bytes()).unwrap();
    }
    Program {
        name: "tail -F of a log",
        work: "a log that it follows by inotify",
        needs: &[("tail", "coreutils")],
        argv: BASH,
        begin: |holder, dir| {
            holder.wait_for_text("$ ");
            append(dir, "line 0\n");
            keys(holder, &format!("clear; tail -F {}\r", dir.join("log").display()), "line 0\r\n");
            append(dir, "more\n");
            wait_for(holder, "\nmore");
        },
        rest: |_, _| (),
        go_on: |holder, dir, round| {
            append(dir, &format!("line {round}\n"));
            wait_for(holder, &format!("\nline {round}"));
        },
        end: |holder, dir| {
            std::fs::rename(dir.join("log"), dir.join("old")).unwrap();
            append(dir, "a new log\n");
            wait_for(holder, "\na new log");
            keys(holder, "\x03", "$ ");
        },
        rests: true,
    }
}
