//! The order in which sockets are made.
//!
//! Ends of a connection come together. Datagrams are put into a queue before its socket is connected, since then only its peer may send.
//! Messages may carry any open file, so they follow when all are open; options, which could refuse them, come last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::image::{Images, pb};

use super::{Step, inconsistent};

/// States of a socket, as in include/net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const LISTEN: u32 = 10;

/// One step. All numbers are file ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketStep {
    Open {
        id: u32,
    },
    /// Both ends of a connection; without a peer, the other end is closed in the end.
    Pair {
        id: u32,
        peer: Option<u32>,
    },
    Connect {
        id: u32,
        to: u32,
    },
    /// Puts back what nobody has read yet.
    Fill {
        id: u32,
    },
    /// Options, shutdown and the end of a peer that has closed.
    Finish {
        id: u32,
    },
}

impl fmt::Display for SocketStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketStep::Open { id } => write!(f, "open socket {id}"),
            SocketStep::Pair { id, peer: Some(peer) } => write!(f, "open connected sockets {id} and {peer}"),
            SocketStep::Pair { id, peer: None } => write!(f, "open socket {id} with a peer that closes"),
            SocketStep::Connect { id, to } => write!(f, "connect socket {id} to {to}"),
            SocketStep::Fill { id } => write!(f, "put back what is unread in socket {id}"),
            SocketStep::Finish { id } => write!(f, "set the options of socket {id}"),
        }
    }
}

/// Whether a file is made by these steps.
pub fn is_socket(file: &pb::FileEntry) -> bool {
    file.usk.is_some() || file.isk.is_some() || file.nlsk.is_some()
}

fn unix(images: &Images) -> impl Iterator<Item = &pb::UnixSkEntry> {
    images.files.iter().filter_map(|file| file.usk.as_ref())
}

fn is_datagram(socket: &pb::UnixSkEntry) -> bool {
    socket.r#type == libc::SOCK_DGRAM as u32
}

/// Adds the steps that open sockets.
pub(super) fn open_steps(images: &Images, dir: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let by_inode: BTreeMap<u32, &pb::UnixSkEntry> = unix(images).map(|socket| (socket.ino, socket)).collect();
    let waiting = waiting(images);
    let mut done = BTreeSet::new();
    let mut single = Vec::new();
    for socket in unix(images) {
        if done.contains(&socket.id) {
            continue;
        }
        let own = images.own_socket(socket.id);
        let closed = own.is_some_and(|own| own.peer_closed == Some(true));
        let paired = |one: &pb::UnixSkEntry| images.own_socket(one.id).is_some_and(|own| own.peercred.is_some());
        let peer = by_inode.get(&socket.peer).copied().filter(|_| socket.peer != 0);
        let mutual = peer.filter(|peer| peer.peer == socket.ino);
        match mutual {
            Some(peer) if !is_datagram(socket) || (paired(socket) && paired(peer)) => {
                done.extend([socket.id, peer.id]);
                steps.push(Step::Socket(SocketStep::Pair { id: socket.id, peer: Some(peer.id) }));
            }
            _ if closed => steps.push(Step::Socket(SocketStep::Pair { id: socket.id, peer: None })),
            _ if is_datagram(socket) || socket.state != ESTABLISHED || waiting.contains_key(&socket.id) => {
                single.push(socket.id);
            }
            _ => return Err(inconsistent(dir, format!("the peer of socket {} is missing", socket.id))),
        }
    }
    let others = images.files.iter().filter(|file| file.isk.is_some() || file.nlsk.is_some()).map(|file| file.id);
    steps.extend(single.into_iter().chain(others).map(|id| Step::Socket(SocketStep::Open { id })));
    Ok(())
}

/// The listening socket in which each client waits.
fn waiting(images: &Images) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    for own in images.own.iter().flat_map(|own| &own.sockets) {
        found.extend(own.waiting.iter().filter_map(|client| Some((client.id?, own.id()))));
    }
    found
}

/// Adds the steps for which all files have to be open.
pub(super) fn join_steps(images: &Images, dir: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let mut add = |step| steps.push(Step::Socket(step));
    let paired: BTreeSet<u32> = unix(images)
        .filter(|socket| images.own_socket(socket.id).is_some_and(|own| own.peercred.is_some()))
        .map(|socket| socket.id)
        .collect();
    let filled: BTreeSet<u32> = images.sk_queues.iter().map(|packet| packet.entry.id_for).collect();
    for socket in unix(images).filter(|socket| is_datagram(socket) && filled.contains(&socket.id)) {
        add(SocketStep::Fill { id: socket.id });
    }
    for socket in unix(images).filter(|socket| is_datagram(socket) && socket.peer != 0) {
        let peer = unix(images).find(|peer| peer.ino == socket.peer);
        let peer = peer.ok_or_else(|| inconsistent(dir, format!("the peer of socket {} is missing", socket.id)))?;
        if peer.peer == socket.ino && paired.contains(&socket.id) && paired.contains(&peer.id) {
            continue;
        }
        if peer.name.is_empty() {
            return Err(inconsistent(dir, format!("socket {} is connected to one without a name", socket.id)));
        }
        add(SocketStep::Connect { id: socket.id, to: peer.id });
    }
    for own in images.own.iter().flat_map(|own| &own.sockets) {
        for client in own.waiting.iter().filter_map(|client| client.id) {
            if !unix(images).any(|socket| socket.id == own.id() && socket.state == LISTEN) {
                return Err(inconsistent(dir, format!("clients wait in socket {}, which does not listen", own.id())));
            }
            add(SocketStep::Connect { id: client, to: own.id() });
        }
    }
    for socket in unix(images).filter(|socket| !is_datagram(socket) && filled.contains(&socket.id)) {
        add(SocketStep::Fill { id: socket.id });
    }
    for file in images.files.iter().filter(|file| is_socket(file)) {
        add(SocketStep::Finish { id: file.id });
    }
    Ok(())
}
