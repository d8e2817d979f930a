//! The control groups of a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{Prepared, asleep, dump, ptyagent, report, restore, serial, skip, subreaper, with_timeout};

/// A control group that is removed again.
struct Group(PathBuf);

impl Group {
    fn make(hierarchy: &str) -> Option<Group> {
        let path = Path::new(hierarchy).join(format!("ptyagent-test-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Group(path);
        // Of a plain directory nothing comes into being by itself.
        group.0.join("cgroup.procs").exists().then_some(group)
    }

    fn enter(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn groups_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[test]
fn a_process_is_in_its_control_groups_again() {
    const HIERARCHIES: [&str; 4] =
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/systemd"];
    let _serial = serial();
    with_timeout(Duration::from_secs(60), || {
        let _subreaper = subreaper();
        let groups: Vec<Group> = HIERARCHIES.into_iter().filter_map(Group::make).collect();
        if groups.is_empty() {
            return skip("this machine lets nobody make a control group");
        }
        let victim = Prepared::start("kinds", "signalfds");
        groups.iter().for_each(|group| group.enter(victim.pid));
        let name = format!("/ptyagent-test-{}", std::process::id());
        let before = groups_of(victim.pid);
        assert_eq!(before.matches(&name).count(), groups.len(), "{before}");
        for round in 0..2 {
            let images = victim.dir.join(&format!("images{round}"));
            dump(victim.pid, &images);
            restore(&images);
            assert_eq!(groups_of(victim.pid), before);
        }
        let images = victim.dir.join("images");
        dump(victim.pid, &images);
        let shown = report(&ptyagent(&["show", "-D", images.to_str().unwrap()]));
        assert!(shown.contains(&format!("{name}\n")), "{shown}");
        let count = groups.len();
        drop(groups);
        let output = ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
        assert!(output.status.success(), "{}", report(&output));
        let said = report(&output).matches("is not in the control group").count();
        assert_eq!(said, count, "{}", report(&output));
        assert!(!groups_of(victim.pid).contains(&name));
        asleep(victim.pid);
        victim.verify();
    });
}
