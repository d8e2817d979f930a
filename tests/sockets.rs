//! Sockets of every kind, made and used by actors, taken through dumps and restores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::Duration;

use ptyagent::image::Images;
use support::{Arg, PATIENCE, Stage, dump, dump_running, hex, restore, room, serial, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(90);
const STREAM: i32 = libc::SOCK_STREAM;
const DGRAM: i32 = libc::SOCK_DGRAM;
const SEQPACKET: i32 = libc::SOCK_SEQPACKET;

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A struct sockaddr_un; an abstract name begins with NUL.
fn unix(name: &[u8]) -> Vec<u8> {
    let end: &[u8] = if name.first() == Some(&0) { b"" } else { b"\0" };
    [&(libc::AF_UNIX as u16).to_ne_bytes(), name, end].concat()
}

fn at(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    unix(path.as_os_str().as_bytes())
}

fn inet(port: u16) -> Vec<u8> {
    [&(libc::AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

fn inet6(port: u16) -> Vec<u8> {
    let ip = std::net::Ipv6Addr::LOCALHOST.octets();
    [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[0; 4], &ip, &[0; 4]].concat()
}

/// A stage and what is compared.
struct Sockets {
    stage: Stage,
}

impl Sockets {
    fn new() -> Sockets {
        Sockets { stage: Stage::new() }
    }

    fn pair(&mut self, who: &str, kind: i32, fds: [i32; 2]) {
        let made = self.stage.must(who, libc::SYS_socketpair, &[libc::AF_UNIX.into(), kind.into(), 0.into(), room(8)]);
        let got: Vec<i32> =
            made.rooms[0].chunks_exact(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect();
        for (got, fd) in got.into_iter().zip(fds) {
            self.stage.dup(who, got, fd);
            self.stage.close(who, got);
        }
    }

    fn socket(&mut self, who: &str, fd: i32, family: i32, kind: i32, protocol: i32) {
        let got = self.stage.must(who, libc::SYS_socket, &[family.into(), kind.into(), protocol.into()]).result as i32;
        self.stage.dup(who, got, fd);
        self.stage.close(who, got);
    }

    fn named(&mut self, who: &str, nr: i64, fd: i32, address: &[u8]) {
        self.stage.must(who, nr, &[fd.into(), Arg::In(address.to_vec()), (address.len() as i32).into()]);
    }

    fn listener(&mut self, who: &str, fd: i32, kind: i32, address: &[u8]) {
        let family = i32::from(u16::from_ne_bytes(address[..2].try_into().unwrap()));
        self.socket(who, fd, family, kind, 0);
        self.named(who, libc::SYS_bind, fd, address);
        self.stage.must(who, libc::SYS_listen, &[fd.into(), 5.into()]);
    }

    fn client(&mut self, who: &str, fd: i32, kind: i32, address: &[u8]) {
        self.socket(who, fd, libc::AF_UNIX, kind, 0);
        self.named(who, libc::SYS_connect, fd, address);
    }

    fn accept(&mut self, who: &str, listener: i32, fd: i32) {
        let got = self.stage.must(who, libc::SYS_accept4, &[listener.into(), 0.into(), 0.into(), 0.into()]).result;
        self.stage.dup(who, got as i32, fd);
        self.stage.close(who, got as i32);
    }

    fn set(&mut self, who: &str, fd: i32, level: i32, name: i32, value: &[u8]) {
        let len = value.len() as i32;
        self.stage.must(
            who,
            libc::SYS_setsockopt,
            &[fd.into(), level.into(), name.into(), Arg::In(value.to_vec()), len.into()],
        );
    }

    fn shutdown(&mut self, who: &str, fd: i32, how: i32) {
        self.stage.must(who, libc::SYS_shutdown, &[fd.into(), how.into()]);
    }

    fn send(&mut self, who: &str, fd: i32, bytes: &[u8]) {
        let sent = self.stage.must(
            who,
            libc::SYS_sendto,
            &[fd.into(), bytes.into(), Arg::Number(bytes.len() as i64), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()],
        );
        assert_eq!(sent.result, bytes.len() as i64);
    }

    fn send_to(&mut self, who: &str, fd: i32, bytes: &[u8], to: &[u8]) {
        let arg = Arg::Number(bytes.len() as i64);
        let to_arg = Arg::In(to.to_vec());
        self.stage.must(
            who,
            libc::SYS_sendto,
            &[fd.into(), bytes.into(), arg, libc::MSG_DONTWAIT.into(), to_arg, (to.len() as i32).into()],
        );
    }

    fn receive(&mut self, who: &str, fd: i32, size: usize) -> Vec<u8> {
        let args = [fd.into(), room(size), Arg::Number(size as i64), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()];
        let got = self.stage.sys(who, libc::SYS_recvfrom, &args);
        assert!(got.result >= 0, "{who} {fd}: {}", got.result);
        got.rooms[0][..got.result as usize].to_vec()
    }

    /// The error that a read gives.
    fn error(&mut self, who: &str, fd: i32) -> i64 {
        let args = [fd.into(), room(16), Arg::Number(16), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()];
        self.stage.sys(who, libc::SYS_recvfrom, &args).result
    }

    /// What an actor sees of every socket it has, without changing one.
    fn observe(&mut self) -> Vec<String> {
        let mut facts = Vec::new();
        for who in self.stage.running() {
            for (fd, _) in sockets(self.stage.pid(&who)) {
                let mut fact = format!("{who} {fd}");
                for (nr, what) in [(libc::SYS_getsockname, "name"), (libc::SYS_getpeername, "peer")] {
                    let args = [fd.into(), room(128), Arg::Both(words(&[128]))];
                    let answer = self.stage.sys(&who, nr, &args);
                    let len = i32::from_ne_bytes(answer.rooms[1][..4].try_into().unwrap()).clamp(0, 128) as usize;
                    let bytes = if answer.result == 0 { hex(&answer.rooms[0][..len]) } else { String::new() };
                    fact += &format!(" {what} {} {bytes}", answer.result);
                }
                for (level, name, size) in options() {
                    let args = [fd.into(), level.into(), name.into(), room(size), Arg::Both(words(&[size as i32]))];
                    let answer = self.stage.sys(&who, libc::SYS_getsockopt, &args);
                    fact += &format!(" {level}/{name} {} {}", answer.result, hex(&answer.rooms[0]));
                }
                let flags = self.stage.must(&who, libc::SYS_fcntl, &[fd.into(), libc::F_GETFL.into()]).result;
                let poll = self.stage.events(&who, fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP);
                let args = [fd.into(), ptyagent::sys::tty::FIONREAD.into(), room(4)];
                let unread = self.stage.sys(&who, libc::SYS_ioctl, &args);
                facts.push(format!("{fact} flags {flags:#x} poll {poll:#x} unread {:?}", unread.rooms));
            }
        }
        facts
    }

    /// Two round trips, between which nothing that the actors see may change, and the same images come out.
    fn round_trips(&mut self) {
        let before = self.observe();
        let root = self.stage.pid("root");
        let running = self.stage.dir.join("running");
        dump_running(root, &running);
        compare(&before, &self.observe(), "left running");
        for round in 0..2 {
            let dir = self.stage.dir.join(&format!("images{round}"));
            dump(root, &dir);
            restore(&dir);
            compare(&before, &self.observe(), "restored");
        }
        let [first, second] = [0, 1].map(|round| records(&self.stage.dir.join(&format!("images{round}"))));
        support::assert_same_lines(&first, &second, "two dumps");
    }

    fn refused(&mut self, expected: &str, flags: &[&str]) {
        let (root, dir) = (self.stage.pid("root").to_string(), self.stage.dir.join("refused"));
        let args = [&["dump", "--inject", &root, "-D", dir.to_str().unwrap()], flags].concat();
        let output = support::ptyagent(&args);
        let said = support::report(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!dir.exists());
    }

    /// Dumps with a flag that lets something go, and restores; yields what was said of the loss.
    fn lossy(&mut self, flag: &str) -> String {
        let (root, dir) = (self.stage.pid("root"), self.stage.dir.join("lossy"));
        let output = support::ptyagent(&["dump", "--inject", &root.to_string(), flag, "-D", dir.to_str().unwrap()]);
        assert!(output.status.success(), "{}", support::report(&output));
        let gone = || (!Path::new(&format!("/proc/{root}")).exists()).then_some(());
        until("free number", PATIENCE, gone, String::new);
        restore(&dir);
        String::from_utf8(output.stdout).unwrap()
    }
}

fn options() -> Vec<(i32, i32, usize)> {
    let socket = [
        (libc::SO_PEERCRED, 12),
        (libc::SO_PASSCRED, 4),
        (libc::SO_SNDBUF, 4),
        (libc::SO_RCVBUF, 4),
        (libc::SO_RCVTIMEO, 16),
        (libc::SO_SNDTIMEO, 16),
        (libc::SO_RCVLOWAT, 4),
        (libc::SO_LINGER, 8),
        (libc::SO_PEEK_OFF, 4),
        (libc::SO_TYPE, 4),
        (libc::SO_ACCEPTCONN, 4),
        (libc::SO_DOMAIN, 4),
        (libc::SO_PROTOCOL, 4),
        (libc::SO_REUSEADDR, 4),
        (libc::SO_KEEPALIVE, 4),
        (72, 4),
        (59, 64),
    ];
    let tcp = [(libc::TCP_NODELAY, 4), (libc::TCP_KEEPIDLE, 4), (libc::TCP_DEFER_ACCEPT, 4)];
    let socket = socket.map(|(name, size)| (libc::SOL_SOCKET, name, size));
    let tcp = tcp.map(|(name, size)| (libc::IPPROTO_TCP, name, size));
    let others = [(libc::IPPROTO_IP, libc::IP_TTL, 4), (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, 64)];
    socket.into_iter().chain(tcp).chain(others).collect()
}

fn sockets(pid: i32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let link = std::fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
        if link.starts_with("socket:") {
            found.push((entry.file_name().to_str().unwrap().parse().unwrap(), link));
        }
    }
    found.sort();
    found
}

fn compare(before: &[String], after: &[String], what: &str) {
    support::assert_same_lines(&before.join("\n"), &after.join("\n"), what);
}

/// The sockets of a directory without inode numbers, which are the kernel's to choose, and all messages.
fn records(dir: &Path) -> String {
    let images = Images::read(dir).unwrap();
    let inodes: Vec<u32> = images.files.iter().filter_map(|file| file.usk.as_ref()).map(|socket| socket.ino).collect();
    let number = |inode: u32| inodes.iter().position(|known| *known == inode).map_or(0, |at| at as u32 + 1);
    let mut text = String::new();
    for file in &images.files {
        if let Some(mut socket) = file.usk.clone() {
            (socket.ino, socket.peer) = (number(socket.ino), number(socket.peer));
            text += &format!("{socket:?}\n");
        }
        if let Some(mut socket) = file.isk.clone() {
            socket.ino = 0;
            text += &format!("{socket:?}\n");
        }
        if let Some(mut socket) = file.nlsk.clone() {
            socket.ino = 0;
            text += &format!("{socket:?}\n");
        }
    }
    let own = images.own.unwrap();
    text + &format!("{:?}\n{:?}\n{:?}\n{:?}", own.sockets, own.packets, own.losses, images.sk_queues)
}

fn run(test: impl FnOnce(&mut Sockets) + Send + 'static) {
    // Waiting for other tests is not the test's time.
    let _serial = serial();
    with_timeout(LIMIT, move || test(&mut Sockets::new()));
}

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
fn options_stay() {
    run(|all| {
        all.pair("root", STREAM, [10, 11]);
        let time = [3i64, 500_000].map(i64::to_ne_bytes).concat();
        let socket = libc::SOL_SOCKET;
        for (name, value) in [
            (libc::SO_PASSCRED, words(&[1])),
            (libc::SO_SNDBUF, words(&[30_000])),
            (libc::SO_RCVBUF, words(&[40_000])),
            (libc::SO_RCVTIMEO, time.clone()),
            (libc::SO_SNDTIMEO, time),
            (libc::SO_RCVLOWAT, words(&[3])),
            (libc::SO_LINGER, words(&[1, 7])),
            (libc::SO_PEEK_OFF, words(&[2])),
        ] {
            all.set("root", 11, socket, name, &value);
        }
        all.send("root", 10, b"abcdef");
        all.round_trips();
        let args = [11.into(), room(3), Arg::Number(3), libc::MSG_PEEK.into(), 0.into(), 0.into()];
        assert_eq!(all.stage.must("root", libc::SYS_recvfrom, &args).rooms[0], b"cde", "from the peek offset on");
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
fn internet_sockets() {
    run(|all| {
        let free = |address: &str| {
            let socket = std::net::TcpListener::bind(address).unwrap();
            socket.local_addr().unwrap().port()
        };
        let (port, port6) = (free("127.0.0.1:0"), free("[::1]:0"));
        for (fd, address) in [(10, inet(port)), (11, inet6(port6))] {
            let family = i32::from(u16::from_ne_bytes(address[..2].try_into().unwrap()));
            all.socket("root", fd, family, STREAM | libc::SOCK_NONBLOCK, 0);
            all.set("root", fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &words(&[1]));
            all.set("root", fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &words(&[1]));
            all.set("root", fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &words(&[77]));
            all.set("root", fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &words(&[1]));
            all.named("root", libc::SYS_bind, fd, &address);
            all.stage.must("root", libc::SYS_listen, &[fd.into(), 9.into()]);
            all.socket("root", fd + 10, family, DGRAM, 0);
            all.named("root", libc::SYS_bind, fd + 10, &address);
            all.socket("root", fd + 20, family, DGRAM, 0);
            all.named("root", libc::SYS_connect, fd + 20, &address);
            all.socket("root", fd + 30, family, STREAM, 0);
        }
        all.set("root", 20, libc::IPPROTO_IP, libc::IP_TTL, &words(&[9]));
        all.round_trips();
        for first in [10, 11] {
            all.send("root", first + 20, b"datagram");
            assert_eq!(all.receive("root", first + 10, 100), b"datagram");
        }
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        all.accept("root", 10, 50);
        all.refused("a TCP connection with 127.0.0.1:", &[]);
        let said = all.lossy("--tcp-close");
        assert!(said.contains("lost: process") && said.contains("a TCP connection"), "{said}");
        assert_eq!(all.error("root", 50), -i64::from(libc::ECONNRESET));
        assert_eq!(all.receive("root", 50, 1), b"");
    });
}

#[test]
fn netlink_sockets() {
    run(|all| {
        all.socket("root", 10, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        let address = words(&[libc::AF_NETLINK, 0, 1]);
        all.named("root", libc::SYS_bind, 10, &address);
        all.set("root", 10, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &words(&[5]));
        all.socket("root", 11, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT);
        all.round_trips();
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
        all.refused(&format!("whose peer process {} holds", std::process::id()), &[]);
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
