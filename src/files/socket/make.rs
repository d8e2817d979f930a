//! Sockets made again: connections first, then single ones, then what waits in them, then their options.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Context, Error, Result, Subject};
use crate::files::restore::{Opened, set_status_flags};
use crate::ids::Pid;
use crate::image::{Images, SkPacket, pb};
use crate::plan::sockets::SocketStep;
use crate::sys::process::errand::{self, Errand, Ids};
use crate::sys::process::stub::StubPid;
use crate::sys::socket::{self, Companions};

use super::name::{self, Name, Node};
use super::options;
use super::unix::LISTEN;
use super::{inet, netlink};

/// What sockets need while a session is made.
#[derive(Debug, Default)]
pub struct Making {
    /// Peers that are closed in the end.
    peers: BTreeMap<u32, OwnedFd>,
    /// Files that are not in their places yet.
    nodes: BTreeMap<u32, Node>,
    /// What could not be made as it was, one sentence each.
    pub notes: Vec<String>,
}

/// The images, and where files are open.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a> {
    pub images: &'a Images,
    pub slots: &'a BTreeMap<u32, i32>,
}

impl<'a> Records<'a> {
    fn unix(self, id: u32) -> Result<&'a pb::UnixSkEntry> {
        let missing = || Error::failed(format!("socket {id} is not in the images"));
        self.images.file(id).and_then(|file| file.usk.as_ref()).ok_or_else(missing)
    }

    fn own(self, id: u32) -> Result<&'a pb::PtyagentSocket> {
        let missing = || Error::failed(format!("socket {id} has no record of ours; dump again with this program"));
        self.images.own_socket(id).ok_or_else(missing)
    }

    fn slot(self, id: u32) -> Result<i32> {
        self.slots.get(&id).copied().ok_or_else(|| Error::failed(format!("file {id} has no place in the plan")))
    }
}

/// Does one step.
pub fn run(opened: &mut Opened, context: Records<'_>, step: &SocketStep) -> Result<()> {
    match *step {
        SocketStep::Open { id } => open(opened, context, id),
        SocketStep::Pair { id, peer } => pair(opened, context, id, peer),
        SocketStep::Connect { id, to } => connect(opened, context, id, to),
        SocketStep::Fill { id } => fill(opened, context, id),
        SocketStep::Finish { id } => finish(opened, context, id),
    }
}

/// Moves the files of bound sockets to their places.
pub fn publish(opened: &mut Opened, images: &Images) -> Result<()> {
    for (id, node) in std::mem::take(&mut opened.sockets.nodes) {
        let (own, file) = (images.own_socket(id), images.file(id));
        let perms = file.and_then(|file| file.usk.as_ref()).and_then(|socket| socket.file_perms.as_ref());
        let path = own.and_then(|own| own.path.as_deref()).map(|path| Path::new(OsStr::from_bytes(path)));
        node.publish(path, perms)?;
    }
    Ok(())
}

fn new_socket(kind: u32) -> Result<OwnedFd> {
    socket::socket(libc::AF_UNIX, kind as i32, 0).during("making a socket", Subject::None)
}

/// Runs an errand as whom a peer is to see. Where that process id is in use, another one has to do.
fn as_seen<T>(
    making: &mut Making,
    seen: Option<&pb::PtyagentCredentials>,
    errand: impl Fn(StubPid, Option<Ids<'_>>) -> std::result::Result<T, Errno>,
) -> Result<T> {
    let operation = "connecting a socket";
    let Some(seen) = seen else { return errand(StubPid::Any, None).during(operation, Subject::None) };
    let ids = Some(Ids { uid: seen.uid(), gid: seen.gid(), groups: &seen.groups });
    if seen.pid() <= 0 {
        return errand(StubPid::Any, ids).during(operation, Subject::None);
    }
    match errand(StubPid::Exactly(Pid(seen.pid())), ids) {
        Err(Errno::EEXIST) => {
            making.notes.push(format!(
                "process id {} is in use, so a socket that it had made shows another one in SO_PEERCRED",
                seen.pid()
            ));
            errand(StubPid::Any, ids).during(operation, Subject::None)
        }
        result => result.during(operation, Subject::None),
    }
}

/// One end of a connection.
#[derive(Clone, Copy)]
struct End<'a> {
    name: &'a [u8],
    /// What SO_PEERCRED shows to it.
    sees: Option<&'a pb::PtyagentCredentials>,
}

