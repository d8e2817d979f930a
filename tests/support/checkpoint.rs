//! Dumping and restoring a tree with the built binary, and comparing two sets of images.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use ptyagent::image::{Images, Kind};

use super::host::until;
use super::{PATIENCE, ptyagent};

const PAGE: u64 = 4096;

/// Runs the binary, again where it was held up by others for so long that it gave up.
pub fn patiently(args: &[&str]) -> Output {
    let mut outputs = std::iter::repeat_with(|| ptyagent(args));
    let held_up = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("this controller was held up");
    outputs.by_ref().take(5).find(|output| !held_up(output)).unwrap_or_else(|| ptyagent(args))
}

/// Dumps the tree of `root` into `dir` and kills it; its PIDs are free when this returns.
pub fn dump(root: i32, dir: &Path) {
    let output = patiently(&["dump", "--inject", &root.to_string(), "-D", dir.to_str().unwrap()]);
    assert!(output.status.success(), "dump: {}", report(&output));
    let gone = || (!fs::exists(format!("/proc/{root}")).unwrap()).then_some(());
    until("free number of the dumped root", PATIENCE, gone, || format!("{:?}", super::snapshot::stat(root)));
}

/// Dumps the tree of `root` into `dir` and lets it run on.
pub fn dump_running(root: i32, dir: &Path) {
    let output = patiently(&["dump", "--inject", &root.to_string(), "--leave-running", "-D", dir.to_str().unwrap()]);
    assert!(output.status.success(), "dump: {}", report(&output));
}

/// Restores what is in `dir`; it runs when this returns.
pub fn restore(dir: &Path) {
    let output = patiently(&["restore", "--detach", "-D", dir.to_str().unwrap()]);
    assert!(output.status.success(), "restore: {}", report(&output));
}

/// What a run of the binary said.
pub fn report(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\nstdout: {}\nstderr: {}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Every page of a process that the images hold, by its address.
pub fn pages(dir: &Path, images: &Images, pid: u32) -> BTreeMap<u64, Vec<u8>> {
    let map = &images.pagemaps[&pid];
    let file = File::open(dir.join(Kind::Pages(map.head.pages_id).name())).unwrap();
    let mut pages = BTreeMap::new();
    let mut at = 0;
    for entry in map.entries.iter().filter(|entry| entry.is_stored()) {
        for page in 0..entry.pages() {
            let mut bytes = vec![0; PAGE as usize];
            file.read_exact_at(&mut bytes, at).unwrap();
            pages.insert(entry.vaddr + page * PAGE, bytes);
            at += PAGE;
        }
    }
    pages
}

/// The 8-byte words in which the pages of a process differ, as "address: before after"; a page that only one has is one line.
pub fn page_differences(before: &BTreeMap<u64, Vec<u8>>, after: &BTreeMap<u64, Vec<u8>>) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for (address, old) in before {
        let Some(new) = after.get(address) else {
            found.push((*address, "page only before".into()));
            continue;
        };
        for (offset, (old, new)) in old.chunks_exact(8).zip(new.chunks_exact(8)).enumerate() {
            if old != new {
                let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
                found.push((address + offset as u64 * 8, format!("{:#x} became {:#x}", word(old), word(new))));
            }
        }
    }
    let new = after.keys().filter(|address| !before.contains_key(address));
    found.extend(new.map(|address| (*address, "page only after".to_owned())));
    found
}
