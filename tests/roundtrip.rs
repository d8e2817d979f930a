//! Dump, kill, restore and dump again: a bash with jobs comes back as it was, and its second images equal its first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use ptyagent::image::{Images, pb};
use support::{
    Holder, PATIENCE, TempDir, assert_same_lines, dump, page_differences, pages, ps_line, restore, serial, shown, tree,
    until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Bits of the kernel's task flags (field 9 of /proc/PID/stat).
const PF_FORKNOEXEC: u32 = 0x40;
const PF_SUPERPRIV: u32 = 0x100;

fn stopped(pid: i32) -> bool {
    support::stat(pid).is_some_and(|stat| stat.state == 'T')
}

/// The only child of `parent` with this name, once it is there.
fn child_named(parent: i32, comm: &str) -> i32 {
    until(
        comm,
        PATIENCE,
        || tree(parent).into_iter().find(|pid| support::stat(*pid).is_some_and(|stat| stat.comm == comm)),
        || ps_line(&tree(parent)),
    )
}

/// What may differ between the images of a session and those of what was restored from them, each with its reason.
fn without_what_must_differ(mut images: Images) -> Images {
    let own = images.own.as_mut().unwrap();
    for task in &mut own.tasks {
        // A restored process is younger; the clock tick of its start cannot be chosen.
        task.start_time = None;
    }
    for restart in own.threads.iter_mut().filter_map(|thread| thread.restart.as_mut()) {
        // Time goes by: what is left of a sleep.
        restart.remaining_ns = restart.remaining_ns.map(|left| left.div_ceil(100_000_000_000));
    }
    for task in images.cores.values_mut().filter_map(|core| core.tc.as_mut()) {
        // "Forked, but has not called exec" and "used privileges": a restored process came to be by fork, and it has.
        task.flags &= !(PF_FORKNOEXEC | PF_SUPERPRIV);
    }
    // Sizes and digests of the other files: these hold what is compared here field by field.
    own.files.clear();
    images
}

/// Where the kernel itself writes into a process at each stop or on each CPU.
fn kernel_writes(images: &Images, pid: u32) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    // The area of restartable sequences: the numbers of the CPU and its node on which the thread runs.
    ranges.extend(images.own_thread(pid).and_then(|thread| thread.rseq_pointer).map(|start| start..start + 32));
    // An interrupted sleep: the time that was left is written where the program asked for it.
    let regs = &images.cores[&pid].thread_info.as_ref().unwrap().gpregs;
    let left = match regs.orig_ax as i64 {
        libc::SYS_nanosleep => regs.si,
        libc::SYS_clock_nanosleep => regs.r10,
        _ => 0,
    };
    if left != 0 {
        ranges.push(left..left + 16);
    }
    ranges
}

fn assert_same_images(before: &Path, after: &Path) {
    let (first, second) = (Images::read(before).unwrap(), Images::read(after).unwrap());
    for entry in &first.pstree {
        let pid = entry.pid;
        if !first.pagemaps.contains_key(&pid) {
            continue;
        }
        let differences = page_differences(&pages(before, &first, pid), &pages(after, &second, pid));
        let written = kernel_writes(&first, pid);
        let unexplained: Vec<String> = differences
            .iter()
            .filter(|(address, _)| !written.iter().any(|range| range.contains(address)))
            .map(|(address, what)| format!("{address:#x} {what}, in {}", place(&first, pid, *address)))
            .collect();
        assert!(unexplained.is_empty(), "memory of process {pid} differs:\n{}", unexplained.join("\n"));
    }
    let (first, second) = (without_what_must_differ(first), without_what_must_differ(second));
    let lines = |images: &Images| format!("{images:#?}").lines().map(str::to_owned).collect::<Vec<_>>();
    if first != second {
        let (first, second) = (lines(&first), lines(&second));
        let mut text = String::new();
        for (number, (old, new)) in first.iter().zip(&second).enumerate().filter(|(_, (old, new))| old != new).take(40)
        {
            writeln!(text, "{number}: {old} became {new}").unwrap();
        }
        panic!("the images differ ({} and {} lines):\n{text}", first.len(), second.len());
    }
}

