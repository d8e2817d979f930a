//! The command line as a program and a person see it: help, statuses, streams, and the demo.

mod support;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Holder, PATIENCE, Pty, TempDir, ptyagent, serial, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);
const COMMANDS: [&str; 9] = ["dump", "restore", "inspect", "show", "check", "attach", "demo", "completions", "man"];

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptyagent"));
    command.stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// One sentence with our name in front, and this status.
fn assert_fails(args: &[&str], status: i32, part: &str) {
    let output = ptyagent(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.starts_with("ptyagent: ") && message.lines().count() == 1 && message.contains(part), "{message}");
    assert_eq!(stdout(&output), "", "{args:?}");
}

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS {
        for flag in ["-h", "--help"] {
            let output = ptyagent(&[command, flag]);
            let text = stdout(&output);
            assert!(
                output.status.success() && text.contains("Usage: ptyagent") && text.contains("Examples:"),
                "{text}"
            );
            assert_eq!(stderr(&output), "");
        }
    }
    let text = stdout(&ptyagent(&["--help"]));
    assert!(text.contains("Exit status:") && COMMANDS.iter().all(|command| text.contains(command)), "{text}");
    assert!(!text.contains("demo-holder"));
}

#[test]
fn wrong_usage_is_status_2() {
    let wrong: [&[&str]; 10] = [
        &[],
        &["fly"],
        &["dump"],
        &["dump", "--inject", "x"],
        &["dump", "--inject", "-1"],
        &["dump", "--inject", "1", "--leave-running", "--leave-stopped"],
        &["restore", "--pts-index", "maybe"],
        &["inspect"],
        &["show", "-D", "a", "b"],
        &["completions", "dos"],
    ];
    for args in wrong {
        let output = ptyagent(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn failures_are_one_sentence_and_a_status() {
    let dir = TempDir::new();
    let (empty, images) = (dir.path().to_str().unwrap(), dir.join("images"));
    let images = images.to_str().unwrap();
    assert_fails(&["restore", "-D", images], 1, images);
    assert_fails(&["restore", "-D", empty, "--dry-run"], 1, "inventory.img");
    assert_fails(&["restore", "-D", images, "--pidns", "--pts-index", "private"], 1, images);
    assert_fails(&["attach", "2147483647"], 1, "no session 2147483647");
    assert_fails(&["show", "-D", images], 1, images);
    assert_fails(&["show", images], 1, images);
    assert_fails(&["inspect", "2147483647"], 1, "2147483647");
    assert_fails(&["dump", "--inject", "2147483647", "-D", images], 1, "2147483647");
    assert_fails(&["man", "fly"], 1, "fly");
    assert!(!Path::new(images).exists());
}

#[test]
fn json_is_valid_and_text_has_no_escape_bytes() {
    let check = ptyagent(&["check", "--json"]);
    let value: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert!(value["items"].as_array().is_some_and(|items| !items.is_empty()), "{value}");
    for (args, colour) in [(vec!["check"], None), (vec!["--help"], None), (vec!["fly"], Some(("CLICOLOR_FORCE", "1")))]
    {
        let output = program().args(&args).env("NO_COLOR", "1").envs(colour).output().unwrap();
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{args:?}");
        let output = program().args(&args).env_remove("NO_COLOR").output().unwrap();
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{args:?}");
    }
}

#[test]
fn no_color_is_honoured_on_a_terminal() {
    with_timeout(LIMIT, || {
        let mut pty = Pty::new(support::Size { rows: 60, cols: 120 });
        let program = env!("CARGO_BIN_EXE_ptyagent");
        pty.run(&["sh", "-c", "\"$0\" check; \"$0\" fly; echo over", program], &[("NO_COLOR", "1")]);
        pty.wait_for_text("over");
        assert!(!pty.output().contains(&0x1b), "{}", pty.screen_text());
    });
}

#[test]
fn completions_and_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ptyagent(&["completions", shell]);
        assert!(output.status.success() && stdout(&output).contains("leave-running"), "{shell}");
    }
    let page = stdout(&ptyagent(&["man"]));
    assert!(page.contains(".TH ptyagent 1") && page.contains("Exit status"), "{page}");
    for command in COMMANDS {
        let page = stdout(&ptyagent(&["man", command]));
        assert!(page.contains(&format!(".TH ptyagent-{command} 1")) && page.contains(".SH OPTIONS"), "{page}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly_and_a_full_disk_does_not() {
    let commands: [&[&str]; 5] = [&["check"], &["check", "--json"], &["--help"], &["man"], &["completions", "bash"]];
    for args in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program().args(args).stdout(OwnedFd::from(writer)).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{args:?}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = program().arg("check").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program().args(["attach", "2147483647"]).stderr(OwnedFd::from(writer)).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a message that nobody reads is no panic");
}

#[test]
fn a_session_goes_through_the_commands() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let session = Holder::bash();
        let place = TempDir::new();
        let (dir, pidfile) = (place.join("images"), place.join("pid"));
        let (dir, pidfile) = (dir.to_str().unwrap(), pidfile.to_str().unwrap());
        let pid = session.pid().to_string();

        let live: Value = serde_json::from_slice(&ptyagent(&["inspect", &pid, "--json"]).stdout).unwrap();
        assert_eq!(live["tasks"][0]["pid"], session.pid());
        assert!(stdout(&ptyagent(&["inspect", &pid])).contains("bash"));

        let output = ptyagent(&["dump", "--inject", &pid, "-D", dir, "--leave-running"]);
        let text = stdout(&output);
        assert!(output.status.success() && text.contains("still running"), "{text}{}", stderr(&output));
        assert!(text.ends_with(&format!("to bring it back: ptyagent restore -D {dir}\n")), "{text}");
        assert_fails(&["dump", "--inject", &pid, "-D", dir], 1, "");

        let output = ptyagent(&["dump", "--inject", &pid, "-D", dir, "--overwrite", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(["frozen_us", "total_us", "pages", "bytes"].iter().all(|name| report[name].is_u64()), "{report}");
        let shown: Value = serde_json::from_slice(&ptyagent(&["show", "-D", dir, "--json"]).stdout).unwrap();
        assert_eq!(shown["tasks"][0]["pid"], session.pid());
        assert_eq!(ptyagent(&["show", dir]).stdout, ptyagent(&["show", "-D", dir]).stdout);

        let steps = stdout(&ptyagent(&["restore", "-D", dir, "--dry-run"]));
        assert!(steps.contains(&format!("create process {pid}\n")), "{steps}");
        let plan: Value =
            serde_json::from_slice(&ptyagent(&["restore", "-D", dir, "--dry-run", "--json"]).stdout).unwrap();
        assert_eq!(plan["root"], session.pid());

        let output = ptyagent(&["restore", "-D", dir, "--detach", "--pidfile", pidfile, "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(["frozen_us", "total_us", "pages", "bytes"].iter().all(|name| report[name].is_u64()), "{report}");
        assert_eq!(fs::read_to_string(pidfile).unwrap(), format!("{pid}\n"));
        session.type_keys("echo still $((40 + 2))\r");
        session.wait_for_text("still 42");
    });
}

#[test]
fn a_restore_in_the_foreground_passes_the_status_on() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let session = Holder::bash();
        let place = TempDir::new();
        let dir = place.join("images");
        let pid = session.pid().to_string();
        let dumped = program().args(["dump", "--inject", &pid, "-D"]).arg(&dir).output().unwrap();
        assert!(dumped.status.success(), "{}", stderr(&dumped));
        let pidfile = place.join("pid");
        let mut command = program();
        command.args(["restore", "-D"]).arg(&dir).arg("--pidfile").arg(&pidfile).stdout(Stdio::null());
        let mut restored = command.spawn().unwrap();
        support::until("pid file", PATIENCE, || pidfile.exists().then_some(()), String::new);
        session.type_keys("exit\r");
        session.wait_for_exit(PATIENCE);
        assert_eq!(restored.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn a_shell_of_another_terminal_continues_in_this_one() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = TempDir::new();
        let dir = place.join("images");
        let dir = dir.to_str().unwrap();
        let mut old = Pty::bash();
        old.type_keys("animal=otter; cd /usr\r");
        old.type_keys("echo \"$animal in $P");
        old.wait_for_text("$ echo \"$animal in $P");
        let output = ptyagent(&["dump", "--inject", &old.pid().to_string(), "-D", dir]);
        assert!(output.status.success(), "{}", stderr(&output));
        old.wait_for_exit(PATIENCE);

        let mut new = Pty::new(support::Size { rows: 30, cols: 100 });
        let restore = "stty -g >before; \"$0\" restore; s=$?; stty -g >after; exit $s";
        let script = format!(
            "cd '{dir}/..' && mkdir work && cd work && {}",
            restore.replace("restore;", "restore -D ../images;")
        );
        new.run(&["sh", "-c", &script, env!("CARGO_BIN_EXE_ptyagent")], &[]);
        new.type_keys("WD\"\r");
        new.wait_for_text("otter in /usr");
        // The job itself says that it is in the foreground: ^C before that would reach nobody.
        new.type_keys("sh -c 'stty size; exec sleep 1000'\r");
        new.wait_for_text("30 100");
        new.type_keys("\x03");
        new.type_keys("echo $? after ^C; exit 7\r");
        new.wait_for_text("130 after ^C");
        assert_eq!(new.wait_for_exit(PATIENCE).code(), Some(7));
        let settings = |name: &str| fs::read_to_string(place.join("work").join(name)).unwrap();
        assert_eq!(settings("before"), settings("after"));
    });
}

#[test]
fn the_demo_holds_and_leaves_nothing() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = TempDir::new();
        let output = program().arg("demo").env("TMPDIR", place.path()).output().unwrap();
        let text = stdout(&output);
        assert!(output.status.success(), "{text}{}", stderr(&output));
        assert_eq!(text.lines().filter(|line| line.starts_with("same ")).count(), 6, "{text}");
        assert!(fs::read_dir(place.path()).unwrap().next().is_none(), "files are left");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program().arg("demo").env("TMPDIR", place.path()).stdout(OwnedFd::from(writer)).output().unwrap();
        assert!(output.status.success(), "a reader that went away: {}", stderr(&output));
        assert!(fs::read_dir(place.path()).unwrap().next().is_none(), "files are left");
    });
}
