//! Control groups of a process: its path in each hierarchy, of both versions.
//!
//! /proc/PID/cgroup tells them. On the way back the restore moves the process, just before it is let go, to where it was, if there is such a group and
//! it may be entered; otherwise the process stays where the restore is, and that is said. What limits and freezes a group is not the session's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::ids::Pid;
use crate::image::pb;
use crate::procfs::attributes::{self, Cgroup};
use crate::procfs::{Mount, mountinfo};

/// The groups as our own entries.
pub fn to_entries(groups: &[Cgroup]) -> Vec<pb::PtyagentCgroup> {
    let entry = |group: &Cgroup| pb::PtyagentCgroup {
        controllers: Some(group.controllers.clone()),
        path: Some(group.path.as_bytes().to_vec()),
    };
    let mut entries: Vec<pb::PtyagentCgroup> = groups.iter().map(entry).collect();
    // The kernel numbers hierarchies by the order of their mounts, which is another one after a boot.
    entries.sort_by(|one, other| one.controllers.cmp(&other.controllers));
    entries
}

/// Moves processes, and knows who could not be moved.
#[derive(Debug, Default)]
pub struct Mover {
    /// Read at the first process that is elsewhere than it was.
    mounts: Option<Vec<Mount>>,
    /// By the group that could not be entered: why, and whom that concerns.
    left: BTreeMap<String, (String, Vec<Pid>)>,
}

impl Mover {
    /// Moves a stopped process with its threads to its recorded groups.
    pub fn put(&mut self, pid: Pid, recorded: &[pb::PtyagentCgroup]) -> Result<()> {
        if recorded.is_empty() {
            return Ok(());
        }
        let now = to_entries(&attributes::cgroups(pid)?);
        for group in recorded.iter().filter(|group| !now.contains(group)) {
            let (controllers, path) = (group.controllers(), Path::new(OsStr::from_bytes(group.path())));
            if let Err(reason) = self.enter(pid, controllers, path) {
                let name = if controllers.is_empty() { String::new() } else { format!("{controllers}:") };
                let name = format!("{name}{}", path.display());
                self.left.entry(name).or_insert((reason, Vec::new())).1.push(pid);
            }
        }
        Ok(())
    }

    fn enter(&mut self, pid: Pid, controllers: &str, path: &Path) -> std::result::Result<(), String> {
        if self.mounts.is_none() {
            let mounts = mountinfo::read_all(Pid(std::process::id() as i32));
            self.mounts = Some(mounts.map_err(|error| error.to_string())?);
        }
        let mounts = self.mounts.iter().flatten();
        let directory = mounts.filter_map(|mount| directory(mount, controllers, path)).next();
        let directory = directory.ok_or("its hierarchy is not mounted")?;
        std::fs::write(directory.join("cgroup.procs"), pid.to_string()).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "there is none".to_owned(),
            _ => error.to_string(),
        })
    }

    /// What could not be done, one sentence each.
    pub fn notes(self) -> impl Iterator<Item = String> {
        self.left.into_iter().map(|(name, (reason, pids))| {
            let who = match pids.as_slice() {
                [one] => format!("process {one} is"),
                many => format!("{} processes, {} the first, are", many.len(), many.first().map_or(0, |pid| pid.0)),
            };
            format!("{who} not in the control group {name} ({reason}), but in that of the restore")
        })
    }
}

/// Where a mount shows a group, if it is one of its hierarchy.
fn directory(mount: &Mount, controllers: &str, path: &Path) -> Option<PathBuf> {
    let is_hierarchy = match mount.fs_type.as_str() {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => {
            let options: Vec<&str> = mount.super_options.split(',').collect();
            !controllers.is_empty() && controllers.split(',').all(|controller| options.contains(&controller))
        }
        _ => false,
    };
    let below = path.strip_prefix(&mount.root).ok().filter(|_| is_hierarchy)?;
    Some(mount.mount_point.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_below_their_mounts() {
        let text = b"1 0 0:30 /a /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            2 0 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            3 0 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mounts = mountinfo::parse(text).unwrap();
        let find = |controllers: &str, path: &str| {
            mounts.iter().find_map(|mount| directory(mount, controllers, Path::new(path)))
        };
        assert_eq!(find("cpu,cpuacct", "/a/b"), Some("/sys/fs/cgroup/cpu/b".into()));
        assert_eq!(find("cpu,cpuacct", "/ab"), None);
        assert_eq!(find("name=systemd", "/"), Some("/sys/fs/cgroup/systemd/".into()));
        assert_eq!(find("", "/user.slice"), Some("/sys/fs/cgroup/unified/user.slice".into()));
        assert_eq!(find("memory", "/"), None);
    }
}
