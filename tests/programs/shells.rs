//! Shells and interpreters at their prompts.

use crate::Program;
use crate::support::{Holder, PATIENCE, stat, until};

const BASH: &[&str] = &["bash", "--norc", "--noprofile", "-i"];

pub fn programs() -> Vec<Program> {
    vec![bash(), python(), python_threads(), gdb(), sqlite()]
}

/// Types a line and waits for what it prints, which must not be in the line itself.
fn line(holder: &Holder, text: &str, answer: &str) {
    let seen = holder.output().len();
    holder.type_keys(format!("{text}\r"));
    holder.wait_for_new_output(seen, answer);
}

/// Waits until keys that send a signal go to this program.
fn in_foreground(holder: &Holder, comm: &str) {
    let state = || stat(holder.leader()).and_then(|leader| stat(leader.tpgid));
    let there = || state().is_some_and(|foreground| foreground.comm == comm).then_some(());
    until(comm, PATIENCE, there, || format!("{:?}", state()));
}

/// History, a function, a running and a stopped job, and a line that is half typed.
fn bash() -> Program {
    Program {
        name: "bash",
        work: "history, a function, a running and a stopped job, a half-typed line",
        needs: &[("bash", "bash")],
        argv: BASH,
        begin: |holder, _| {
            holder.wait_for_text("$ ");
            line(holder, "set -o history; n=0; add() { n=$((n+$1)); echo \"n is <$n>\"; }; add 5", "n is <5>");
            line(holder, "sleep 1000 &", "[1] ");
            holder.type_keys("sleep 2000\r");
            in_foreground(holder, "sleep");
            let seen = holder.output().len();
            holder.type_keys("\x1a");
            holder.wait_for_new_output(seen, "Stopped");
            holder.wait_for_new_output(seen, "$ ");
            holder.type_keys("add 1");
            holder.wait_for_new_output(seen, "add 1");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            line(holder, "0", &format!("n is <{}>", 5 + 10 * round));
            let seen = holder.output().len();
            holder.type_keys("add 1");
            holder.wait_for_new_output(seen, "add 1");
        },
        end: |holder, _| {
            line(holder, "00; jobs", "Running                 sleep 1000 &");
            // Three rounds, the last line, and this one itself.
            line(holder, "history 50 | grep -c add.10", "5\r\n");
            line(holder, "kill %1; fg", "sleep 2000");
            in_foreground(holder, "sleep");
            let seen = holder.output().len();
            holder.type_keys("\x03");
            holder.wait_for_new_output(seen, "$ ");
            line(holder, "echo $((n)) is the end", "135 is the end");
        },
        rests: true,
    }
}

/// A REPL with running and waiting threads, an open file, a child process and a block that is half typed.
fn python() -> Program {
    Program {
        name: "python3",
        work: "REPL with running and waiting threads, an open file, a subprocess, a half-typed block",
        needs: &[("python3", "python3")],
        argv: &["/usr/bin/python3", "-q"],
        begin: |holder, dir| {
            holder.wait_for_text(">>> ");
            line(holder, "import subprocess, sys; total = 0", ">>> ");
            line(holder, &format!("log = open('{}/log', 'w')", dir.display()), ">>> ");
            line(holder, "child = subprocess.Popen(['sleep', '1000'])", ">>> ");
            line(holder, "import threading, time; ticks = [0]; answers = []; event = threading.Event()", ">>> ");
            line(holder, "def tick():", "... ");
            line(holder, "    while True: ticks[0] += 1; time.sleep(0.01)", "... ");
            line(holder, "", ">>> ");
            line(holder, "threading.Thread(target=tick, daemon=True).start()", ">>> ");
            line(holder, "wait = lambda: answers.append(event.wait())", ">>> ");
            line(holder, "waiting = [threading.Thread(target=wait, daemon=True) for _ in range(3)]", ">>> ");
            line(holder, "for thread in waiting: thread.start()", "... ");
            line(holder, "", ">>> ");
            line(holder, "for i in range(3):", "... ");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            line(holder, "    total += log.write('line\\n')", "... ");
            line(holder, "", ">>> ");
            line(holder, "print(f'total <{total}>', child.poll())", &format!("total <{}> None", 15 * round));
            line(holder, "before = ticks[0]", ">>> ");
            line(holder, "while ticks[0] < before + 5: time.sleep(0.01)", "... ");
            line(holder, "", ">>> ");
            line(holder, "print('threads', threading.active_count(), answers)", "threads 5 []");
            line(holder, "for i in range(3):", "... ");
        },
        end: |holder, dir| {
            line(holder, "    log.flush()", "... ");
            line(holder, "", ">>> ");
            line(
                holder,
                "event.set(); print([thread.join() for thread in waiting], answers)",
                "[None, None, None] [True, True, True]",
            );
            line(holder, "child.kill(); print('ended', child.wait())", "ended -9");
            assert_eq!(std::fs::read_to_string(dir.join("log")).unwrap(), "line\n".repeat(9));
        },
        rests: true,
    }
}