fn place(images: &Images, pid: u32, address: u64) -> String {
    let vma = |vma: &&pb::VmaEntry| (vma.start..vma.end).contains(&address);
    match images.mm[&pid].vmas.iter().find(vma) {
        Some(vma) => format!("{:#x}-{:#x} status {:#x} prot {}", vma.start, vma.end, vma.status, vma.prot),
        None => "no mapping".into(),
    }
}

/// Dumps, restores, and dumps again; yields nothing but a session that runs after a second restore.
fn twice(holder: &Holder, dir: &TempDir) {
    let pids = tree(holder.pid());
    let (ps, shown_before) = (ps_line(&pids), pids.iter().map(|pid| shown(*pid)).collect::<Vec<_>>());
    dump(holder.pid(), &dir.join("first"));
    restore(&dir.join("first"));
    assert_eq!(ps_line(&pids), ps);
    for (pid, before) in pids.iter().zip(&shown_before) {
        assert_same_lines(before, &shown(*pid), &format!("process {pid}"));
    }
    dump(holder.pid(), &dir.join("second"));
    assert_same_images(&dir.join("first"), &dir.join("second"));
    restore(&dir.join("second"));
    assert_eq!(ps_line(&pids), ps);
}

fn text_file(dir: &TempDir) -> String {
    let path = dir.join("text");
    let lines: String = (1..=500).map(|number| format!("line number {number}\n")).collect();
    fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_bash_with_a_background_job_and_a_stopped_less() {
    support::require("less");
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let file = text_file(&dir);
        let holder = Holder::bash();
        holder.type_keys("cd /usr; answer=42; f() { echo f says $1; }; sleep 1000 &\r");
        holder.wait_for_text("[1] ");
        // The job has its number before it has its program.
        child_named(holder.pid(), "sleep");
        holder.type_keys(format!("less {file}\r"));
        // Its prompt: while it draws, a ^Z may come too early to interrupt its read.
        holder.wait_for_text(&format!("\n{file}"));
        holder.type_keys("\x1a");
        holder.wait_for_text("Stopped");
        let less = child_named(holder.pid(), "less");
        until("stopped less", PATIENCE, || stopped(less).then_some(()), String::new);
        let shown = holder.output().len();
        twice(&holder, &dir);
        assert!(stopped(less));

        // The shell is not told a second time that its job has stopped.
        holder.type_keys("echo $answer $PWD $((6*7)); f x\r");
        holder.wait_for_text("42 /usr 42\nf says x\n");
        let new = String::from_utf8_lossy(&holder.output()[shown..]).into_owned();
        assert!(!new.contains("Stopped"), "{new:?}");
        holder.type_keys("clear; jobs\r");
        holder.wait_for_screen("both jobs", PATIENCE, |screen| {
            let text = screen.contents();
            text.contains("[2]+  Stopped") && text.contains("[1]-  Running")
        });
        holder.type_keys("fg\r");
        holder.wait_for_text("line number 23");
        holder.type_keys(" ");
        holder.wait_for_text("line number 46");
        holder.type_keys("q");
        holder.type_keys("clear; kill %1; wait %1; echo ended $?\r");
        holder.wait_for_text("ended 143");
        holder.type_keys("sleep 1000\r");
        child_named(holder.leader(), "sleep");
        holder.type_keys("\x1a");
        holder.wait_for_text("Stopped");
        holder.type_keys("bg\r");
        holder.wait_for_text("sleep 1000 &");
        holder.type_keys("kill %%; wait %%; exit 7\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(7));
    });
}

#[test]
fn a_less_in_the_foreground_of_a_bash_with_a_job() {
    support::require("less");
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let file = text_file(&dir);
        let holder = Holder::bash();
        holder.type_keys("mark=kept; sleep 1000 &\r");
        holder.wait_for_text("[1] ");
        // The job has its number before it has its program.
        child_named(holder.pid(), "sleep");
        holder.type_keys(format!("less {file}\r"));
        holder.wait_for_text("line number 23");
        twice(&holder, &dir);
        holder.type_keys(" ");
        holder.wait_for_text("line number 46");
        holder.type_keys("q");
        holder.type_keys("clear; kill %1; wait %1; echo $mark $?; tty; ps -o tpgid=,pgid= -p $$\r");
        holder.wait_for_text("kept 143\n/dev/pts/");
        holder.type_keys("exit 3\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(3));
    });
}
