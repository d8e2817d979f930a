//! Work that runs by itself while it is dumped.

use std::time::Duration;

use crate::Program;
use crate::support::{PATIENCE as MOMENT, until};

/// For work that uses the processor.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn programs() -> Vec<Program> {
    vec![pipeline(), make()]
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

/// A build of many files, of which some are there and others are being compiled.
fn make() -> Program {
    const FILES: u32 = 60;
    Program {
        name: "make -j2",
        needs: &[("make", "make"), ("gcc", "gcc")],
        argv: &["bash", "--norc", "--noprofile", "-i"],
        begin: |holder, dir| {
            let names = |ending: &str| (0..FILES).map(|n| format!("f{n}{ending}")).collect::<Vec<_>>().join(" ");
            for n in 0..FILES {
                std::fs::write(dir.join(format!("f{n}.c")), format!("int f{n}(int n) {{ return n + {n}; }}\n"))
                    .unwrap();
            }
            let calls = (0..FILES).map(|n| format!("n = f{n}(n);")).collect::<Vec<_>>().join(" ");
            let declared = (0..FILES).map(|n| format!("int f{n}(int);")).collect::<Vec<_>>().join(" ");
            let main = format!(
                "#include <stdio.h>\n{declared}\nint main(void) {{ int n = 0; {calls} printf(\"%d\\n\", n); }}\n"
            );
            std::fs::write(dir.join("main.c"), main).unwrap();
            std::fs::write(dir.join("Makefile"), format!("sum: main.o {}\n\tgcc -o $@ $^\n", names(".o"))).unwrap();
            holder.wait_for_text("$ ");
            holder.type_keys(format!("cd {} && make -j2 && echo \"the sum is <$(./sum)>\"\r", dir.display()));
            built(dir, 4);
        },
        go_on: |_, dir, round| built(dir, 4 + round as usize),
        end: |holder, dir| {
            assert!(!dir.join("sum").exists(), "the build had ended before the last dump");
            let sum = (0..FILES).sum::<u32>();
            holder
                .wait_for_screen("sum", PATIENCE, |screen| screen.contents().contains(&format!("the sum is <{sum}>")));
        },
        rests: false,
    }
}

/// Waits until so many object files are there.
fn built(dir: &std::path::Path, wanted: usize) {
    let objects = || {
        let files = std::fs::read_dir(dir).unwrap().flatten();
        files.filter(|file| file.path().extension().is_some_and(|ending| ending == "o")).count()
    };
    until("object files", MOMENT, || (objects() >= wanted).then_some(()), || objects().to_string());
}
