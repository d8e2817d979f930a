//! The sources' form: rustfmt, clippy with warnings denied, and the rules that no tool checks.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

fn cargo(arguments: &[&str]) {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("no such command") || text.contains("is not installed") {
        support::skip(&format!("cargo {} is not part of this toolchain", arguments[0]));
        return;
    }
    assert!(
        output.status.success(),
        "cargo {}:\n{}{text}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn rustfmt_has_nothing_to_do() {
    cargo(&["fmt", "--all", "--check"]);
}

#[test]
fn clippy_has_nothing_to_say() {
    cargo(&["clippy", "--all-targets", "--quiet", "--", "-D", "warnings"]);
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The folder or file right below src/ that a path belongs to.
fn room(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    below.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Who may use whom, lower never higher: a room, and what it must not name.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    ("sys", &["trace", "inject", "tty::record", "task", "mem", "files", "plan", "dump", "restore", "capture", "image"]),
    ("trace", &["inject", "tty", "task", "mem", "files", "plan", "dump", "restore", "capture", "image"]),
    ("procfs", &["trace", "inject", "tty", "task", "mem", "files", "plan", "dump", "restore", "capture", "image"]),
    ("inject", &["tty", "task", "mem", "files", "plan", "dump", "restore", "capture", "image"]),
    ("image", &["trace", "inject", "tty", "task", "mem", "files", "plan", "dump", "restore", "capture", "procfs"]),
    ("mem", &["tty", "task", "files", "plan", "dump", "restore", "capture"]),
    ("plan", &["trace", "inject", "sys", "procfs", "files", "dump", "restore", "capture"]),
    ("relay", &["inject", "trace", "plan", "dump", "restore", "capture", "image"]),
];

#[test]
fn layers_point_downward() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let mut wrong = Vec::new();
    for path in found {
        let room = room(&path);
        let Some((_, forbidden)) = FORBIDDEN.iter().find(|(name, _)| *name == room) else { continue };
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let Some(used) = line.trim_start().strip_prefix("use crate::") else { continue };
            if forbidden.iter().any(|name| {
                used == *name || used.starts_with(&format!("{name}::")) || used.starts_with(&format!("{name};"))
            }) {
                wrong.push(format!("{}: {line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `unsafe` stays in src/sys and the parasite.
#[test]
fn unsafe_stays_at_the_bottom() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.retain(|path| room(path) != "sys");
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("unsafe {") && !text.contains("allow(unsafe_code)"),
            "{} has unsafe code",
            path.display()
        );
    }
}
