//! Unix sockets: pairs, servers, datagrams, what waits in them, peers that are gone or outside.

use crate::run;
use crate::scene::{DGRAM, SEQPACKET, STREAM, Sockets, at, unix, words};
use crate::support::{self, Arg, dump, dump_running, restore, room};

#[test]
fn pairs_with_what_is_unread() {
    run(|all| {
        all.stage.fork("root", "child");
        all.pair("root", STREAM, [10, 11]);
        all.pair("root", DGRAM, [12, 13]);
        all.pair("root", SEQPACKET | libc::SOCK_NONBLOCK, [14, 15]);
        let long: Vec<u8> = (0..60_000u32).map(|n| (n * 7 % 251) as u8).collect();
        all.send("root", 10, b"one");
        all.send("root", 10, &long);
        // Not an empty one: a second look cannot see it, and a dump that lets the session run on is a look.
        for bytes in [&b"first"[..], b"second", b"third"] {
            all.send("root", 12, bytes);
            all.send("root", 13, bytes);
            all.send("root", 14, bytes);
        }
        all.send("root", 10, b"end");
        all.shutdown("root", 10, libc::SHUT_WR);
        all.pair("child", STREAM, [20, 21]);
        all.round_trips();
        assert_eq!(all.receive("root", 11, 100_000), [b"one", long.as_slice(), b"end"].concat());
        assert_eq!(all.receive("root", 11, 10), b"");
        for fd in [12, 13, 15] {
            for bytes in [&b"first"[..], b"second", b"third"] {
                assert_eq!(all.receive("root", fd, 100), bytes);
            }
            assert_eq!(all.error("root", fd), -i64::from(libc::EAGAIN));
        }
        all.send("root", 11, b"back");
        assert_eq!(all.receive("root", 10, 10), b"back");
        all.send("child", 20, b"mine");
        assert_eq!(all.receive("child", 21, 10), b"mine");
    });
}

