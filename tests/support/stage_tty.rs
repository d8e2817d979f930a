//! Terminals on a stage: shorthands for the calls, what an actor sees of each descriptor, and reading everything out at the end.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use ptyagent::sys::tty;

use super::PATIENCE;
use super::host::until;
use super::stage::{Arg, Stage, hex, room, unhex};

/// O_RDWR | O_NOCTTY.
pub const RDWR: i32 = libc::O_RDWR | libc::O_NOCTTY;
const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;

impl Stage {
    /// Opens a path under this number, close-on-exec where the flags say so.
    pub fn open(&mut self, name: &str, fd: i32, path: &str, flags: i32) {
        let got =
            self.must(name, libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), flags.into(), 0.into()]).result;
        self.place(name, got as i32, fd, flags);
    }

    /// Moves a descriptor to this number, close-on-exec where the flags say so.
    pub fn place(&mut self, name: &str, got: i32, fd: i32, flags: i32) {
        if got != fd {
            self.must(name, libc::SYS_dup3, &[got.into(), fd.into(), (flags & libc::O_CLOEXEC).into()]);
            self.close(name, got);
        }
    }

    /// Opens and unlocks a new master; yields its index.
    pub fn master(&mut self, name: &str, fd: i32) -> u32 {
        self.open(name, fd, "/dev/ptmx", RDWR);
        self.ioctl_in(name, fd, tty::TIOCSPTLCK, &0i32.to_ne_bytes());
        self.must(name, libc::SYS_ioctl, &[fd.into(), tty::TIOCGPTN.into(), room(4)]).number()
    }

    /// A master and a slave under these numbers; yields the index.
    pub fn pair(&mut self, name: &str, master: i32, slave: i32) -> u32 {
        let index = self.master(name, master);
        self.open(name, slave, &format!("/dev/pts/{index}"), RDWR);
        index
    }

    pub fn peer(&mut self, name: &str, master: i32, fd: i32, flags: i32) {
        let got = self.must(name, libc::SYS_ioctl, &[master.into(), tty::TIOCGPTPEER.into(), flags.into()]).result;
        self.place(name, got as i32, fd, flags);
    }

    pub fn close(&mut self, name: &str, fd: i32) {
        self.must(name, libc::SYS_close, &[fd.into()]);
    }

    pub fn dup(&mut self, name: &str, from: i32, to: i32) {
        self.must(name, libc::SYS_dup2, &[from.into(), to.into()]);
    }

    pub fn ioctl(&mut self, name: &str, fd: i32, request: u64, arg: i32) {
        self.must(name, libc::SYS_ioctl, &[fd.into(), request.into(), arg.into()]);
    }

    pub fn ioctl_in(&mut self, name: &str, fd: i32, request: u64, arg: &[u8]) {
        self.must(name, libc::SYS_ioctl, &[fd.into(), request.into(), arg.into()]);
    }

    pub fn write(&mut self, name: &str, fd: i32, bytes: &[u8]) -> i64 {
        self.sys(name, libc::SYS_write, &[fd.into(), bytes.into(), Arg::Number(bytes.len() as i64)]).result
    }

    /// Writes all that fits without blocking, in pieces as a terminal emulator does.
    pub fn type_in(&mut self, name: &str, fd: i32, bytes: &[u8]) -> usize {
        let flags = self.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_GETFL.into()]).result as i32;
        self.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), (flags | libc::O_NONBLOCK).into()]);
        let mut done = 0;
        while done < bytes.len() {
            let end = bytes.len().min(done + 1000);
            let count = self.write(name, fd, &bytes[done..end]);
            if count <= 0 {
                break;
            }
            done += count as usize;
        }
        self.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), flags.into()]);
        done
    }

    /// The events that a poll without waiting shows.
    pub fn events(&mut self, name: &str, fd: i32, events: i16) -> i16 {
        let mut bytes = fd.to_ne_bytes().to_vec();
        bytes.extend(events.to_ne_bytes());
        bytes.extend([0, 0]);
        let answer = self.sys(name, libc::SYS_poll, &[Arg::Both(bytes), 1.into(), 0.into()]);
        i16::from_ne_bytes([answer.rooms[0][6], answer.rooms[0][7]])
    }

    pub fn set_termios(&mut self, name: &str, fd: i32, change: impl Fn(&mut [u32; 4], &mut Vec<u8>)) {
        let bytes = self.must(name, libc::SYS_ioctl, &[fd.into(), tty::TCGETS2.into(), room(44)]).rooms.remove(0);
        let mut flags = [0u32; 4];
        for (flag, bytes) in flags.iter_mut().zip(bytes.chunks_exact(4)) {
            *flag = u32::from_ne_bytes(bytes.try_into().unwrap());
        }
        let mut rest = bytes[16..].to_vec();
        change(&mut flags, &mut rest);
        let mut bytes: Vec<u8> = flags.iter().flat_map(|flag| flag.to_ne_bytes()).collect();
        bytes.extend(rest);
        self.ioctl_in(name, fd, tty::TCSETS2, &bytes);
    }

    /// An actor's descriptors that are terminals: number and link.
    pub fn ttys(&self, name: &str) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid(name))).unwrap().flatten() {
            let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            let link = fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
            if ["/dev/pts/", "/dev/ptmx", "/dev/tty"].iter().any(|start| link.starts_with(start)) {
                found.push((fd, link));
            }
        }
        found.sort();
        found
    }

    /// Waits until what was typed and written has been processed: the kernel's worker comes to a terminal that was written to later.
    pub fn settle(&mut self) {
        const CANARY: (i32, i32) = (198, 199);
        self.pair("root", CANARY.0, CANARY.1);
        for _ in 0..3 {
            self.write("root", CANARY.0, b"\n");
            while self.events("root", CANARY.1, libc::POLLIN) == 0 {}
            self.must("root", libc::SYS_read, &[CANARY.1.into(), room(9), 9.into()]);
        }
        self.close("root", CANARY.0);
        self.close("root", CANARY.1);
    }

    /// Everything that the actors see without taking anything, one fact to a line.
    pub fn observe(&mut self) -> Vec<String> {
        let mut facts = Vec::new();
        let terminals = self.slaves_first(&self.running());
        for (name, fd, _) in terminals.iter().chain(&terminals) {
            self.events(name, *fd, libc::POLLIN);
        }
        for name in self.names() {
            if self.stopped.contains(&name) {
                let pid = self.pid(&name);
                let stopped = || super::stat(pid).is_some_and(|stat| stat.state == 'T').then_some(());
                until("stopped actor", PATIENCE, stopped, || format!("{:?}", super::stat(pid)));
            }
            let stat = super::snapshot::stat(self.pid(&name)).unwrap();
            facts.push(format!("{name} {:?}", stat.at_rest()));
            if self.stopped.contains(&name) || self.blocked.contains(&name) {
                continue;
            }
            facts.push(format!("{name} signals {}", self.tell(&name, "signals")));
            facts.push(format!("{name} pgrp of /dev/tty {}", self.dev_tty(&name)));
            for (fd, link) in self.ttys(&name) {
                let mut fact = format!("{name} {fd} {link}");
                self.describe(&name, fd, &mut fact);
                facts.push(fact);
            }
        }
        facts
    }

    fn dev_tty(&mut self, name: &str) -> String {
        let opened =
            self.sys(name, libc::SYS_openat, &[libc::AT_FDCWD.into(), "/dev/tty".into(), RDWR.into(), 0.into()]);
        if opened.result < 0 {
            return opened.result.to_string();
        }
        let fd = opened.result as i32;
        let group = self.sys(name, libc::SYS_ioctl, &[fd.into(), tty::TIOCGPGRP.into(), room(4)]);
        self.close(name, fd);
        format!("{group:?}")
    }

    fn describe(&mut self, name: &str, fd: i32, fact: &mut String) {
        let requests: [(&str, u64, usize); 11] = [
            ("termios", tty::TCGETS2, 44),
            ("locked", tty::TIOCGLCKTRMIOS, 36),
            ("size", tty::TIOCGWINSZ, 8),
            ("sid", tty::TIOCGSID, 4),
            ("pgrp", tty::TIOCGPGRP, 4),
            ("line", tty::TIOCGETD, 4),
            ("exclusive", tty::TIOCGEXCL, 4),
            ("lock", tty::TIOCGPTLCK, 4),
            ("packet", tty::TIOCGPKT, 4),
            ("unread", tty::FIONREAD, 4),
            ("index", tty::TIOCGPTN, 4),
        ];
        let controls: [(&str, i32, Option<usize>); 5] = [
            ("fl", libc::F_GETFL, None),
            ("fd", libc::F_GETFD, None),
            ("sig", F_GETSIG, None),
            ("owner", F_GETOWN_EX, Some(8)),
            ("uids", F_GETOWNER_UIDS, Some(8)),
        ];
        let mut calls: Vec<(i64, Vec<Arg>)> = requests
            .iter()
            .map(|(_, request, size)| (libc::SYS_ioctl, vec![fd.into(), (*request).into(), room(*size)]))
            .collect();
        calls.extend(controls.iter().map(|(_, command, size)| {
            (libc::SYS_fcntl, vec![fd.into(), (*command).into(), size.map_or(Arg::Number(0), room)])
        }));
        let names = requests.iter().map(|(what, ..)| what).chain(controls.iter().map(|(what, ..)| what));
        for (what, answer) in names.zip(self.all(name, &calls)) {
            write!(fact, " {what}={}", value(answer.result, &answer.rooms)).unwrap();
        }
        let events = self.events(name, fd, libc::POLLIN | libc::POLLPRI | libc::POLLOUT);
        write!(fact, " poll={events:#x}").unwrap();
        let stat = self.sys(name, libc::SYS_fstat, &[fd.into(), room(144)]);
        if stat.result == 0 {
            let stat = &stat.rooms[0];
            // Mode, owner, group, device number.
            write!(fact, " node={} {}", hex(&stat[24..36]), hex(&stat[40..48])).unwrap();
        }
    }

    /// Takes everything out of every terminal, then types and prints on each; one fact to a line, without numbers that differ between runs.
    pub fn exhaust(&mut self) -> Vec<String> {
        let mut facts = Vec::new();
        let names = self.running();
        for name in &names {
            // A background process gets errors instead of being asked again and again.
            let stops = 1u64 << (libc::SIGTTIN - 1) | 1 << (libc::SIGTTOU - 1);
            let how = [libc::SIG_BLOCK.into(), stops.to_ne_bytes().as_slice().into(), 0.into(), 8.into()];
            self.must(name, libc::SYS_rt_sigprocmask, &how);
        }
        let alone = self.slaves_first(&names).iter().all(|(_, _, master)| *master);
        for round in ["at first", "typed", "printed"] {
            for name in &names {
                for (fd, link) in self.ttys(name) {
                    let master = link.starts_with("/dev/ptmx");
                    match (round, master) {
                        ("typed", true) => {
                            facts.push(format!("{name} {fd} takes {}", self.write_some(name, fd, b"ab\rc\x04")))
                        }
                        ("printed", false) => {
                            facts.push(format!("{name} {fd} prints {}", self.write_some(name, fd, b"x\ty\n")))
                        }
                        _ => {}
                    }
                }
            }
            if alone {
                // Where no slave is open nothing but time makes the kernel process what is on its way.
                self.sys(&names[0], libc::SYS_poll, &[0.into(), 0.into(), 30.into()]);
                self.settle();
            }
            for ((name, fd, master), reads) in self.drain_all(&names) {
                // Where one read of a master, or without lines, ends and the next begins is up to the kernel's worker.
                let text =
                    if master || !self.has_lines(&name, fd) { self.joined(&name, fd, &reads) } else { reads.join(",") };
                facts.push(format!("{name} {fd} {round}: {text}"));
            }
        }
        for name in &names {
            // Which signals came, not how often: a signal merges with one that still waits, and how many bytes the kernel's worker brings
            // at once decides how often an owner of O_ASYNC is told.
            let counts = self.tell(name, "signals");
            let told = counts.split(' ').map(|count| count.split(':').next().unwrap_or_default());
            facts.push(format!("{name} signals {}", told.collect::<Vec<_>>().join(" ")));
        }
        facts
    }

    /// All descriptors of terminals, and whether each is a master. Asking a slave for input makes the kernel process what is on its way,
    /// echoes for its master included.
    fn slaves_first(&mut self, names: &[String]) -> Vec<(String, i32, bool)> {
        let mut all = Vec::new();
        for name in names {
            all.extend(self.ttys(name).into_iter().map(|(fd, link)| (name.clone(), fd, link.starts_with("/dev/ptmx"))));
        }
        all.sort_by_key(|(_, _, master)| *master);
        all
    }

    /// Whether reads return lines.
    fn has_lines(&mut self, name: &str, fd: i32) -> bool {
        let answer = self.sys(name, libc::SYS_ioctl, &[fd.into(), tty::TCGETS2.into(), room(44)]);
        let local = u32::from_ne_bytes(answer.rooms[0][12..16].try_into().unwrap());
        answer.result < 0 || local & (libc::ICANON | libc::EXTPROC) == libc::ICANON
    }

    /// What a master gave in all; in packet mode without the zero in front of each piece, and status bytes by themselves.
    fn joined(&mut self, name: &str, fd: i32, reads: &[String]) -> String {
        let packet = self.sys(name, libc::SYS_ioctl, &[fd.into(), tty::TIOCGPKT.into(), room(4)]);
        let packet = packet.result == 0 && packet.number() != 0;
        let mut text = String::new();
        for read in reads {
            let (count, bytes) = read.split_once(':').unwrap();
            match (packet, bytes.strip_prefix("\\x00")) {
                (true, Some(bytes)) => text.push_str(bytes),
                (true, None) => write!(text, "<{bytes}>").unwrap(),
                (false, _) if count.starts_with('-') => write!(text, "<{count}>").unwrap(),
                (false, _) => text.push_str(bytes),
            }
        }
        text
    }

    fn write_some(&mut self, name: &str, fd: i32, bytes: &[u8]) -> i64 {
        if self.events(name, fd, libc::POLLOUT) == 0 {
            return 0;
        }
        self.write(name, fd, bytes)
    }

    /// What each read of each terminal returned. Some lines at a time and then what the masters have: the kernel drops echoes that find no
    /// room, and which ones is a race.
    fn drain_all(&mut self, names: &[String]) -> Vec<((String, i32, bool), Vec<String>)> {
        let mut all: Vec<_> = self.slaves_first(names).into_iter().map(|terminal| (terminal, Vec::new())).collect();
        let mut ended = BTreeSet::new();
        for _ in 0..100 {
            let mut found = false;
            for (at, ((name, fd, master), reads)) in all.iter_mut().enumerate() {
                if ended.contains(&at) {
                    continue;
                }
                let some = self.read_some(name, *fd, if *master { 100 } else { 20 });
                found |= !some.is_empty();
                if some.last().is_some_and(|read| read.starts_with('-')) {
                    ended.insert(at);
                }
                reads.extend(some);
            }
            if !found {
                break;
            }
        }
        all
    }

    /// Reads until nothing is left, and yields what each read returned.
    pub fn drain(&mut self, name: &str, fd: i32) -> Vec<String> {
        self.read_some(name, fd, 100)
    }

    /// The same, with so many reads at most.
    fn read_some(&mut self, name: &str, fd: i32, most: usize) -> Vec<String> {
        let told = self.tell(name, &format!("drain {fd} {most}"));
        let shown = |read: &str| {
            let (count, bytes) = read.split_once(':').unwrap();
            format!("{count}:{}", unhex(bytes).escape_ascii())
        };
        told.split_whitespace().map(shown).collect()
    }
}

fn value(result: i64, rooms: &[Vec<u8>]) -> String {
    match (result, rooms) {
        (0.., [room]) => hex(room),
        (0.., []) => format!("{result:#x}"),
        _ => result.to_string(),
    }
}
