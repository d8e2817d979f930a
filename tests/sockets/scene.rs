//! What actors do with sockets, what they see of them, and what dumps write of them.

use std::path::Path;

use ptyagent::image::Images;

use crate::support::{self, Arg, PATIENCE, Stage, dump, dump_running, hex, restore, room, until};

pub const STREAM: i32 = libc::SOCK_STREAM;
pub const DGRAM: i32 = libc::SOCK_DGRAM;
pub const SEQPACKET: i32 = libc::SOCK_SEQPACKET;

pub fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A struct sockaddr_un; an abstract name begins with NUL.
pub fn unix(name: &[u8]) -> Vec<u8> {
    let end: &[u8] = if name.first() == Some(&0) { b"" } else { b"\0" };
    [&(libc::AF_UNIX as u16).to_ne_bytes(), name, end].concat()
}

pub fn at(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    unix(path.as_os_str().as_bytes())
}

pub fn inet(port: u16) -> Vec<u8> {
    [&(libc::AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

pub fn inet6(port: u16) -> Vec<u8> {
    let ip = std::net::Ipv6Addr::LOCALHOST.octets();
    [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[0; 4], &ip, &[0; 4]].concat()
}

/// A stage and what is compared.
pub struct Sockets {
    pub stage: Stage,
}

impl Sockets {
    pub fn new() -> Sockets {
        Sockets { stage: Stage::new() }
    }

    pub fn pair(&mut self, who: &str, kind: i32, fds: [i32; 2]) {
        let made = self.stage.must(who, libc::SYS_socketpair, &[libc::AF_UNIX.into(), kind.into(), 0.into(), room(8)]);
        let got: Vec<i32> =
            made.rooms[0].chunks_exact(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect();
        for (got, fd) in got.into_iter().zip(fds) {
            self.stage.dup(who, got, fd);
            self.stage.close(who, got);
        }
    }

    pub fn socket(&mut self, who: &str, fd: i32, family: i32, kind: i32, protocol: i32) {
        let got = self.stage.must(who, libc::SYS_socket, &[family.into(), kind.into(), protocol.into()]).result as i32;
        self.stage.dup(who, got, fd);
        self.stage.close(who, got);
    }

    pub fn named(&mut self, who: &str, nr: i64, fd: i32, address: &[u8]) {
        self.stage.must(who, nr, &[fd.into(), Arg::In(address.to_vec()), (address.len() as i32).into()]);
    }

    pub fn listener(&mut self, who: &str, fd: i32, kind: i32, address: &[u8]) {
        let family = i32::from(u16::from_ne_bytes(address[..2].try_into().unwrap()));
        self.socket(who, fd, family, kind, 0);
        self.named(who, libc::SYS_bind, fd, address);
        self.stage.must(who, libc::SYS_listen, &[fd.into(), 5.into()]);
    }

    pub fn client(&mut self, who: &str, fd: i32, kind: i32, address: &[u8]) {
        self.socket(who, fd, libc::AF_UNIX, kind, 0);
        self.named(who, libc::SYS_connect, fd, address);
    }

    pub fn accept(&mut self, who: &str, listener: i32, fd: i32) {
        let got = self.stage.must(who, libc::SYS_accept4, &[listener.into(), 0.into(), 0.into(), 0.into()]).result;
        self.stage.dup(who, got as i32, fd);
        self.stage.close(who, got as i32);
    }

    pub fn set(&mut self, who: &str, fd: i32, level: i32, name: i32, value: &[u8]) {
        let len = value.len() as i32;
        self.stage.must(
            who,
            libc::SYS_setsockopt,
            &[fd.into(), level.into(), name.into(), Arg::In(value.to_vec()), len.into()],
        );
    }

    pub fn shutdown(&mut self, who: &str, fd: i32, how: i32) {
        self.stage.must(who, libc::SYS_shutdown, &[fd.into(), how.into()]);
    }

    pub fn send(&mut self, who: &str, fd: i32, bytes: &[u8]) {
        let sent = self.stage.must(
            who,
            libc::SYS_sendto,
            &[fd.into(), bytes.into(), Arg::Number(bytes.len() as i64), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()],
        );
        assert_eq!(sent.result, bytes.len() as i64);
    }

    pub fn send_to(&mut self, who: &str, fd: i32, bytes: &[u8], to: &[u8]) {
        let arg = Arg::Number(bytes.len() as i64);
        let to_arg = Arg::In(to.to_vec());
        self.stage.must(
            who,
            libc::SYS_sendto,
            &[fd.into(), bytes.into(), arg, libc::MSG_DONTWAIT.into(), to_arg, (to.len() as i32).into()],
        );
    }

    pub fn receive(&mut self, who: &str, fd: i32, size: usize) -> Vec<u8> {
        let args = [fd.into(), room(size), Arg::Number(size as i64), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()];
        let got = self.stage.sys(who, libc::SYS_recvfrom, &args);
        assert!(got.result >= 0, "{who} {fd}: {}", got.result);
        got.rooms[0][..got.result as usize].to_vec()
    }

    /// What /proc shows of a descriptor.
    pub fn link(&self, who: &str, fd: i32) -> String {
        let path = format!("/proc/{}/fd/{fd}", self.stage.pid(who));
        std::fs::read_link(path).unwrap().to_string_lossy().into_owned()
    }

    /// The error that a read gives.
    pub fn error(&mut self, who: &str, fd: i32) -> i64 {
        let args = [fd.into(), room(16), Arg::Number(16), libc::MSG_DONTWAIT.into(), 0.into(), 0.into()];
        self.stage.sys(who, libc::SYS_recvfrom, &args).result
    }

    /// What an actor sees of every socket it has, without changing one.
    pub fn observe(&mut self) -> Vec<String> {
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
    pub fn round_trips(&mut self) {
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

    pub fn refused(&mut self, expected: &str, flags: &[&str]) {
        let (root, dir) = (self.stage.pid("root").to_string(), self.stage.dir.join("refused"));
        let args = [&["dump", "--inject", &root, "-D", dir.to_str().unwrap()], flags].concat();
        let output = support::ptyagent(&args);
        let said = support::report(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!dir.exists());
    }

    /// Dumps with a flag that lets something go, and restores; yields what was said of the loss.
    pub fn lossy(&mut self, flag: &str) -> String {
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

pub fn compare(before: &[String], after: &[String], what: &str) {
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
