//! Round trips of what processes do with files, each checked by the process that does it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use ptyagent::image::Images;
use ptyagent::image::pb::{FileEntry, MemfdInodeEntry};
use support::{Prepared, check_images, dump, ptyagent, refused, report, restore, serial, subreaper, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// As `support::check_images`, where the next dump has to find what the one before it found.
fn check(name: &'static str) {
    check_images("files", name, 2, same_images);
}

fn same_images(dirs: &[PathBuf]) {
    fn same<T: Debug>(what: &str, before: &T, after: &T) {
        assert_eq!(format!("{before:#?}"), format!("{after:#?}"), "{what}");
    }
    let all: Vec<Images> = dirs.iter().map(|dir| Images::read(dir).unwrap()).collect();
    for pair in all.windows(2) {
        same("files", &named(&pair[0].files), &named(&pair[1].files));
        same("descriptors", &pair[0].fdinfo, &pair[1].fdinfo);
        same("locks", &pair[0].locks, &pair[1].locks);
        same("links to removed files", &pair[0].remaps, &pair[1].remaps);
        // Their content would be too long a message.
        let entries = |images: &Images| images.ghosts.values().map(|ghost| ghost.entry.clone()).collect::<Vec<_>>();
        same("removed files", &entries(&pair[0]), &entries(&pair[1]));
        // Its pages are known by the number of its inode.
        let inodes = |images: &Images| {
            let bare = |inode: &MemfdInodeEntry| MemfdInodeEntry { shmid: 0, ..inode.clone() };
            images.memfds.iter().map(bare).collect::<Vec<_>>()
        };
        same("memory files", &inodes(&pair[0]), &inodes(&pair[1]));
        assert!(pair[0].ghosts == pair[1].ghosts, "the content of removed files");
    }
}

/// The name of a file that never had one is the number of its inode, a new one after each restore.
fn named(files: &[FileEntry]) -> Vec<FileEntry> {
    let mut files = files.to_vec();
    for reg in files.iter_mut().filter_map(|file| file.reg.as_mut()) {
        if let Some(at) = reg.name.windows(2).position(|two| two == b"/#") {
            reg.name.truncate(at + 2);
        }
    }
    files
}

#[test]
fn file_locks() {
    check("locks");
}

/// Takes a victim through a round trip in which `between` meets a dead session, and a restore fails with these words.
fn fails_once<T: Send>(
    name: &'static str,
    words: &'static str,
    between: impl FnOnce(&Path) -> T + Send + 'static,
    mend: impl FnOnce(&Path, T) + Send + 'static,
) {
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start("files", name);
        let images = victim.dir.join("images");
        dump(victim.pid, &images);
        let disturbance = between(victim.dir.path());
        let output = ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", report(&output));
        assert!(report(&output).contains(words), "{}", report(&output));
        mend(victim.dir.path(), disturbance);
        restore(&images);
        victim.verify();
    });
}

/// A lock of each sort that excludes one of the victim's.
#[test]
fn lock_that_somebody_has_taken_meanwhile() {
    const WORDS: &str = "which somebody else uses now";
    let open = |dir: &Path, name: &str| File::options().read(true).write(true).open(dir.join(name)).unwrap();
    let flock = move |dir: &Path| {
        Flock::lock(open(dir, "shared"), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap()
    };
    fails_once("locks", WORDS, flock, |_, lock| drop(lock));
    let range = |start| libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    let posix = move |dir: &Path| {
        let file = open(dir, "posix");
        fcntl(&file, FcntlArg::F_SETLK(&range(7))).unwrap();
        file
    };
    fails_once("locks", WORDS, posix, |_, file| drop(file));
    let ofd = move |dir: &Path| {
        let file = open(dir, "ofd");
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range(3))).unwrap();
        file
    };
    fails_once("locks", WORDS, ofd, |_, file| drop(file));
    // A lease to write is for the only one who has the file open.
    fails_once("locks", WORDS, move |dir| open(dir, "mine"), |_, file| drop(file));
}

