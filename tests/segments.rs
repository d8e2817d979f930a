//! System V shared memory, checked by the processes that have it attached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Command;
use std::time::Duration;

use ptyagent::image::Images;
use support::{
    Prepared, check_images, dump_running, kill_session, ptyagent, refused, report, restore, same_images, serial,
    subreaper, with_timeout,
};

#[test]
fn segments_come_back_with_their_ids() {
    check_images("segments", "kinds", 3, same_images);
}

#[test]
fn a_segment_of_others_too_is_refused() {
    refused("segments", "outside", "outside the tree has attached too");
}

/// The ids of all segments.
fn ids() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    table.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
}

#[test]
fn a_segment_that_is_there_is_not_touched() {
    let _serial = serial();
    with_timeout(Duration::from_secs(60), || {
        let _subreaper = subreaper();
        let victim = Prepared::start("segments", "kinds");
        let images = victim.dir.join("images");
        dump_running(victim.pid, &images);
        kill_session(victim.pid);
        let recorded = Images::read(&images).unwrap().segments;
        let is_recorded = |id: &String| recorded.iter().any(|entry| entry.desc.id.to_string() == *id);
        let left: Vec<String> = ids().into_iter().filter(is_recorded).collect();
        assert_eq!((recorded.len(), left.len()), (6, 4));
        for (gone, id) in left.iter().enumerate() {
            let output = ptyagent(&["restore", "-D", images.to_str().unwrap(), "--detach"]);
            assert_eq!(output.status.code(), Some(1), "{}", report(&output));
            assert!(report(&output).contains("is there already; ipcrm -"), "{}", report(&output));
            let now: Vec<String> = ids().into_iter().filter(is_recorded).collect();
            assert_eq!(now, left[gone..]);
            assert!(Command::new("ipcrm").args(["-m", id]).status().unwrap().success());
        }
        restore(&images);
        victim.verify();
    });
}

#[test]
fn changes_of_semaphores_that_are_lost_are_named() {
    let _serial = serial();
    with_timeout(Duration::from_secs(60), || {
        let _subreaper = subreaper();
        let victim = Prepared::start("segments", "undo");
        let images = victim.dir.join("images");
        let pid = victim.pid.to_string();
        let output = ptyagent(&["dump", "--leave-running", "--inject", &pid, "-D", images.to_str().unwrap()]);
        assert!(output.status.success(), "{}", report(&output));
        assert_eq!(report(&output).matches("SEM_UNDO").count(), 1, "{}", report(&output));
        victim.verify();
    });
}