/// A REPL with threads that count, one that waits for a queue, and a lock that is held.
fn python_threads() -> Program {
    Program {
        name: "python3 with threads",
        work: "threads that count and that wait for a queue, a held lock",
        needs: &[("python3", "python3")],
        argv: &["/usr/bin/python3", "-q"],
        begin: |holder, _| {
            holder.wait_for_text(">>> ");
            line(
                holder,
                "import threading, time, queue; ticks = [0, 0]; jobs = queue.Queue(); done = queue.Queue()",
                ">>> ",
            );
            let tick = "[(time.sleep(.01), ticks.__setitem__(n, ticks[n] + 1)) for _ in iter(int, 1)]";
            line(
                holder,
                "start = lambda job, *args: threading.Thread(target=job, args=args, daemon=True).start()",
                ">>> ",
            );
            line(holder, &format!("tick = lambda n: {tick}"), ">>> ");
            line(holder, "start(tick, 0); start(tick, 1)", ">>> ");
            line(holder, "start(lambda: [done.put(jobs.get() * 7) for _ in iter(int, 1)])", ">>> ");
            line(holder, "lock = threading.Lock(); print('locked', lock.acquire())", "locked True");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            line(
                holder,
                &format!("jobs.put({round}); print(f'product <{{done.get()}}>')"),
                &format!("product <{}>", round * 7),
            );
            line(holder, "before = list(ticks)", ">>> ");
            line(holder, "while any(now == then for now, then in zip(ticks, before)): time.sleep(.01)", "... ");
            line(holder, "", ">>> ");
            line(holder, "print('ticks', lock.locked())", "ticks True");
        },
        end: |holder, _| line(holder, "lock.release(); print('threads', threading.active_count())", "threads 4"),
        rests: true,
    }
}

/// A debugger at its prompt. While it traces a program the dump is refused, and the program is traced on.
fn gdb() -> Program {
    Program {
        name: "gdb",
        work: "a convenience variable; with a debuggee the dump is refused, and it is traced on",
        needs: &[("gdb", "gdb")],
        argv: &["gdb", "-q", "-nx", "/bin/sleep"],
        begin: |holder, dir| {
            holder.wait_for_text("(gdb) ");
            line(holder, "set pagination off", "(gdb) ");
            line(holder, "starti 1000", "Program stopped");
            let (root, images) = (holder.pid().to_string(), dir.join("refused"));
            let dump = crate::support::ptyagent(&["dump", "--inject", &root, "-D", images.to_str().unwrap()]);
            let error = String::from_utf8(dump.stderr).unwrap();
            assert_eq!(dump.status.code(), Some(3), "{error}");
            assert!(error.contains("(sleep): already traced by process") && error.contains("(gdb)"), "{error}");
            line(holder, "stepi", "(gdb) ");
            line(holder, "kill", "(y or n) ");
            line(holder, "y", "killed");
            line(holder, "set $n = 1", "(gdb) ");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            line(holder, &format!("print $n *= {}", round + 1), &format!("= {}\r\n", [2, 6, 24][round as usize - 1]))
        },
        end: |holder, _| {
            line(holder, "starti 1001", "Program stopped");
            line(holder, "print $rip != 0", "= 1");
            line(holder, "kill", "(y or n) ");
            line(holder, "y", "killed");
        },
        rests: true,
    }
}

/// An in-memory database with an open transaction.
fn sqlite() -> Program {
    Program {
        name: "sqlite3, in memory",
        work: "an open transaction",
        needs: &[("sqlite3", "sqlite3")],
        argv: &["sqlite3"],
        begin: |holder, _| {
            holder.wait_for_text("sqlite> ");
            line(holder, "create table t (n); begin; insert into t values (100);", "sqlite> ");
        },
        rest: |_, _| (),
        go_on: |holder, _, round| {
            let insert = format!("insert into t values ({round}); select 'sum <' || sum(n) || '>' from t;");
            line(holder, &insert, &format!("sum <{}>", 100 + round * (round + 1) / 2));
        },
        end: |holder, _| line(holder, "rollback; select 'rows <' || count(*) || '>' from t;", "rows <0>"),
        rests: true,
    }
}
