//! The terminals of a tree: which there are, who is asked about each, how they are recorded.
//!
//! A terminal is known by its index. It is asked through the master where the tree holds it, and through its slave by the leader of the
//! session that it controls, since the kernel answers TIOCGSID and TIOCGPGRP on a slave to that session only. A leader without a
//! descriptor on its terminal opens /dev/tty for the question.
//!
//! A terminal that is no pseudoterminal is known by its device number instead, see `device`.
//!
//! Refused: a pty of another devpts instance than ours.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::files::dump::{FileIds, Table, fetch};
use crate::files::kind::{Descriptor, FileKind};
use crate::files::ofd::{OfdId, OfdTable};
use crate::ids::{Pid, PtyIndex, RemoteFd, Sid};
use crate::image::{Images, pb};
use crate::inject::batch::{Answers, Arg, Batch, CallId};
use crate::procfs::{Device, Stat};
use crate::sys::tty;

use super::device;
use super::state::{self, Peer};

/// CRIU's id of a peer's record.
pub fn info_id(index: PtyIndex, peer: Peer) -> u32 {
    index.0 * 2 + u32::from(peer == Peer::Master)
}

/// Hung up slaves are known by their old index with this added: the index itself may be another terminal's by now. All with the same old
/// index are alike.
pub const HUNG_UP: u32 = 1 << 20;

/// The index that a terminal has, or had when it was alive.
pub fn real_index(known_as: u32) -> u32 {
    known_as & (HUNG_UP - 1)
}

/// Whether it is the slave of a master that was closed.
pub fn is_hung_up(known_as: u32) -> bool {
    (HUNG_UP..device::DEVICE).contains(&known_as)
}

/// Where it is opened.
pub fn path_of(known_as: u32) -> String {
    match device::device_of(known_as) {
        Some(device) => device::node(device).to_string_lossy().into_owned(),
        None => format!("/dev/pts/{}", real_index(known_as)),
    }
}

/// Major numbers of pty slaves: 136 to 143, 256 indexes each... the minor has 20 bits since, so that one major is enough.
const SLAVE_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

/// /dev/ptmx as st_rdev: 5:2.
const MASTER: u64 = 0x502;

/// What the terminal with a device number is known as: a slave by its index.
pub fn index_of(device: Device) -> Option<PtyIndex> {
    match SLAVE_MAJORS.contains(&device.major) {
        true => Some(PtyIndex((device.major - 136) * 256 + device.minor)),
        false => device::known_as(device),
    }
}

/// What the tree has of one terminal.
#[derive(Debug, Default)]
struct Presence {
    master: Option<(Pid, RemoteFd)>,
    /// The master tells that nobody has the slave open any more.
    other_closed: bool,
    slaves: Vec<(Pid, RemoteFd)>,
    /// Leader of the session that it controls.
    leader: Option<Pid>,
    members: Vec<Pid>,
}

/// The terminals of a tree, before they are asked.
#[derive(Debug)]
pub struct Terminals {
    present: BTreeMap<PtyIndex, Presence>,
    /// The peer that each open file description leads to.
    pub of_ofd: BTreeMap<OfdId, (PtyIndex, Peer)>,
}

