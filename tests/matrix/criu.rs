//! CRIU as Debian's releases have it, with its libraries and its loader, for the guests of the same release: never installed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, find};
use crate::archive::Entry;

/// Where a guest has it; `criu` in it runs it.
const FOLDER: &str = "/criu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The folder with the files of a guest, fetched where it is not there yet.
pub fn fetch(apt: &Apt) -> Result<PathBuf, String> {
    let folder = apt.dir.join("criu");
    if folder.exists() {
        return Ok(folder);
    }
    let packages = with_libraries(apt, "criu")?;
    println!("fetching {}", packages.join(", "));
    let unpacked = apt.dir.join("criu-packages");
    apt.unpack(&packages, &unpacked)?;
    let part = apt.dir.join("criu-part");
    fs::create_dir_all(&part).unwrap();
    collect(&unpacked, &part)?;
    fs::rename(&part, &folder).unwrap();
    fs::remove_dir_all(&unpacked).unwrap();
    Ok(folder)
}

/// A package and the libraries that it depends on, and those that they depend on.
fn with_libraries(apt: &Apt, package: &str) -> Result<Vec<String>, String> {
    let mut all = BTreeSet::from([package.to_owned()]);
    let mut new = all.clone();
    while !new.is_empty() {
        let mut arguments = vec!["depends", "--important", "--no-suggests"];
        arguments.extend(new.iter().map(String::as_str));
        let text = apt.run("apt-cache", &arguments)?;
        let names = text.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "));
        let libraries = names.filter(|name| name.starts_with("lib")).map(str::to_owned);
        new = libraries.filter(|name| !all.contains(name)).collect();
        all.extend(new.iter().cloned());
    }
    Ok(all.into_iter().collect())
}

/// Copies the program, its loader and what the loader finds for it.
fn collect(unpacked: &Path, folder: &Path) -> Result<(), String> {
    let missing = |name: &str| format!("Debian's packages of criu have no {name}");
    let program = unpacked.join("usr/sbin/criu");
    let loader = find(unpacked, LOADER).ok_or_else(|| missing(LOADER))?;
    let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|name| unpacked.join(name));
    let folders = folders.map(|folder| folder.to_str().unwrap().to_owned()).join(":");
    let mut list = Command::new(&loader);
    let output = list.args(["--list", "--library-path", &folders]).arg(&program).output();
    let output = output.map_err(|error| format!("{list:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let copy = |from: &Path, name: &str| {
        fs::copy(from, folder.join(name)).map(drop).map_err(|error| format!("{}: {error}", from.display()))
    };
    for line in text.lines().filter(|line| line.contains("=>")) {
        let (name, path) = line.trim().split_once(" => ").unwrap();
        let path = path.split(' ').next().filter(|path| path.starts_with('/')).ok_or_else(|| missing(name))?;
        copy(Path::new(path), name.rsplit('/').next().unwrap())?;
    }
    copy(&loader, LOADER)?;
    copy(&program, "program")?;
    let script =
        format!("#!/bin/sh\nexec {FOLDER}/{LOADER} --argv0 criu --library-path {FOLDER} {FOLDER}/program \"$@\"\n");
    let path = folder.join("criu");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Ok(())
}

/// The files of a guest.
pub fn entries(folder: &Path) -> Vec<Entry> {
    let mut entries = Entry::tree(folder).unwrap();
    for entry in &mut entries {
        entry.path = Path::new(FOLDER).join(entry.path.strip_prefix(folder).unwrap());
    }
    entries
}
