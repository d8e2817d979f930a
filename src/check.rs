//! What this kernel and these privileges allow, each thing tried for real in this process or in a child that ends at once.

mod probes;

use std::fmt;

use serde::Serialize;

/// Whether a thing works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    Yes,
    Limited,
    No,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    pub name: &'static str,
    pub status: Availability,
    /// What was seen.
    pub detail: String,
    /// What the user goes without where the status is not yes: one sentence.
    pub cost: &'static str,
}

/// Everything that was tried, always the same items in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The release of the running kernel.
    pub kernel: String,
    /// Our effective user id.
    pub uid: u32,
    pub items: Vec<Item>,
}

/// Tries everything. Failures are items, not errors; no child is left behind.
pub fn check() -> CheckReport {
    let kernel =
        nix::sys::utsname::uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
    CheckReport { kernel, uid: nix::unistd::geteuid().as_raw(), items: probes::all() }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Availability::Yes => "yes",
            Availability::Limited => "limited",
            Availability::No => "no",
        })
    }
}

/// A table with one line for each item, and what it costs below those that are not fully there.
impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.items.iter().map(|item| item.name.len()).max().unwrap_or(0);
        writeln!(f, "kernel {}, user id {}", self.kernel, self.uid)?;
        for item in &self.items {
            writeln!(f, "{:width$}  {:7}  {}", item.name, item.status, item.detail)?;
            if item.status != Availability::Yes {
                writeln!(f, "{:width$}  {:7}  -> {}", "", "", item.cost)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::procfs::{Stat, tree};

    fn children_of_this_thread() -> Vec<Pid> {
        let me = Pid(std::process::id() as i32);
        let path = crate::procfs::thread_path(me, crate::ids::Tid(nix::unistd::gettid().as_raw()), "children");
        std::fs::read(path).map(|text| tree::parse_children(&text).unwrap()).unwrap_or_default()
    }

    #[test]
    fn every_item_is_reported_and_no_child_is_left() {
        let report = check();
        assert_eq!(children_of_this_thread(), []);
        assert_eq!(report.items.len(), probes::COUNT);
        assert!(report.items.iter().all(|item| !item.detail.is_empty() && item.cost.ends_with('.')));
        let names: std::collections::BTreeSet<&str> = report.items.iter().map(|item| item.name).collect();
        assert_eq!(names.len(), report.items.len());
        let text = report.to_string();
        assert!(names.iter().all(|name| text.contains(name)) && text.starts_with("kernel "), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["items"][0]["name"], report.items[0].name);
        assert!(Stat::read(Pid(std::process::id() as i32)).is_ok());
    }

    #[test]
    fn what_every_supported_kernel_has_is_found() {
        let report = check();
        for name in ["attach to a process", "pidfd_open", "executable memfd", "open a slave by its master"] {
            let item = report.items.iter().find(|item| item.name == name).unwrap();
            assert_eq!(item.status, Availability::Yes, "{item:?}");
        }
    }
}
