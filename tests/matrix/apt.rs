//! apt with one release of Debian, whatever this machine itself is: packages are fetched and unpacked below the build folder, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Lists that are younger are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// One release.
#[derive(Debug)]
pub struct Apt {
    /// Where all of it is.
    pub dir: PathBuf,
}

impl Apt {
    pub fn of(release: &str, dir: &Path) -> Result<Apt, String> {
        for name in ["state/lists/partial", "cache/archives/partial", "none"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let apt = Apt { dir: dir.to_owned() };
        let stamp = dir.join("stamp");
        let age = fs::metadata(&stamp).and_then(|data| data.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age < FRESH) {
            return Ok(apt);
        }
        let signed = "[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        fs::write(dir.join("sources.list"), format!("deb {signed} {} {release} main\n", mirror()?)).unwrap();
        match apt.run("apt-get", &["update", "--error-on=any"]) {
            Ok(_) => fs::write(&stamp, "").unwrap(),
            Err(error) if stamp.exists() => println!("the lists of {release} are old: {error}"),
            Err(error) => return Err(format!("Debian's list of packages for {release} cannot be fetched: {error}")),
        }
        Ok(apt)
    }

    /// The output of a command of apt's.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        let dir = self.dir.to_str().unwrap();
        for (name, value) in [
            ("Dir::State", format!("{dir}/state")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", format!("{dir}/cache")),
            ("Dir::Etc::sourcelist", format!("{dir}/sources.list")),
            ("Dir::Etc::sourceparts", format!("{dir}/none")),
            ("Dir::Etc::preferencesparts", format!("{dir}/none")),
            ("Acquire::Languages", "none".into()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into()),
            ("Acquire::Retries", "2".into()),
            // apt's own user may not write here.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{name}={value}"));
        }
        let output = command.arg("-q").args(arguments).current_dir(&self.dir).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Fetches packages and unpacks them there.
    pub fn unpack(&self, packages: &[String], dir: &Path) -> Result<(), String> {
        let mut arguments = vec!["download"];
        arguments.extend(packages.iter().map(String::as_str));
        self.run("apt-get", &arguments)?;
        fs::create_dir_all(dir).unwrap();
        for entry in fs::read_dir(&self.dir).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(dir))?;
                fs::remove_file(path).unwrap();
            }
        }
        Ok(())
    }
}

/// The mirror that this machine's apt uses for Debian; an error where it has none.
fn mirror() -> Result<String, String> {
    // The label is not known before the first update; the path is.
    let output = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let missing = "this machine's apt knows no Debian mirror: add one to its sources and run apt-get update";
    let mirror = text.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    mirror.map(str::to_owned).ok_or_else(|| missing.to_owned())
}

/// Runs a program that has to succeed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The file of this name in a folder, at any depth.
pub fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).ok()?.flatten() {
        if entry.file_name() == name && entry.path().is_file() {
            return Some(entry.path());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below.push(entry.path());
        }
    }
    below.iter().find_map(|path| find(path, name))
}
