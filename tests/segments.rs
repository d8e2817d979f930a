//! System V shared memory, checked by the processes that have it attached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use ptyagent::image::Images;
use support::{
    PATIENCE, Prepared, check_images, dump_running, kill_session, ptyagent, refused, report, restore, same_images,
    serial, subreaper, until, with_timeout,
};

/// For this test and what it starts: ids and keys are for all of a namespace.
fn own_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
}

#[test]
fn segments_come_back_with_their_ids() {
    own_namespace();
    check_images("segments", "kinds", 3, same_images);
}

#[test]
fn a_segment_of_others_too_is_refused() {
    own_namespace();
    refused("segments", "outside", "outside the tree has attached too");
}

/// The ids of all segments.
fn ids() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    table.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
}

#[test]
fn a_segment_that_is_there_is_not_touched() {
    own_namespace();
    let _serial = serial();
    with_timeout(Duration::from_secs(60), || {
        let _subreaper = subreaper();
        let victim = Prepared::start("segments", "kinds");
        let images = victim.dir.join("images");
        dump_running(victim.pid, &images);
        kill_session(victim.pid);
        let recorded = Images::read(&images).unwrap().segments;
        let is_recorded = |id: &String| recorded.iter().any(|entry| entry.desc.id.to_string() == *id);
        let left = || -> Vec<String> { ids().into_iter().filter(is_recorded).collect() };
        assert_eq!(recorded.len(), 6);
        // Two end with the last process that has them.
        let settled = || (left().len() == 4).then(left);
        let left = until("end of the session", PATIENCE, settled, || format!("{:?}", left()));
        for (gone, id) in left.iter().enumerate() {
            let output = ptyagent(&["restore", "-D", images.to_str().unwrap(), "--detach"]);
            assert_eq!(output.status.code(), Some(1), "{}", report(&output));
            assert!(report(&output).contains("is there already; ipcrm -"), "{}", report(&output));
            let now: Vec<String> = ids().into_iter().filter(is_recorded).collect();
            assert_eq!(now, left[gone..]);
            ptyagent::sys::shm::remove(id.parse().unwrap()).unwrap();
        }
        restore(&images);
        victim.verify();
    });
}

#[test]
fn changes_of_semaphores_that_are_lost_are_named() {
    own_namespace();
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
