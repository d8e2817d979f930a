//! Debian's `crit` reads every image in CRIU's format, and shows what was recorded.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::process::Command;

use support::{Holder, PATIENCE, TempDir, dump_running, require_from, serial, with_timeout};

/// Files of ours that are not in CRIU's format: raw pages, and what CRIU has no field for.
fn is_ours_alone(name: &str) -> bool {
    name.starts_with("pages-") || name == "ptyagent.img"
}

#[test]
fn crit_shows_every_image_of_a_session() {
    require_from("crit", "criu");
    let _serial = serial();
    with_timeout(3 * PATIENCE, || {
        let holder = Holder::bash();
        holder.type_keys("sleep 1000 &\n");
        holder.wait_for_text("[1]");
        let target = TempDir::new();
        let dir = target.path().join("images");
        dump_running(holder.pid(), &dir);
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if is_ours_alone(&name) {
                continue;
            }
            let output = Command::new("crit").arg("show").arg(&path).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && errors.is_empty(), "crit show {name}: {errors}");
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(shown["entries"].as_array().is_some_and(|entries| !entries.is_empty()), "{name} is empty");
            seen.push((name, shown));
        }
        let by_name = |name: &str| &seen.iter().find(|(seen, _)| seen == name).unwrap().1;
        let tree = by_name("pstree.img")["entries"].as_array().unwrap();
        assert_eq!(tree.len(), 3, "holder, bash and sleep");
        assert_eq!(tree[0]["pid"], holder.pid());
        let terminals = by_name("tty-info.img")["entries"].as_array().unwrap();
        assert_eq!(terminals.len(), 2, "both peers");
        assert!(terminals.iter().any(|peer| peer["sid"] == holder.leader()));
    });
}
