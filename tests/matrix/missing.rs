//! A machine that lacks something is told what: this program is run again as on such a machine.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs this program with a change of its environment; it has to fail and to say this.
fn says(dir: &Path, change: (&str, &str), expected: &[&str]) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--kernel", "6.1", "--dir"]).arg(dir).env(change.0, change.1);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let good = !output.status.success() && expected.iter().all(|text| said.contains(text));
    assert!(good, "with {change:?}: {}, {said}\nexpected: {expected:?}", output.status);
}

/// No qemu, no mirror, no network; each without kernels that were fetched before.
pub fn is_named(dir: &Path) {
    let nothing = dir.join("nothing");
    fs::create_dir_all(&nothing).unwrap();
    let qemu =
        "the kernel matrix cannot run: qemu-system-x86_64 is missing: install the Debian package qemu-system-x86";
    says(&dir.join("elsewhere"), ("PATH", nothing.to_str().unwrap()), &[qemu]);
    let config = dir.join("no-mirror");
    fs::write(&config, "Dir::Etc::sourcelist \"/dev/null\"; Dir::Etc::sourceparts \"/dev/null\";\n").unwrap();
    let mirror = "the kernel matrix cannot run: this machine's apt knows no Debian mirror: add one to its sources";
    says(&dir.join("elsewhere"), ("APT_CONFIG", config.to_str().unwrap()), &[mirror]);
    let network = "the kernel matrix cannot run: Debian's list of packages for bullseye cannot be fetched: ";
    // The port of "discard": nobody listens.
    says(&dir.join("elsewhere"), ("http_proxy", "http://127.0.0.1:9"), &[network, "127.0.0.1"]);
    fs::remove_dir_all(dir.join("elsewhere")).unwrap();
}