fn pair(opened: &mut Opened, context: Records<'_>, id: u32, peer: Option<u32>) -> Result<()> {
    let (entry, own) = (context.unix(id)?, context.own(id)?);
    let this = end_of(own);
    let other = match peer {
        Some(peer) => end_of(context.own(peer)?),
        None => End { name: own.peer_name.as_deref().unwrap_or_default(), sees: own.peercred.as_ref() },
    };
    let making = &mut opened.sockets;
    let (one, two) = if entry.r#type == libc::SOCK_DGRAM as u32 {
        datagrams(making, this, other, peer.is_none())?
    } else {
        let listens = |name: &[u8]| {
            let own = context.images.own.iter().flat_map(|own| &own.sockets);
            let listening = |id: u32| context.unix(id).is_ok_and(|socket| socket.state == LISTEN);
            own.filter(|own| own.name() == name).any(|own| listening(own.id()))
        };
        // The server's name is that of the socket that it listened on.
        match (Name::of(this.name), Name::of(other.name)) {
            (Name::None, Name::None) if this.sees == other.sees => {
                as_seen(making, this.sees, |pid, ids| errand::pair(pid, ids, entry.r#type as i32))?
            }
            (Name::None, _) => connection(making, entry.r#type, this, other)?,
            (_, Name::None) => swap(connection(making, entry.r#type, other, this)?),
            _ if listens(other.name) => connection(making, entry.r#type, this, other)?,
            _ => swap(connection(making, entry.r#type, other, this)?),
        }
    };
    opened.place(context.slot(id)?, one)?;
    match peer {
        Some(peer) => opened.place(context.slot(peer)?, two),
        None => {
            opened.sockets.peers.insert(id, two);
            Ok(())
        }
    }
}

fn end_of(own: &pb::PtyagentSocket) -> End<'_> {
    End { name: own.name.as_deref().unwrap_or_default(), sees: own.peercred.as_ref() }
}

fn swap<T>((one, other): (T, T)) -> (T, T) {
    (other, one)
}

/// A client and the socket that accepted it. The listening socket between them is gone at once; only its name stays in the server's.
fn connection(making: &mut Making, kind: u32, client: End<'_>, server: End<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let listener = new_socket(kind)?;
    let node = name::bind(listener.as_fd(), server.name, None)?;
    as_seen(making, client.sees, |pid, ids| errand::run(pid, ids, Errand::Listen(listener.as_fd(), 1)))?;
    let socket = new_socket(kind)?;
    let _own = name::bind(socket.as_fd(), client.name, None)?;
    let address = node.as_ref().map_or_else(|| server.name.to_vec(), Node::address);
    as_seen(making, server.sees, |pid, ids| errand::run(pid, ids, Errand::Connect(socket.as_fd(), &address)))?;
    let accepted = socket::accept(listener.as_fd()).during("accepting a connection", Subject::None)?;
    Ok((socket, accepted))
}

/// Two datagram sockets from socketpair(2), or one connected to another that is closed in the end.
fn datagrams(making: &mut Making, this: End<'_>, other: End<'_>, closes: bool) -> Result<(OwnedFd, OwnedFd)> {
    let kind = libc::SOCK_DGRAM;
    if this.sees.is_some() || !closes {
        let pair = as_seen(making, this.sees, |pid, ids| errand::pair(pid, ids, kind))?;
        // A file of a name that nobody can reach any more goes at once.
        _ = (name::bind(pair.0.as_fd(), this.name, None)?, name::bind(pair.1.as_fd(), other.name, None)?);
        return Ok(pair);
    }
    let (one, two) = (new_socket(kind as u32)?, new_socket(kind as u32)?);
    let node = name::bind(two.as_fd(), other.name, None)?;
    _ = name::bind(one.as_fd(), this.name, None)?;
    let address = node.as_ref().map_or_else(|| other.name.to_vec(), Node::address);
    if Name::of(other.name) != Name::None {
        socket::connect(one.as_fd(), &address).during("connecting a socket", Subject::None)?;
    }
    Ok((one, two))
}

fn open(opened: &mut Opened, context: Records<'_>, id: u32) -> Result<()> {
    let file = context.images.file(id).ok_or_else(|| Error::failed(format!("socket {id} is not in the images")))?;
    let own = context.own(id)?;
    let socket = match (&file.isk, &file.nlsk) {
        (Some(entry), _) => inet::open(entry, own)?,
        (_, Some(entry)) => netlink::open(entry, own)?,
        _ => {
            let entry = context.unix(id)?;
            let path = own.path.as_deref().map(|path| Path::new(OsStr::from_bytes(path)));
            if let Some(path) = path {
                name::refuse_living(path)?;
            }
            let socket = new_socket(entry.r#type)?;
            let node = name::bind(socket.as_fd(), own.name.as_deref().unwrap_or_default(), path)?;
            if entry.state == LISTEN {
                let backlog = entry.backlog as i32;
                let listen = |pid, ids: Option<Ids<'_>>| errand::run(pid, ids, Errand::Listen(socket.as_fd(), backlog));
                as_seen(&mut opened.sockets, own.peercred.as_ref(), listen)?;
            }
            if let Some(node) = node {
                opened.sockets.nodes.insert(id, node);
            }
            socket
        }
    };
    opened.place(context.slot(id)?, socket)
}

fn descriptor<'a>(opened: &'a Opened, context: Records<'_>, id: u32) -> Result<BorrowedFd<'a>> {
    opened.get(context.slot(id)?).ok_or_else(|| Error::failed(format!("file {id} is not open yet")))
}

/// How a bound socket is reached before its file is in its place.
fn address(opened: &Opened, context: Records<'_>, id: u32) -> Result<Vec<u8>> {
    let name = context.own(id)?.name.clone().unwrap_or_default();
    Ok(opened.sockets.nodes.get(&id).map_or(name, Node::address))
}

fn connect(opened: &mut Opened, context: Records<'_>, id: u32, to: u32) -> Result<()> {
    let address = address(opened, context, to)?;
    let waiting = context.own(to)?.waiting.iter().find(|client| client.id == Some(id));
    let socket = descriptor(opened, context, id)?.try_clone_to_owned().during("copying a descriptor", Subject::None)?;
    let seen = waiting.and_then(|client| client.peercred.as_ref());
    let connect = |pid, ids: Option<Ids<'_>>| errand::run(pid, ids, Errand::Connect(socket.as_fd(), &address));
    as_seen(&mut opened.sockets, seen, connect).map(drop)
}

/// Puts the messages of a socket back, oldest first.
fn fill(opened: &mut Opened, context: Records<'_>, id: u32) -> Result<()> {
    let entry = context.unix(id)?;
    let own = context.images.own.iter().flat_map(|own| &own.packets);
    let all = context.images.sk_queues.iter().zip(own.map(Some).chain(std::iter::repeat(None)));
    for (packet, own) in all.filter(|(packet, _)| packet.entry.id_for == id) {
        send(opened, context, entry, packet, own)?;
    }
    Ok(())
}

/// Who sends a message to a socket, and to which address.
enum Sender {
    Peer(OwnedFd),
    /// It is not connected to the receiver.
    Other(OwnedFd, Vec<u8>),
}

fn sender(opened: &Opened, context: Records<'_>, entry: &pb::UnixSkEntry, from: &[u8]) -> Result<Sender> {
    let id = entry.id;
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().during("copying a descriptor", Subject::None);
    if let Some(peer) = opened.sockets.peers.get(&id) {
        return Ok(Sender::Peer(copy(peer.as_fd())?));
    }
    let sockets = || context.images.files.iter().filter_map(|file| file.usk.as_ref());
    let peer = sockets().find(|peer| entry.peer != 0 && peer.ino == entry.peer);
    let is_datagram = entry.r#type == libc::SOCK_DGRAM as u32;
    let paired = context.own(id)?.peercred.is_some();
    if let Some(peer) = peer.filter(|_| !is_datagram || paired) {
        return Ok(Sender::Peer(copy(descriptor(opened, context, peer.id)?)?));
    }
    let to = address(opened, context, id)?;
    let by_name = |own: &&pb::PtyagentSocket| !from.is_empty() && own.name.as_deref() == Some(from);
    let own = context.images.own.iter().flat_map(|own| &own.sockets).find(by_name);
    let own = own.filter(|own| context.unix(own.id()).is_ok_and(|socket| socket.r#type == entry.r#type));
    if let Some(own) = own {
        return Ok(Sender::Other(copy(descriptor(opened, context, own.id())?)?, to));
    }
    // The sender has closed, or has no name: a datagram outlives it.
    let stranger = new_socket(entry.r#type)?;
    name::bind(stranger.as_fd(), from, None)?;
    Ok(Sender::Other(stranger, to))
}

fn send(
    opened: &Opened,
    context: Records<'_>,
    entry: &pb::UnixSkEntry,
    packet: &SkPacket,
    own: Option<&pb::PtyagentPacket>,
) -> Result<()> {
    let sender = sender(opened, context, entry, own.map(pb::PtyagentPacket::name).unwrap_or_default())?;
    let (socket, to) = match &sender {
        Sender::Peer(socket) => (socket.as_fd(), &[][..]),
        Sender::Other(socket, to) => (socket.as_fd(), to.as_slice()),
    };
    let rights = packet.entry.scm.iter().flat_map(|scm| &scm.rights).map(|id| context.slot(*id));
    let rights = rights.collect::<Result<Vec<i32>>>()?;
    let credentials = own.and_then(|own| own.credentials.as_ref()).map(|it| (it.pid(), it.uid(), it.gid()));
    let mut with = Companions { to, rights: &rights, credentials };
    let mut rest = packet.data.as_slice();
    loop {
        let sent = match send_as(socket, rest, with) {
            Err(Errno::EAGAIN) => {
                // It took many small pieces to fill the sender's buffer; the recorded size is set at the end.
                let huge = (1i32 << 29).to_ne_bytes();
                socket::set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &huge)
                    .during("enlarging a socket's buffer", Subject::None)?;
                send_as(socket, rest, with).during("filling a socket", Subject::None)?
            }
            sent => sent.during("filling a socket", Subject::None)?,
        };
        rest = rest.get(sent..).unwrap_or_default();
        with.rights = &[];
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// The kernel takes the number of any process that exists; where there is none, a process with that number sends.
fn send_as(socket: BorrowedFd<'_>, bytes: &[u8], with: Companions<'_>) -> std::result::Result<usize, Errno> {
    let Some((pid, ..)) = with.credentials else { return socket::send(socket, bytes, with) };
    match errand::run(StubPid::Exactly(Pid(pid)), None, Errand::Send(socket, bytes, with)) {
        Err(Errno::EEXIST) => socket::send(socket, bytes, with),
        sent => sent.map(|(sent, _)| sent as usize),
    }
}

fn finish(opened: &mut Opened, context: Records<'_>, id: u32) -> Result<()> {
    let own = context.own(id)?;
    let peer = opened.sockets.peers.remove(&id);
    let socket = descriptor(opened, context, id)?;
    let file = context.images.file(id);
    let (entry, flags, shutdown) = match file.map(|file| (&file.usk, &file.isk, &file.nlsk)) {
        Some((Some(unix), ..)) => (&unix.opts, unix.flags, unix.shutdown),
        Some((_, Some(inet), _)) => (&inet.opts, inet.flags, inet.shutdown),
        Some((.., Some(netlink))) => (&netlink.opts, netlink.flags, None),
        _ => return Err(Error::failed(format!("socket {id} is not in the images"))),
    };
    if peer.is_some() && own.reset == Some(true) {
        // A peer that closes with something unread resets the connection.
        socket::send(socket, b"x", Companions::default()).during("resetting a connection", Subject::None)?;
    }
    drop(peer);
    if file.is_none_or(|file| file.isk.is_none()) {
        options::restore(socket, own, entry)?;
    }
    if let Some(how) = shutdown.filter(|how| *how != 0) {
        match socket::shutdown(socket, how - 1) {
            // A peer that has closed has shut both directions down.
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => return Err(Error::sys("shutting a socket down", Subject::None, errno)),
        }
    }
    set_status_flags(socket, flags)
}