impl Terminals {
    /// Finds all terminals that a descriptor or a controlling terminal of the tree leads to.
    pub fn find(tables: &[Table<'_>], ofds: &OfdTable, stats: &[&Stat]) -> Result<Terminals> {
        let mut terminals = Terminals { present: BTreeMap::new(), of_ofd: BTreeMap::new() };
        let ours = std::fs::metadata("/dev/pts").map(|metadata| Device::from_stat(metadata.dev())).ok();
        for table in tables {
            for descriptor in table.descriptors.iter().filter(|descriptor| descriptor.kind.is_tty()) {
                let (index, peer) = match descriptor.kind {
                    FileKind::TtyMaster { index: Some(index) } => (index, Peer::Master),
                    FileKind::TtyMaster { index: None } => (master_index(table, descriptor.fd)?, Peer::Master),
                    FileKind::TtySlave { index } => (index, Peer::Slave),
                    FileKind::HungUpSlave { index } => (PtyIndex(HUNG_UP + index.0), Peer::Slave),
                    FileKind::Console => (device_index(table, descriptor, Device { major: 5, minor: 1 })?, Peer::Slave),
                    FileKind::Vt { number } => {
                        (device_index(table, descriptor, Device { major: 4, minor: number })?, Peer::Slave)
                    }
                    FileKind::Serial(device) => (device_index(table, descriptor, device)?, Peer::Slave),
                    _ => (slave_index(table, descriptor.fd)?, Peer::Slave),
                };
                let of_instance = matches!(descriptor.kind, FileKind::TtySlave { .. } | FileKind::HungUpSlave { .. });
                if of_instance && ours.is_some_and(|ours| ours != descriptor.stat.device) {
                    return Err(other_instance(table, descriptor.fd, index));
                }
                let presence = terminals.present.entry(index).or_default();
                match peer {
                    Peer::Master if presence.master.is_none() => {
                        presence.master = Some((table.pid, descriptor.fd));
                        presence.other_closed = other_closed(table, descriptor.fd)?;
                    }
                    Peer::Master => {}
                    Peer::Slave => presence.slaves.push((table.pid, descriptor.fd)),
                }
                let id = ofds.get(&(table.pid, descriptor.fd)).ok_or(Error::Gone(table.pid))?;
                terminals.of_ofd.insert(*id, (index, peer));
            }
        }
        for stat in stats {
            let Some(index) = stat.tty.and_then(index_of) else { continue };
            let presence = terminals.present.entry(index).or_default();
            presence.members.push(stat.pid);
            if stat.session == Sid(stat.pid.0) {
                presence.leader = Some(stat.pid);
            }
        }
        Ok(terminals)
    }

    /// Adds to a task's batch the questions that it is the one to answer.
    pub fn ask(&self, pid: Pid, batch: &mut Batch) -> Vec<Asked> {
        let mut asked = Vec::new();
        for (index, presence) in &self.present {
            if let Some((_, fd)) = presence.master.filter(|(holder, _)| *holder == pid) {
                asked.push(Asked::new(batch, *index, Peer::Master, fd.0.into()));
            }
            match presence.slave_asker() {
                Some((asker, Some(fd))) if asker == pid => {
                    asked.push(Asked::new(batch, *index, Peer::Slave, fd.0.into()));
                }
                Some((asker, None)) if asker == pid => {
                    let opened = super::reader::open_ctty(batch);
                    let one = Asked::new(batch, *index, Peer::Slave, Arg::from(opened));
                    batch.call(libc::SYS_close, [opened.into()]);
                    asked.push(Asked { opened: Some(opened), ..one });
                }
                _ => {}
            }
        }
        asked
    }
}

impl Presence {
    /// The task that answers for the slave, and the descriptor to ask; none where the slave is not in the tree at all.
    fn slave_asker(&self) -> Option<(Pid, Option<RemoteFd>)> {
        let by = |pid: Pid| self.slaves.iter().find(|(holder, _)| *holder == pid).map(|(_, fd)| *fd);
        if let Some(leader) = self.leader {
            return Some((leader, by(leader)));
        }
        let member = self.slaves.iter().find(|(holder, _)| self.members.contains(holder));
        member.or(self.slaves.first()).map(|(holder, fd)| (*holder, Some(*fd)))
    }
}

fn master_index(table: &Table<'_>, fd: RemoteFd) -> Result<PtyIndex> {
    use std::os::fd::AsFd;
    let copy = fetch(table, fd)?;
    let index = tty::get_index(copy.as_fd()).during("asking for the index", Subject::Fd(table.pid, fd.0))?;
    Ok(PtyIndex(index))
}

/// Whether the slave was open once and is not now. A master whose slave was never opened does not show that.
fn other_closed(table: &Table<'_>, fd: RemoteFd) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let copy = fetch(table, fd)?;
    let mut fds = [PollFd::new(copy.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).during("asking a master for its slave", Subject::Fd(table.pid, fd.0))?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

fn slave_index(table: &Table<'_>, fd: RemoteFd) -> Result<PtyIndex> {
    use std::os::fd::AsFd;
    let copy = fetch(table, fd)?;
    let device = tty::get_device(copy.as_fd()).ok().and_then(|raw| Device::from_tty_nr(raw as i32));
    device.and_then(index_of).ok_or_else(|| {
        Error::Refused(Refusal {
            pid: table.pid,
            comm: table.comm.to_owned(),
            fd: Some(fd.0),
            kind: "a terminal that is hung up and was opened as /dev/tty".into(),
            remedy: "end the program that holds it, then dump again".into(),
        })
    })
}

/// Refuses what a program has open under a number that leads to another terminal each time, or to none that is known.
fn device_index(table: &Table<'_>, descriptor: &Descriptor, device: Device) -> Result<PtyIndex> {
    let known = Some(device).filter(|device| *device != Device { major: 4, minor: 0 }).and_then(device::known_as);
    known.ok_or_else(|| {
        Error::Refused(Refusal {
            pid: table.pid,
            comm: table.comm.to_owned(),
            fd: Some(descriptor.fd.0),
            kind: format!("{}, which is no terminal of a session", descriptor.kind),
            remedy: "end the program that holds it, then dump again".into(),
        })
    })
}

fn other_instance(table: &Table<'_>, fd: RemoteFd, index: PtyIndex) -> Error {
    Error::Refused(Refusal {
        pid: table.pid,
        comm: table.comm.to_owned(),
        fd: Some(fd.0),
        kind: format!("pseudoterminal {index} of another devpts instance"),
        remedy: "run ptyagent inside that container".into(),
    })
}

/// A terminal that a task's batch asks about.
#[derive(Debug)]
pub struct Asked {
    index: PtyIndex,
    peer: Peer,
    opened: Option<CallId>,
    state: state::Asked,
    device: Option<device::Asked>,
}

impl Asked {
    fn new(batch: &mut Batch, index: PtyIndex, peer: Peer, fd: Arg) -> Asked {
        let state = state::ask(batch, fd);
        let device = device::device_of(index.0).map(|_| device::ask(batch, fd));
        Asked { index, peer, opened: None, state, device }
    }

    /// Adds what the task answered.
    pub fn answers(&self, answers: &Answers, records: &mut Records) -> Result<()> {
        if let Some(opened) = self.opened {
            answers.result(opened).during("opening /dev/tty in the session leader", Subject::None)?;
        }
        let mut record = self.state.answers(answers, self.peer)?;
        if let Some(device) = &self.device {
            device.answers(answers, &mut record);
        }
        records.insert((self.index, self.peer), record);
        Ok(())
    }
}

/// What each peer answered.
pub type Records = BTreeMap<(PtyIndex, Peer), pb::PtyagentTty>;

/// Adds all terminals and the controlling terminals of all sessions to the images.
pub fn record(images: &mut Images, ids: &mut FileIds, terminals: &Terminals, records: Records) {
    let mut records = records;
    for (index, presence) in &terminals.present {
        let slave = records.remove(&(*index, Peer::Slave));
        let master = records.remove(&(*index, Peer::Master));
        let hung_up = slave.as_ref().is_some_and(|slave| slave.hung_up == Some(true));
        // A living slave whose master nobody in the tree holds has it outside: a terminal emulator, sshd, a multiplexer.
        let external = master.is_none() && !hung_up && device::device_of(index.0).is_none();
        let fresh = presence.slaves.is_empty() && presence.leader.is_none() && !presence.other_closed;
        let master = master.map(|master| pb::PtyagentTty { slave_never_opened: fresh.then_some(true), ..master });
        let master = master.or_else(|| {
            external.then(|| pb::PtyagentTty { master: Some(true), external: Some(true), ..Default::default() })
        });
        for (peer, record) in [(Peer::Master, master), (Peer::Slave, slave)] {
            if let Some(record) = record {
                add(images, *index, peer, record);
            }
        }
        let Some(leader) = presence.leader else { continue };
        let own = images.own.get_or_insert_default();
        let info = info_id(*index, Peer::Slave);
        let foreground_pgrp =
            own.ttys.iter().find(|tty| tty.tty_info_id == Some(info)).and_then(|tty| tty.foreground_pgrp);
        own.cttys.push(pb::PtyagentCtty {
            id: Some(ids.fresh()),
            sid: Some(leader.0 as u32),
            tty_info_id: Some(info),
            members: presence.members.iter().map(|pid| pid.0 as u32).collect(),
            foreground_pgrp,
        });
        for task in
            own.tasks.iter_mut().filter(|task| presence.members.iter().any(|pid| Some(pid.0 as u32) == task.pid))
        {
            task.ctty_tty_id = Some(info);
        }
    }
}

fn add(images: &mut Images, index: PtyIndex, peer: Peer, mut record: pb::PtyagentTty) {
    let id = info_id(index, peer);
    record.tty_info_id = Some(id);
    let real = real_index(index.0);
    let path = path_of(index.0);
    if record.hung_up != Some(true) {
        if let Ok(node) = std::fs::metadata(&path) {
            record.rdev = Some(if peer == Peer::Master { MASTER } else { node.rdev() });
            record.dev = Some(node.dev());
            (record.uid, record.gid) = (Some(node.uid()), Some(node.gid()));
            record.mode = Some(node.mode() & 0o7777);
        }
    }
    record.path = Some(if peer == Peer::Master { b"/dev/ptmx".to_vec() } else { path.into_bytes() });
    let device = device::device_of(index.0);
    let pty = device.is_none().then_some(pb::TtyPtyEntry { index: real });
    let kind = device.map_or(pb::TtyType::Pty, device::kind);
    images.tty_info.push(pb::TtyInfoEntry { r#type: kind as i32, pty, ..state::to_info(&record, id, real) });
    images.own.get_or_insert_default().ttys.push(record);
}