#[test]
fn ofd_lock_that_somebody_outside_waits_for() {
    refused("files", "ofd_lock_wanted_outside", "that a process outside the tree waits for");
}

#[test]
fn lease_on_a_file_that_is_mapped() {
    refused("files", "lease_on_mapped_file", "a lease to write on a regular file");
}

#[test]
fn lock_that_somebody_outside_waits_for() {
    refused("files", "lock_wanted_outside", "outside the tree, waits for");
}

#[test]
fn lease_that_is_being_broken() {
    refused("files", "breaking_lease", "a lock of an unknown kind");
}

#[test]
fn removed_files() {
    check("removed_files");
}

/// The new file stays, and the removed one shows another name, which is said.
#[test]
fn removed_file_whose_name_is_taken() {
    let _serial = serial();
    with_timeout(LIMIT, || {
        let _subreaper = subreaper();
        let victim = Prepared::start("files", "replaced_file");
        let images = victim.dir.join("images");
        dump(victim.pid, &images);
        let output = ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
        assert!(output.status.success(), "{}", report(&output));
        assert!(report(&output).contains("/replaced is another file now"), "{}", report(&output));
        victim.verify();
    });
}

#[test]
fn memory_of_removed_files() {
    check("removed_memory");
}

#[test]
fn program_that_was_removed() {
    check("removed_program");
}

#[test]
fn removed_file_with_another_name() {
    refused("files", "removed_with_another_name", "no longer leads to");
}

#[test]
fn large_removed_file() {
    refused("files", "large_removed_file", "--ghost-limit 1052672");
}

#[test]
fn removed_file_that_somebody_outside_has_open() {
    refused("files", "removed_file_held_outside", "outside the tree, has too");
}

#[test]
fn memory_files() {
    check("memfds");
}

#[test]
fn memory_file_that_somebody_outside_has_mapped() {
    refused("files", "memfd_held_outside", "outside the tree, has too");
}

#[test]
fn kinds_of_files_with_a_path() {
    check("paths");
}

#[test]
fn file_of_a_process() {
    refused("files", "process_file", "a file of a process in /proc");
}

/// A log that has grown is refused, and with the option it is told.
#[test]
fn file_that_has_changed() {
    let grow = |dir: &Path| {
        let mut log = File::options().append(true).open(dir.join("log")).unwrap();
        log.write_all(b"more").unwrap();
        log
    };
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start("files", "grown_log");
        let images = victim.dir.join("images");
        let args = ["restore", "--detach", "-D", images.to_str().unwrap()];
        dump(victim.pid, &images);
        grow(victim.dir.path());
        let output = ptyagent(&args);
        assert_eq!(output.status.code(), Some(1), "{}", report(&output));
        assert!(report(&output).contains("has 9 bytes now and had 5 at the dump; put"), "{}", report(&output));
        let output = ptyagent(&[&args[..], &["--allow-changed-files"]].concat());
        assert!(output.status.success(), "{}", report(&output));
        assert!(report(&output).contains("has 9 bytes now and had 5 at the dump\n"), "{}", report(&output));
        victim.verify();
    });
}

#[test]
fn file_that_is_gone() {
    let hide = |dir: &Path| std::fs::rename(dir.join("log"), dir.join("hidden")).unwrap();
    fails_once("unchanged_log", "/log is gone; put it back", hide, |dir, ()| {
        std::fs::rename(dir.join("hidden"), dir.join("log")).unwrap();
    });
}

#[test]
fn inotify_watches() {
    check("inotify");
}

#[test]
fn inotify_with_unread_events() {
    refused("files", "unread_events", "bytes of unread events");
}

#[test]
fn inotify_watch_on_what_has_no_name() {
    refused("files", "watch_on_removed_file", "on a file that no path leads to");
}
