//! Work that runs by itself while it is dumped.
//!
//! It passes gates: FIFOs that it waits at until the test opens them. So there is as much of it as the test needs, however fast the machine is.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;

use crate::Program;
use crate::support::{ps_line, tree, until};

/// For work that uses the processor.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn programs() -> Vec<Program> {
    vec![pipeline(), make()]
}

fn make_gate(dir: &Path, number: u32) {
    nix::unistd::mkfifo(&dir.join(format!("gate{number}")), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
}

/// Lets the work through a gate, once it waits there.
fn open_gate(dir: &Path, number: u32) {
    let path = dir.join(format!("gate{number}"));
    // Without a reader the open fails.
    let open = || File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).ok();
    until("reader of the gate", PATIENCE, open, || path.display().to_string()).write_all(b"\n").unwrap();
}

/// Its sum tells of one byte lost or doubled.
fn pipeline() -> Program {
    const COMMAND: &str =
        "read start; yes | { head -c 100M; for n in 1 2 3 4; do read <work/gate$n; head -c 100M; done; } | sha256sum";
    Program {
        name: "yes, head -c, sha256sum",
        work: "a pipeline of four processes in mid-flow",
        needs: &[("sha256sum", "coreutils")],
        argv: &["bash", "-c", COMMAND],
        begin: |holder, dir| {
            (1..=4).for_each(|number| make_gate(dir, number));
            holder.type_keys("\r");
            let started = || (tree(holder.pid()).len() >= 5).then_some(());
            until("pipeline", PATIENCE, started, || ps_line(&tree(holder.pid())));
        },
        rest: |_, _| (),
        go_on: |_, dir, round| open_gate(dir, round),
        end: |holder, dir| {
            open_gate(dir, 4);
            assert!(holder.wait_for_exit(PATIENCE).success());
            let right =
                std::process::Command::new("bash").args(["-c", "yes | head -c 500M | sha256sum"]).output().unwrap();
            let right = String::from_utf8(right.stdout).unwrap();
            assert_eq!(holder.screen_text().trim(), right.trim());
        },
        rests: false,
    }
}

/// Files of the build, and how many of them are behind each gate.
const FILES: u32 = 60;
const STRIDE: u32 = 12;

/// A build of many files, of which some are there, others are being compiled, and others wait for the test.
fn make() -> Program {
    Program {
        name: "make -j2",
        work: "a build in its middle, two compilers at work",
        needs: &[("make", "make"), ("gcc", "gcc")],
        argv: &["bash", "--norc", "--noprofile", "-i"],
        begin: |holder, dir| {
            write_project(dir);
            holder.wait_for_text("$ ");
            // The compiler's temporary files belong to the build.
            let start =
                format!("cd {0} && export TMPDIR=$PWD && make -j2 && echo \"the sum is <$(./sum)>\"\r", dir.display());
            holder.type_keys(start);
            open_gate(dir, 0);
        },
        rest: |_, dir| {
            let at_gates = || (1..=2).all(|gate| dir.join(format!("at{gate}")).exists()).then_some(());
            until("compilers at two gates", PATIENCE, at_gates, String::new);
        },
        go_on: |_, dir, round| open_gate(dir, round),
        end: |holder, dir| {
            assert!(!dir.join("sum").exists(), "the build went past a closed gate");
            open_gate(dir, 4);
            let sum = format!("the sum is <{}>", (0..FILES).sum::<u32>());
            holder.wait_for_screen(&sum, PATIENCE, |screen| screen.contents().contains(&sum));
        },
        rests: false,
    }
}

/// The sources, and rules by which the first file behind each gate waits at it.
fn write_project(dir: &Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let all = |text: &dyn Fn(u32) -> String| (0..FILES).map(text).collect::<Vec<_>>().join(" ");
    for n in 0..FILES {
        write(&format!("f{n}.c"), format!("int f{n}(int n) {{ return n + {n}; }}\n"));
    }
    let declared = all(&|n| format!("int f{n}(int);"));
    let calls = all(&|n| format!("n = f{n}(n);"));
    write(
        "main.c",
        format!("#include <stdio.h>\n{declared}\nint main(void) {{ int n = 0; {calls} printf(\"%d\\n\", n); }}\n"),
    );
    let mut rules = format!("sum: {} main.o\n\tgcc -o $@ $^\n", all(&|n| format!("f{n}.o")));
    for gate in 0..FILES / STRIDE {
        make_gate(dir, gate);
        let file = gate * STRIDE;
        rules += &format!("f{file}.o: f{file}.c\n\ttouch at{gate} && read line <gate{gate}\n\tgcc -c $<\n");
    }
    write("Makefile", rules);
}
