//! Kernels: the newest of each series that Debian's releases have, or any other by its path.
//!
//! apt looks them up and fetches them, with lists and a cache of its own below the build folder: nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, find, run};
use crate::criu;

/// Release, how many of its newest series, and whether its CRIU runs on them.
const RELEASES: [(&str, usize, bool); 4] =
    [("bullseye", 1, false), ("bookworm", 1, true), ("trixie", 1, true), ("trixie-backports", 2, false)];
/// What a dump asks of the kernel that it may have as modules, and what CRIU does not start without; each behind those that it needs.
const MODULES: [&str; 10] = [
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "netlink_diag",
    "af_packet_diag",
    "libcrc32c",
    "nfnetlink",
    "nf_tables",
];

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
    /// The folder with the CRIU of its release.
    pub criu: Option<PathBuf>,
}

/// All that Debian has, oldest first, fetched into `cache`. Errors say what is missing.
pub fn of_debian(cache: &Path) -> Result<Vec<Kernel>, String> {
    let mut found: Vec<Kernel> = Vec::new();
    for (release, count, has_criu) in RELEASES {
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
            let criu = if has_criu { Some(criu::fetch(&apt)?) } else { None };
            found.push(Kernel { criu, ..apt.fetch(name)? });
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
    Ok(Kernel { release: name.clone(), name, image, modules, criu: None })
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

impl Apt {
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
        Ok(Kernel { name: series(package), release, image, modules, criu: None })
    }
}

/// Those of [`MODULES`] that are somewhere in `from`, uncompressed in `to`.
fn unpacked(from: &Path, to: &Path) -> Result<Vec<PathBuf>, String> {
    fs::create_dir_all(to).unwrap();
    let mut found = Vec::new();
    for module in MODULES {
        let there = to.join(format!("{module}.ko"));
        if !there.exists() {
            let names = [format!("{module}.ko"), format!("{module}.ko.xz")];
            let Some(path) = names.iter().find_map(|name| find(from, name)) else { continue };
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            if path.extension().is_some_and(|extension| extension == "xz") {
                run(Command::new("xz").arg("-d").arg(to.join(path.file_name().unwrap())))?;
            }
        }
        found.push(there);
    }
    Ok(found)
}
