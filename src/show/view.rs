//! What the files say about each task, put together.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::flags;
use super::socket::Socket;
use super::terminal::Terminal;
use crate::files::removed;
use crate::image::text::escape;
use crate::image::{Images, pb};
use crate::task::leader;

/// In bytes, on x86-64.
const PAGE_SIZE: u64 = 4096;

/// A directory, or a live session.
#[derive(Debug, Serialize)]
pub struct View {
    /// None where CRIU wrote it.
    pub format_version: Option<u32>,
    pub writer: Option<String>,
    /// Release and machine of the kernel.
    pub kernel: Option<String>,
    /// In the order of the tree: each parent before its children.
    pub tasks: Vec<Task>,
    pub terminals: Vec<Terminal>,
    pub sockets: Vec<Socket>,
    pub losses: Vec<Loss>,
    /// Files of kinds that are not known.
    pub unknown: Vec<String>,
    /// Of all stored pages.
    pub stored_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct Task {
    pub pid: u32,
    pub ppid: u32,
    pub pgid: u32,
    pub sid: u32,
    /// How far below the root; not a fact of the image.
    #[serde(skip)]
    pub depth: usize,
    pub comm: String,
    /// running, zombie, stopped, or another number.
    pub state: String,
    pub exe: Option<String>,
    pub cwd: Option<String>,
    /// Other than the root of a hierarchy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<String>,
    pub threads: Vec<u32>,
    /// The group is the foreground group of the session's terminal.
    pub foreground: bool,
    /// The id of the controlling terminal.
    pub controlling_terminal: Option<u32>,
    pub descriptors: Vec<Descriptor>,
    /// The pid of an earlier task with the same table.
    pub descriptors_shared_with: Option<u32>,
    /// Of all mappings, and of the pages that are stored.
    pub mapped_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct Descriptor {
    pub number: u32,
    pub close_on_exec: bool,
    /// The open file description: equal ids are one description.
    pub file: u32,
    pub kind: String,
    /// r, w or rw.
    pub access: Option<&'static str>,
    pub flags: Vec<String>,
    /// In bytes.
    pub position: Option<u64>,
    /// What it leads to, in words: a path, a terminal, a pipe's number.
    pub target: Option<String>,
    /// The id of the terminal.
    pub terminal: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Loss {
    pub pid: Option<u32>,
    pub fd: Option<i32>,
    pub text: String,
}

impl View {
    pub fn new(images: &Images) -> View {
        let own = images.own.as_ref();
        let data: BTreeMap<u32, &pb::TtyDataEntry> = images.tty_data.iter().map(|data| (data.tty_id, data)).collect();
        let terminal =
            |info: &pb::TtyInfoEntry| Terminal::new(info, images.own_tty(info.id), data.get(&info.id).copied());
        let terminals: Vec<Terminal> = images.tty_info.iter().map(terminal).collect();
        let loss = |loss: &pb::PtyagentLoss| Loss { pid: loss.pid, fd: loss.fd, text: loss.text().to_owned() };
        let kernel = own.and_then(|own| own.kernel.as_ref());
        View {
            format_version: own.and_then(|own| own.format_version),
            writer: own.and_then(|own| own.writer.clone()),
            kernel: kernel.map(|kernel| format!("{} {}", kernel.release(), kernel.machine()).trim().to_owned()),
            tasks: Gather::new(images, &terminals).tasks(),
            terminals,
            sockets: images.files.iter().filter_map(|file| Socket::new(images, file)).collect(),
            losses: own.iter().flat_map(|own| &own.losses).map(loss).collect(),
            unknown: images.unknown.clone(),
            stored_bytes: images.pagemaps.values().chain(images.shmem_pagemaps.values()).map(stored).sum(),
        }
    }
}

/// In bytes.
fn stored(pagemap: &crate::image::Pagemap) -> u64 {
    pagemap.stored_pages().saturating_mul(PAGE_SIZE)
}

/// The images with what has to be looked up often.
struct Gather<'a> {
    images: &'a Images,
    files: BTreeMap<u32, &'a pb::FileEntry>,
    regs: BTreeMap<u32, &'a pb::RegFileEntry>,
    ofds: BTreeMap<u32, &'a pb::PtyagentOfd>,
    terminals: BTreeMap<u32, &'a Terminal>,
}

impl<'a> Gather<'a> {
    fn new(images: &'a Images, terminals: &'a [Terminal]) -> Self {
        let own = images.own.iter().flat_map(|own| &own.ofds);
        Gather {
            images,
            files: images.files.iter().map(|file| (file.id, file)).collect(),
            regs: images.files.iter().filter_map(|file| file.reg.as_ref()).map(|reg| (reg.id, reg)).collect(),
            ofds: own.filter_map(|ofd| Some((ofd.id?, ofd))).collect(),
            terminals: terminals.iter().map(|terminal| (terminal.id, terminal)).collect(),
        }
    }

    /// Depth first. A task whose parent is not among them is a root, as is the first of a circle, which no kernel makes.
    fn tasks(&self) -> Vec<Task> {
        let pids: BTreeSet<u32> = self.images.pstree.iter().map(|task| task.pid).collect();
        let mut children: BTreeMap<u32, Vec<&pb::PstreeEntry>> = BTreeMap::new();
        for task in &self.images.pstree {
            children.entry(task.ppid).or_default().push(task);
        }
        let (mut tasks, mut seen, mut tables) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        let (roots, rest): (Vec<_>, Vec<_>) = self.images.pstree.iter().partition(|task| !pids.contains(&task.ppid));
        for root in roots.into_iter().chain(rest) {
            let mut next = vec![(root, 0)];
            while let Some((entry, depth)) = next.pop() {
                if !seen.insert(entry.pid) {
                    continue;
                }
                tasks.push(self.task(entry, depth, &mut tables));
                let below = children.get(&entry.pid).into_iter().flatten();
                next.extend(below.rev().map(|&child| (child, depth + 1)));
            }
        }
        tasks
    }

    fn task(&self, entry: &pb::PstreeEntry, depth: usize, tables: &mut BTreeMap<u32, u32>) -> Task {
        let pid = entry.pid;
        let own = self.images.own_task(pid);
        let core = self.images.cores.get(&pid).and_then(|core| core.tc.as_ref());
        let mm = self.images.mm.get(&pid);
        let path = |id: u32| self.regs.get(&id).map(|reg| escape(&reg.name));
        let table = self.images.ids.get(&pid).map(|ids| ids.files_id);
        let first = table.map_or(pid, |table| *tables.entry(table).or_insert(pid));
        let of_session = |terminal: &&&Terminal| terminal.session == Some(entry.sid) && terminal.side != Some("master");
        let terminal = self.terminals.values().find(of_session);
        let descriptors = table.filter(|_| first == pid).and_then(|table| self.images.fdinfo.get(&table));
        let mapped = mm.iter().flat_map(|mm| &mm.vmas).map(|vma| vma.end.saturating_sub(vma.start));
        Task {
            pid,
            ppid: entry.ppid,
            pgid: entry.pgid,
            sid: entry.sid,
            depth,
            comm: core.map_or(String::new(), |core| escape(&core.comm)),
            state: state(core, own) + &main_thread(self.images, pid),
            exe: own.and_then(|own| own.exe.as_deref()).map(escape).or_else(|| mm.and_then(|mm| path(mm.exe_file_id))),
            cwd: self.images.fs.get(&pid).and_then(|fs| path(fs.cwd_id)),
            cgroups: own.into_iter().flat_map(|own| &own.cgroups).filter_map(cgroup).collect(),
            threads: entry.threads.clone(),
            foreground: terminal.is_some_and(|terminal| terminal.foreground == Some(entry.pgid)),
            controlling_terminal: match own {
                Some(own) => own.ctty_tty_id,
                None => terminal.map(|terminal| terminal.id),
            },
            descriptors: descriptors.into_iter().flatten().map(|fd| self.descriptor(fd)).collect(),
            descriptors_shared_with: Some(first).filter(|&first| first != pid),
            mapped_bytes: mapped.fold(0, u64::saturating_add),
            stored_bytes: self.images.pagemaps.get(&pid).map_or(0, stored),
        }
    }

    fn descriptor(&self, fd: &pb::FdinfoEntry) -> Descriptor {
        let file = self.files.get(&fd.id).copied();
        let ofd = self.ofds.get(&fd.id).copied();
        let flags =
            ofd.and_then(|ofd| ofd.flags).or_else(|| file.and_then(|file| self.open_flags(file))).map(flags::open);
        let reg = file.and_then(|file| file.reg.as_ref());
        let kind = match pb::FdTypes::try_from(fd.r#type) {
            Ok(pb::FdTypes::Reg) if removed::remap_of(self.images, fd.id).is_some() => "removed file".to_owned(),
            Ok(kind) => kind_name(kind).to_owned(),
            Err(_) => format!("kind {}", fd.r#type),
        };
        let target =
            file.and_then(|file| self.target(file)).or_else(|| ofd.and_then(|ofd| ofd.path.as_deref()).map(escape));
        Descriptor {
            number: fd.fd,
            close_on_exec: fd.flags & 1 != 0,
            file: fd.id,
            kind,
            access: flags.as_ref().map(|(access, _)| *access),
            flags: flags.map_or(Vec::new(), |(_, names)| names),
            position: reg.map(|reg| reg.pos).or(file.and_then(|file| file.memfd.as_ref()).map(|memfd| memfd.pos)),
            target,
            terminal: file.and_then(|file| file.tty.as_ref()).map(|tty| tty.tty_info_id),
        }
    }

    fn target(&self, file: &pb::FileEntry) -> Option<String> {
        if let Some(reg) = &file.reg {
            return Some(escape(&reg.name));
        }
        if let Some(tty) = &file.tty {
            let title = self.terminals.get(&tty.tty_info_id).map(|terminal| terminal.title());
            return Some(title.unwrap_or(format!("terminal {}", tty.tty_info_id)));
        }
        let pipe = |id: u32, data: &[crate::image::PipeData]| {
            let unread = data.iter().find(|data| data.entry.pipe_id == id).map_or(0, |data| data.data.len());
            format!("{id}, {unread} bytes unread")
        };
        if let Some(end) = &file.pipe {
            return Some(pipe(end.pipe_id, &self.images.pipes_data));
        }
        if let Some(fifo) = &file.fifo {
            let path =
                fifo.regf_id.and_then(|id| self.regs.get(&id)).map_or(String::new(), |reg| escape(&reg.name) + " ");
            return Some(path + &pipe(fifo.pipe_id, &self.images.fifo_data));
        }
        Socket::new(self.images, file).map(|socket| socket.summary())
    }

    /// F_GETFL of a description, from whichever body it has; a fifo's are with its path.
    fn open_flags(&self, file: &pb::FileEntry) -> Option<u32> {
        let fifo = file.fifo.as_ref().and_then(|fifo| self.regs.get(&fifo.regf_id?));
        let bodies = [
            fifo.map(|reg| reg.flags),
            file.reg.as_ref().map(|body| body.flags),
            file.tty.as_ref().map(|body| body.flags),
            file.pipe.as_ref().map(|body| body.flags),
            file.usk.as_ref().map(|body| body.flags),
            file.isk.as_ref().map(|body| body.flags),
            file.nlsk.as_ref().map(|body| body.flags),
            file.efd.as_ref().map(|body| body.flags),
            file.epfd.as_ref().map(|body| body.flags),
            file.sgfd.as_ref().map(|body| body.flags),
            file.tfd.as_ref().map(|body| body.flags),
            file.ify.as_ref().map(|body| body.flags),
            file.memfd.as_ref().map(|body| body.flags),
            file.pidfd.as_ref().map(|body| body.flags),
        ];
        bodies.into_iter().flatten().next()
    }
}

fn state(core: Option<&pb::TaskCoreEntry>, own: Option<&pb::PtyagentTask>) -> String {
    let Some(core) = core else { return "unknown".to_owned() };
    match core.task_state {
        1 => "running".to_owned(),
        2 => {
            let status = own.and_then(|own| own.exit_status).unwrap_or(core.exit_code);
            match status & 0x7f {
                0 => format!("zombie, exited {}", status >> 8 & 0xff),
                signal => format!("zombie, killed by {}", flags::signal(signal)),
            }
        }
        3 => match own.and_then(|own| own.stop_signal).or(core.stop_signo) {
            Some(signal) => format!("stopped by {}", flags::signal(signal)),
            None => "stopped".to_owned(),
        },
        other => format!("state {other}"),
    }
}

/// What is to be said of a main thread that has ended.
fn main_thread(images: &Images, pid: u32) -> String {
    let status = leader::exit_status(images, pid);
    status.map_or(String::new(), |status| format!(", main thread exited {}", status >> 8 & 0xff))
}

fn kind_name(kind: pb::FdTypes) -> &'static str {
    use pb::FdTypes::*;
    match kind {
        Und => "undefined",
        Reg => "file",
        Pipe => "pipe",
        Fifo => "fifo",
        Inetsk => "inet socket",
        Unixsk => "unix socket",
        Eventfd => "eventfd",
        Eventpoll => "epoll",
        Inotify => "inotify",
        Signalfd => "signalfd",
        Packetsk => "packet socket",
        Tty => "terminal",
        Fanotify => "fanotify",
        Netlinksk => "netlink socket",
        Ns => "namespace",
        Tunf => "tun",
        Ext => "external",
        Timerfd => "timerfd",
        Memfd => "memfd",
        Bpfmap => "bpf map",
        Pidfd => "pidfd",
        CtlTty => "controlling terminal",
        AutofsPipe => "autofs pipe",
    }
}

/// The name of a control group, with its controllers before a colon where it is of version 1.
fn cgroup(group: &pb::PtyagentCgroup) -> Option<String> {
    let path = escape(group.path());
    let controllers = if group.controllers().is_empty() { String::new() } else { format!("{}:", group.controllers()) };
    (path != "/").then(|| controllers + &path)
}