#[test]
fn named_servers_with_clients() {
    run(|all| {
        all.stage.fork("root", "server");
        all.stage.fork("root", "client");
        let path = all.stage.dir.join("socket");
        let hidden = unix(format!("\0ptyagent-{}", std::process::id()).as_bytes());
        for (first, kind, address) in [(10, STREAM, at(&path)), (30, SEQPACKET, hidden.clone())] {
            all.listener("server", first, kind, &address);
            all.client("client", first, kind, &address);
            all.accept("server", first, first + 1);
            all.send("client", first, b"question");
            // Two more wait.
            all.client("client", first + 2, kind, &address);
            all.client("root", first + 3, kind, &address);
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        nix::unistd::chown(&path, Some(7.into()), Some(8.into())).unwrap();
        let node = || {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(&path).unwrap();
            (found.mode(), found.uid(), found.gid())
        };
        let before = node();
        all.round_trips();
        assert_eq!(node(), before);
        for (first, kind, address) in [(10, STREAM, at(&path)), (30, SEQPACKET, hidden)] {
            assert_eq!(all.receive("server", first + 1, 100), b"question");
            all.send("server", first + 1, b"answer");
            assert_eq!(all.receive("client", first, 100), b"answer");
            for (who, fd) in [("client", first + 2), ("root", first + 3)] {
                all.send(who, fd, who.as_bytes());
                all.accept("server", first, first + 4);
                assert_eq!(all.receive("server", first + 4, 100), who.as_bytes());
            }
            all.client("client", first + 5, kind, &address);
            all.accept("server", first, first + 5);
        }
        let left = std::fs::read_dir(all.stage.dir.path()).unwrap().flatten();
        let left: Vec<_> = left.map(|it| it.file_name()).filter(|it| it.to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn datagrams_with_names() {
    run(|all| {
        let path = all.stage.dir.join("receiver");
        all.socket("root", 10, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_bind, 10, &at(&path));
        all.socket("root", 11, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_bind, 11, &unix(b"\0ptyagent-sender"));
        all.named("root", libc::SYS_connect, 11, &at(&path));
        all.send("root", 11, b"from a friend");
        all.socket("root", 12, libc::AF_UNIX, DGRAM, 0);
        all.send_to("root", 12, b"from nobody", &at(&path));
        all.named("root", libc::SYS_bind, 12, &unix(b"\0ptyagent-gone"));
        all.send_to("root", 12, b"from the dead", &at(&path));
        all.stage.close("root", 12);
        // Relative, and its file is gone.
        all.socket("root", 13, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_bind, 13, &unix(b"relative"));
        all.socket("root", 14, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_bind, 14, &unix(b"removed"));
        std::fs::remove_file(all.stage.dir.join("removed")).unwrap();
        // Its peer is gone.
        all.socket("root", 15, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_bind, 15, &unix(b"\0ptyagent-dead"));
        all.socket("root", 16, libc::AF_UNIX, DGRAM, 0);
        all.named("root", libc::SYS_connect, 16, &unix(b"\0ptyagent-dead"));
        all.stage.close("root", 15);
        all.round_trips();
        assert!(!all.stage.dir.join("removed").exists());
        for (bytes, from) in [
            (&b"from a friend"[..], unix(b"\0ptyagent-sender")),
            (b"from nobody", Vec::new()),
            (b"from the dead", unix(b"\0ptyagent-gone")),
        ] {
            let args =
                [10.into(), room(64), Arg::Number(64), libc::MSG_DONTWAIT.into(), room(110), Arg::Both(words(&[110]))];
            let got = all.stage.must("root", libc::SYS_recvfrom, &args);
            assert_eq!(&got.rooms[0][..got.result as usize], bytes);
            // An unbound sender has since been given a name only where it was bound later.
            let len = i32::from_ne_bytes(got.rooms[2][..4].try_into().unwrap()) as usize;
            if !from.is_empty() {
                assert_eq!(&got.rooms[1][..len], from, "{}", bytes.escape_ascii());
            }
        }
        all.send("root", 11, b"again");
        assert_eq!(all.receive("root", 10, 64), b"again");
        all.send_to("root", 11, b"by name", &unix(b"relative"));
        assert_eq!(all.receive("root", 13, 64), b"by name");
        let sent = all.stage.sys("root", libc::SYS_write, &[16.into(), "x".into(), 1.into()]).result;
        assert_eq!(sent, -i64::from(libc::ECONNREFUSED));
    });
}

#[test]
fn peers_that_have_closed() {
    run(|all| {
        all.pair("root", STREAM, [10, 11]);
        all.send("root", 11, b"last words");
        all.stage.close("root", 11);
        all.pair("root", SEQPACKET, [12, 13]);
        all.send("root", 12, b"never read");
        all.stage.close("root", 13);
        all.round_trips();
        assert_eq!(all.receive("root", 10, 100), b"last words");
        assert_eq!(all.receive("root", 10, 100), b"");
        assert_eq!(all.error("root", 12), -i64::from(libc::ECONNRESET));
        assert_eq!(all.receive("root", 12, 100), b"");
    });
}

#[test]
fn what_is_outside_is_refused_or_let_go() {
    run(|all| {
        let path = all.stage.dir.join("outside");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        all.client("root", 10, STREAM, &at(&path));
        let (server, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut &server, b"greeting").unwrap();
        let (root, us) = (all.stage.pid("root"), std::process::id());
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let peer = format!("at {} process {us} ({}) holds, outside the tree;", path.display(), comm.trim_end());
        all.refused(&peer, &[]);
        all.refused(&format!("or dump with --ext-unix={root}:10 (--ext-unix for all such)"), &[]);
        all.send("root", 10, b"still here");
        let said = all.lossy("--ext-unix");
        assert!(said.contains("lost: process") && said.contains("a Unix socket whose peer"), "{said}");
        assert_eq!(all.receive("root", 10, 100), b"greeting");
        assert_eq!(all.receive("root", 10, 100), b"");
        all.stage.close("root", 10);
        // Sent before anybody has accepted it.
        all.listener("root", 11, STREAM, &unix(b"\0ptyagent-early"));
        all.client("root", 12, STREAM, &unix(b"\0ptyagent-early"));
        all.send("root", 12, b"early");
        all.refused("a connection which nobody has accepted yet", &[]);
        all.stage.close("root", 12);
        all.stage.close("root", 11);
        all.socket("root", 13, libc::AF_PACKET, libc::SOCK_RAW, 0);
        all.refused("sockets of this family are not carried", &[]);
    });
}

#[test]
fn only_what_is_chosen_is_let_go() {
    run(|all| {
        let path = all.stage.dir.join("outside");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut servers = Vec::new();
        for fd in 10..13 {
            all.client("root", fd, STREAM, &at(&path));
            servers.push(listener.accept().unwrap());
        }
        let root = all.stage.pid("root");
        let refused = |all: &mut Sockets, chosen: &str, fd: i32| {
            all.refused(&format!("descriptor {fd}: a Unix socket whose peer"), &[&format!("--ext-unix={chosen}")]);
        };
        refused(all, &format!("{root}:11,{root}:12"), 10);
        refused(all, &format!("{root}:10,{root}:12"), 11);
        for (wrong, says) in [("1:1", "the session has no descriptor 1 of process 1"), ("77", "has inode 77 open")] {
            let (root, dir) = (root.to_string(), all.stage.dir.join("wrong"));
            let chosen = format!("--ext-unix={wrong}");
            let output = support::ptyagent(&["dump", "--inject", &root, &chosen, "-D", dir.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(1));
            assert!(support::report(&output).contains(says), "{}", support::report(&output));
        }
        // One by its inode.
        let inode = all.link("root", 12).replace("socket:[", "").replace(']', "");
        let said = all.lossy(&format!("--ext-unix={root}:10,{root}:11,{inode}"));
        assert_eq!(said.matches("lost: process").count(), 3, "{said}");
        for fd in 10..13 {
            assert_eq!(all.receive("root", fd, 10), b"");
        }
    });
}

#[test]
fn empty_messages_are_kept_or_refused() {
    run(|all| {
        all.pair("root", SEQPACKET, [10, 11]);
        all.pair("root", DGRAM, [12, 13]);
        for bytes in [&b""[..], b"one", b"", b"two", b""] {
            all.send("root", 10, bytes);
            all.send("root", 12, bytes);
        }
        let root = all.stage.pid("root");
        // An inspection is no look at them.
        let inspected = support::ptyagent(&["inspect", &root.to_string()]);
        let said = String::from_utf8(inspected.stdout).unwrap();
        assert!(said.contains("unix socket seqpacket, connected to #") && said.contains("6 bytes unread"), "{said}");
        let dir = all.stage.dir.join("images");
        dump(root, &dir);
        let shown = support::ptyagent(&["show", "-D", dir.to_str().unwrap()]);
        let said = String::from_utf8(shown.stdout).unwrap();
        assert_eq!(said.matches("6 bytes unread in 5 messages").count(), 2, "{said}");
        restore(&dir);
        for fd in [11, 13] {
            for bytes in [&b""[..], b"one"] {
                assert_eq!(all.receive("root", fd, 100), bytes);
            }
        }
        // What a first dump has looked at, a second one cannot see: first in the queue, then behind others.
        dump_running(root, &all.stage.dir.join("looked"));
        for [sender, receiver] in [[10, 11], [12, 13]] {
            let hidden = "a socket with an empty message that was looked at before";
            all.refused(hidden, &[]);
            assert_eq!(all.receive("root", receiver, 100), b"");
            all.refused(hidden, &[]);
            all.send("root", sender, b"last");
            for bytes in [&b"two"[..], b"", b"last"] {
                assert_eq!(all.receive("root", receiver, 100), bytes);
            }
            assert_eq!(all.error("root", receiver), -i64::from(libc::EAGAIN));
        }
        all.round_trips();
    });
}
