//! What processes outside the session have too: refused by name, or let go of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use support::{PATIENCE, Stage, dump, ptyagent, report, restore, room, serial, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// Lets an actor open the same pipe as a descriptor of ours, under a number.
fn open(stage: &mut Stage, ours: i32, flags: i32, fd: i32) {
    let path = format!("/proc/{}/fd/{ours}", std::process::id());
    let got = stage.must("root", libc::SYS_open, &[path.as_str().into(), flags.into()]).result as i32;
    stage.dup("root", got, fd);
    stage.close("root", got);
}

fn read(stage: &mut Stage, fd: i32) -> Vec<u8> {
    let got = stage.must("root", libc::SYS_read, &[fd.into(), room(64), 64.into()]);
    got.rooms[0][..got.result as usize].to_vec()
}

#[test]
fn pipes_with_an_end_outside() {
    let _serial = serial();
    with_timeout(LIMIT, || {
        let mut stage = Stage::new();
        let ((reader, mut our_writer), (mut our_reader, writer)) = (pipe().unwrap(), pipe().unwrap());
        our_writer.write_all(b"unread").unwrap();
        open(&mut stage, reader.as_raw_fd(), libc::O_RDONLY, 10);
        open(&mut stage, writer.as_raw_fd(), libc::O_WRONLY | libc::O_NONBLOCK, 11);
        drop((reader, writer));
        let (root, us) = (stage.pid("root"), std::process::id());
        let dir = stage.dir.join("images");
        let run = |flags: &[&str]| {
            ptyagent(&[&["dump", "--inject", &root.to_string(), "-D", dir.to_str().unwrap()], flags].concat())
        };
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let first =
            format!("descriptor 10: a pipe that process {us} ({}), outside the tree, has open;", comm.trim_end());
        for (flags, says) in [
            (vec![], first.as_str()),
            (vec![], &format!("or dump with --ext-pipe={root}:10 (--ext-pipe for all such)")),
            (vec![format!("--ext-pipe={root}:10")], "descriptor 11: a pipe"),
            (vec![format!("--ext-pipe={root}:11")], "descriptor 10: a pipe"),
        ] {
            let output = run(&flags.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(output.status.code(), Some(3), "{}", report(&output));
            assert!(report(&output).contains(says), "{}", report(&output));
        }
        let output = run(&["--ext-pipe"]);
        assert!(output.status.success(), "{}", report(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.matches("outside the tree, has open: it comes back closed").count(), 2, "{said}");
        // The dead session's ends are closed for those outside, too.
        assert_eq!(our_reader.read(&mut [0; 8]).unwrap(), 0);
        let gone = || (!std::path::Path::new(&format!("/proc/{root}")).exists()).then_some(());
        until("free number", PATIENCE, gone, String::new);
        restore(&dir);
        // Now both ends are the session's: it goes through a dump without the flag.
        let again = stage.dir.join("again");
        dump(root, &again);
        restore(&again);
        assert_eq!(read(&mut stage, 10), b"unread");
        assert_eq!(read(&mut stage, 10), b"", "the end");
        let sent = stage.sys("root", libc::SYS_write, &[11.into(), "x".into(), 1.into()]).result;
        assert_eq!(sent, -i64::from(libc::EPIPE));
        drop::<File>(OwnedFd::from(our_writer).into());
    });
}
