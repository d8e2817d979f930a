//! A holder's tree a second time, with the same numbers in namespaces of its own, while the first runs on.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ptyagent::image::Images;

use super::host::TempDir;
use super::{Holder, report, require_from, subreaper};

/// Runs a command in the mount and pid namespaces of a process.
pub fn inside(pid: i32, argv: &[&str]) -> Output {
    require_from("nsenter", "util-linux");
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-m", "-p"]).args(argv).stdin(Stdio::null());
    command.output().unwrap()
}

impl Holder {
    /// Restores images of this holder, which runs on, into a pid namespace and a devpts of their own.
    ///
    /// In the mount namespace of the copy the holder's directory is another one, with copies of its files as they were at the dump; so the two do not
    /// share their FIFO, their output and what their programs write.
    pub fn restored_beside(&self, images: &Path) -> Holder {
        let dir = TempDir::new();
        copy(self.dir(), dir.path());
        cut(&dir.join("out"), images);
        let subreaper = subreaper();
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"", "sh"]);
        command.arg(dir.path()).arg(self.dir()).arg(env!("CARGO_BIN_EXE_ptyagent"));
        command.args(["restore", "--detach", "--json", "--pidns", "--pts-index", "private", "-D"]).arg(images);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "restore: {}", report(&output));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let root = said["host_root"].as_i64().unwrap() as i32;
        Holder::adopt(dir, root, subreaper)
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(status.success(), "cp {}: {status}", from.display());
}

/// Takes off what the running original has written since the dump.
fn cut(out: &Path, images: &Path) {
    let images = Images::read(images).unwrap();
    let files = images.files.iter().filter_map(|file| file.reg.as_ref());
    let size = files.filter(|file| file.name.ends_with(b"/out")).find_map(|file| file.size).unwrap();
    let file = File::options().write(true).open(out).unwrap();
    assert!(size <= file.metadata().unwrap().len(), "{} has less than at the dump", out.display());
    file.set_len(size).unwrap();
}
