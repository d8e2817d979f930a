//! Kernels: the newest of each series that Debian's releases have, or any other by its path.
//!
//! apt looks them up and fetches them, with lists and a cache of its own below the build folder: nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Release, and how many of its newest series.
const RELEASES: [(&str, usize); 4] = [("bullseye", 1), ("bookworm", 1), ("trixie", 1), ("trixie-backports", 2)];
/// Lists that are younger are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// What a dump asks of the kernel that it may have as modules, each behind those that it needs.
const MODULES: [&str; 7] =
    ["unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag"];

/// A kernel on this machine.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its series, as 6.12, or the file's name.
    pub name: String,
    /// As 6.12.117+deb13-cloud-amd64.
    pub release: String,
    pub image: PathBuf,
    /// Uncompressed.
    pub modules: Vec<PathBuf>,
}

/// All that Debian has, oldest first, fetched into `cache`. Errors say what is missing.
pub fn of_debian(cache: &Path) -> Result<Vec<Kernel>, String> {
    let mut found: Vec<Kernel> = Vec::new();
    for (release, count) in RELEASES {
        let apt = Apt::of(release, &cache.join(release))?;
        let mut names = apt.kernels()?;
        // Of each series the newest, and of two packages for one kernel the one that has it.
        names.sort_by_key(|name| (numbers(name), name.starts_with("linux-binary-")));
        names.dedup_by(|later, earlier| {
            let same = series(later) == series(earlier);
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        for name in names.iter().rev().take(count).rev() {
            found.push(apt.fetch(name)?);
        }
    }
    Ok(found)
}

/// `IMAGE` or `IMAGE,MODULES`, where the second is a folder that has modules in it, at any depth.
pub fn by_path(text: &str, cache: &Path) -> Result<Kernel, String> {
    let (image, modules) = text.split_once(',').map_or((text, None), |(image, modules)| (image, Some(modules)));
    let image = fs::canonicalize(image).map_err(|error| format!("{image}: {error}"))?;
    let name = image.file_name().unwrap().to_string_lossy().trim_start_matches("vmlinuz-").to_owned();
    let modules = match modules {
        Some(folder) => unpacked(Path::new(folder), &cache.join("paths").join(&name))?,
        None => Vec::new(),
    };
    Ok(Kernel { release: name.clone(), name, image, modules })
}

/// The numbers in a package's name behind its first two words: linux-image-5.10.0-32-cloud-amd64 is 5, 10, 0, 32.
fn numbers(name: &str) -> Vec<u32> {
    let version = name.splitn(3, '-').nth(2).unwrap_or_default();
    let version = version.split("+deb").next().unwrap_or_default();
    version.split(['.', '-']).map_while(|word| word.parse().ok()).collect()
}

fn series(name: &str) -> String {
    numbers(name).iter().take(2).map(u32::to_string).collect::<Vec<_>>().join(".")
}

/// apt with one release of Debian, whatever this machine itself is.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn of(release: &str, dir: &Path) -> Result<Apt, String> {
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
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
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

    /// The packages that have a kernel in them.
    fn kernels(&self) -> Result<Vec<String>, String> {
        let found = self.run("apt-cache", &["search", "--names-only", "^linux-(image|binary)-[0-9].*-cloud-amd64$"])?;
        let names: Vec<String> = found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        if names.is_empty() { Err("no package with a kernel is in Debian's list".into()) } else { Ok(names) }
    }

    fn fetch(&self, package: &str) -> Result<Kernel, String> {
        let release = package.splitn(3, '-').nth(2).unwrap().to_owned();
        let dir = self.dir.join(&release);
        let unpacked_at = dir.join("packages");
        if !dir.join("complete").exists() {
            let mut packages = vec![package.to_owned()];
            if package.starts_with("linux-binary-") {
                packages.push(format!("linux-modules-{release}"));
            }
            println!("fetching {}", packages.join(", "));
            self.unpack(&packages, &unpacked_at)?;
            fs::write(dir.join("complete"), "").unwrap();
        }
        let image = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        let image = image.iter().map(|path| unpacked_at.join(path)).find(|path| path.exists());
        let image = image.ok_or_else(|| format!("{package} has no kernel where it is expected"))?;
        let modules = unpacked(&unpacked_at, &dir.join("modules"))?;
        Ok(Kernel { name: series(package), release, image, modules })
    }

    /// Fetches packages and unpacks them there.
    fn unpack(&self, packages: &[String], dir: &Path) -> Result<(), String> {
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

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Those of [`MODULES`] that are somewhere in `from`, uncompressed in `to`.
fn unpacked(from: &Path, to: &Path) -> Result<Vec<PathBuf>, String> {
    fs::create_dir_all(to).unwrap();
    let mut found = Vec::new();
    for module in MODULES {
        let there = to.join(format!("{module}.ko"));
        if !there.exists() {
            let Some(path) = find(from, module) else { continue };
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            if path.extension().is_some_and(|extension| extension == "xz") {
                run(Command::new("xz").arg("-d").arg(to.join(path.file_name().unwrap())))?;
            }
        }
        found.push(there);
    }
    Ok(found)
}

fn find(dir: &Path, module: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str()?;
        if name.strip_prefix(module).is_some_and(|rest| matches!(rest, ".ko" | ".ko.xz")) {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below.push(path);
        }
    }
    below.iter().find_map(|path| find(path, module))
}
