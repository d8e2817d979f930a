//! A socket for a person and for a program: what it is, whom it is connected to, and what waits in it.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::image::text::escape;
use crate::image::{Images, SkPacket, pb};

/// States of a socket, as in include/net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const LISTEN: u32 = 10;
const RECEIVE_SHUT_DOWN: i32 = 1;
const SEND_SHUT_DOWN: i32 = 2;

/// One socket.
#[derive(Debug, Serialize)]
pub struct Socket {
    /// The id of its open file description.
    pub file: u32,
    /// unix, ipv4, ipv6, netlink or a number.
    pub family: String,
    /// stream, datagram, seqpacket, raw or a number.
    pub kind: String,
    /// listening, connected, peer closed, not accepted yet or unconnected.
    pub state: &'static str,
    /// What it is bound to: a path, `@` and an abstract name, an address with its port, the port of a netlink socket.
    pub name: Option<String>,
    /// The address that it is connected to, of an Internet or netlink socket.
    pub peer: Option<String>,
    /// The description of the socket that it is connected to, or that it waits in.
    pub peer_file: Option<u32>,
    /// SO_PEERCRED: the process id.
    pub peer_pid: Option<i32>,
    /// Directions that were shut down: receive, send.
    pub shut_down: Vec<&'static str>,
    /// Of a listening socket: how many may wait, and how many do.
    pub backlog: Option<u32>,
    pub waiting: usize,
    /// What waits to be read, in bytes. Of a datagram socket that was inspected, the length of the first message.
    pub unread_bytes: u64,
    /// Absent where nobody has looked.
    pub unread_messages: Option<usize>,
    /// The descriptions that wait in messages.
    pub descriptors_in_flight: Vec<u32>,
}

impl Socket {
    /// None where the file is no socket.
    pub fn new(images: &Images, file: &pb::FileEntry) -> Option<Socket> {
        let own = images.own_socket(file.id);
        let mut socket = match (&file.usk, &file.isk, &file.nlsk) {
            (Some(unix), ..) => Socket::unix(images, unix, own),
            (_, Some(inet), _) => Socket::inet(inet, own),
            (.., Some(netlink)) => Socket::netlink(netlink),
            _ => return None,
        };
        let messages: Vec<&SkPacket> = images.sk_queues.iter().filter(|one| one.entry.id_for == file.id).collect();
        let rights = messages.iter().flat_map(|message| &message.entry.scm).flat_map(|scm| &scm.rights);
        socket.descriptors_in_flight = rights.copied().collect();
        let bytes: u64 = messages.iter().map(|message| message.data.len() as u64).sum();
        let told = own.and_then(|own| own.unread).unwrap_or(0).into();
        socket.unread_bytes = if messages.is_empty() { told } else { bytes };
        socket.unread_messages = (!messages.is_empty() || socket.unread_bytes == 0).then_some(messages.len());
        socket.peer_pid = own.and_then(|own| own.peercred.as_ref()).and_then(|credentials| credentials.pid);
        Some(socket)
    }

    fn empty(file: u32, family: String, kind: u32, state: &'static str) -> Socket {
        Socket {
            file,
            family,
            kind: kind_name(kind),
            state,
            name: None,
            peer: None,
            peer_file: None,
            peer_pid: None,
            shut_down: Vec::new(),
            backlog: None,
            waiting: 0,
            unread_bytes: 0,
            unread_messages: None,
            descriptors_in_flight: Vec::new(),
        }
    }

    fn unix(images: &Images, entry: &pb::UnixSkEntry, own: Option<&pb::PtyagentSocket>) -> Socket {
        let others = || images.files.iter().filter_map(|file| file.usk.as_ref());
        let peer = others().find(|other| entry.peer != 0 && other.ino == entry.peer).map(|other| other.id);
        let sockets = images.own.iter().flat_map(|own| &own.sockets);
        let waits_in = |socket: &&pb::PtyagentSocket| socket.waiting.iter().any(|client| client.id == Some(entry.id));
        let waits = sockets.filter(|_| entry.id != 0).find(waits_in).and_then(|socket| socket.id);
        let state = match own.and_then(|own| own.peer_closed) {
            _ if entry.state == LISTEN => "listening",
            _ if waits.is_some() => "not accepted yet",
            Some(true) => "peer closed",
            _ if entry.peer != 0 => "connected",
            _ => "unconnected",
        };
        let path = own.and_then(|own| own.path.as_deref());
        let name = path.or((!entry.name.is_empty()).then_some(entry.name.as_slice()));
        Socket {
            name: name.map(|name| match name {
                [0, rest @ ..] => format!("@{}", escape(rest)),
                path => escape(path),
            }),
            peer_file: peer.or(waits),
            shut_down: shut_down(entry.shutdown),
            backlog: (entry.state == LISTEN).then_some(entry.backlog),
            waiting: own.map_or(0, |own| own.waiting.len()),
            ..Socket::empty(entry.id, "unix".into(), entry.r#type, state)
        }
    }

    fn inet(entry: &pb::InetSkEntry, own: Option<&pb::PtyagentSocket>) -> Socket {
        let state = match own.and_then(|own| own.peer_closed) {
            Some(true) => "peer closed",
            _ if entry.state == LISTEN => "listening",
            _ if entry.state == ESTABLISHED => "connected",
            _ => "unconnected",
        };
        let family = match entry.family as i32 {
            libc::AF_INET => "ipv4".into(),
            libc::AF_INET6 => "ipv6".into(),
            other => format!("family {other}"),
        };
        Socket {
            name: address(&entry.src_addr, entry.src_port).filter(|_| entry.src_port != 0),
            peer: address(&entry.dst_addr, entry.dst_port).filter(|_| entry.dst_port != 0),
            shut_down: shut_down(entry.shutdown),
            backlog: (entry.state == LISTEN).then_some(entry.backlog),
            ..Socket::empty(entry.id, family, entry.r#type, state)
        }
    }

    fn netlink(entry: &pb::NetlinkSkEntry) -> Socket {
        let connected = entry.dst_portid != 0 || entry.dst_group != 0;
        let state = if connected { "connected" } else { "unconnected" };
        let family = format!("netlink {}", entry.protocol);
        Socket {
            name: (entry.portid != 0).then(|| format!("port {}", entry.portid)),
            peer: connected.then(|| format!("port {} group {}", entry.dst_portid, entry.dst_group)),
            ..Socket::empty(entry.id, family, libc::SOCK_RAW as u32, state)
        }
    }

    /// In one line, without the word for the family of a Unix socket.
    pub fn summary(&self) -> String {
        let mut parts =
            vec![if self.family == "unix" { self.kind.clone() } else { format!("{} {}", self.family, self.kind) }];
        let bound = self.name.as_ref().map_or(String::new(), |name| format!(" on {name}"));
        parts.push(match (&self.peer, self.peer_file) {
            (Some(peer), _) => format!("{}{bound} to {peer}", self.state),
            (None, Some(file)) if self.state == "not accepted yet" => format!("{}{bound} by #{file}", self.state),
            (None, Some(file)) => format!("{}{bound} to #{file}", self.state),
            (None, None) => format!("{}{bound}", self.state),
        });
        parts.extend(self.backlog.map(|backlog| format!("backlog {backlog}, {} waiting", self.waiting)));
        parts.extend(self.shut_down.iter().map(|direction| format!("{direction} shut down")));
        match self.unread_messages {
            Some(0) => {}
            Some(count) if self.kind != "stream" => {
                let word = if count == 1 { "message" } else { "messages" };
                parts.push(format!("{} bytes unread in {count} {word}", self.unread_bytes));
            }
            _ => parts.push(format!("{} bytes unread", self.unread_bytes)),
        }
        if !self.descriptors_in_flight.is_empty() {
            let files: Vec<String> = self.descriptors_in_flight.iter().map(|file| format!("#{file}")).collect();
            parts.push(format!("descriptors in flight {}", files.join(" ")));
        }
        parts.join(", ")
    }
}

fn shut_down(how: Option<i32>) -> Vec<&'static str> {
    let how = how.unwrap_or(0);
    let directions = [(RECEIVE_SHUT_DOWN, "receive"), (SEND_SHUT_DOWN, "send")];
    directions.into_iter().filter(|(bit, _)| how & bit != 0).map(|(_, name)| name).collect()
}

fn kind_name(kind: u32) -> String {
    match kind as i32 {
        libc::SOCK_STREAM => "stream".into(),
        libc::SOCK_DGRAM => "datagram".into(),
        libc::SOCK_SEQPACKET => "seqpacket".into(),
        libc::SOCK_RAW => "raw".into(),
        other => format!("type {other}"),
    }
}

/// An address of one or four words, each as it lies in memory.
fn address(words: &[u32], port: u32) -> Option<String> {
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(id: u32, entry: pb::UnixSkEntry) -> pb::FileEntry {
        let usk = pb::UnixSkEntry { id, ino: 100 + id, r#type: libc::SOCK_STREAM as u32, ..entry };
        pb::FileEntry { r#type: pb::FdTypes::Unixsk as i32, id, usk: Some(usk), ..Default::default() }
    }

    fn shown(images: &Images) -> Vec<String> {
        images.files.iter().filter_map(|file| Socket::new(images, file)).map(|socket| socket.summary()).collect()
    }

    #[test]
    fn unix_sockets_are_shown_with_their_queues() {
        let files = vec![
            unix(1, pb::UnixSkEntry { state: LISTEN, backlog: 5, name: b"\0hidden".to_vec(), ..Default::default() }),
            unix(2, pb::UnixSkEntry { state: ESTABLISHED, peer: 103, shutdown: Some(2), ..Default::default() }),
            unix(3, pb::UnixSkEntry { state: ESTABLISHED, peer: 102, name: b"/run/x".to_vec(), ..Default::default() }),
            unix(4, pb::UnixSkEntry { state: ESTABLISHED, ..Default::default() }),
        ];
        let mut images = Images { files, ..Images::default() };
        let scm = vec![pb::ScmEntry { r#type: 1, rights: vec![9] }];
        let entry = pb::SkPacketEntry { id_for: 3, length: 4, scm };
        images.sk_queues.push(SkPacket { entry, data: b"four".to_vec() });
        let waiting = vec![pb::PtyagentWaiting { id: Some(4), peercred: None }];
        let sockets = vec![pb::PtyagentSocket { id: Some(1), waiting, ..Default::default() }];
        images.own = Some(pb::PtyagentEntry { sockets, ..Default::default() });
        assert_eq!(
            shown(&images),
            [
                "stream, listening on @hidden, backlog 5, 1 waiting",
                "stream, connected to #3, send shut down",
                "stream, connected on /run/x to #2, 4 bytes unread, descriptors in flight #9",
                "stream, not accepted yet by #1",
            ]
        );
    }

    #[test]
    fn addresses_are_shown_with_their_ports() {
        let isk = pb::InetSkEntry {
            id: 1,
            family: libc::AF_INET as u32,
            r#type: libc::SOCK_DGRAM as u32,
            state: ESTABLISHED,
            src_port: 53,
            dst_port: 9,
            src_addr: vec![u32::from_ne_bytes([127, 0, 0, 1])],
            dst_addr: vec![u32::from_ne_bytes([10, 0, 0, 2])],
            ..Default::default()
        };
        let file = pb::FileEntry { r#type: pb::FdTypes::Inetsk as i32, id: 1, isk: Some(isk), ..Default::default() };
        let images = Images { files: vec![file], ..Default::default() };
        assert_eq!(shown(&images), ["ipv4 datagram, connected on 127.0.0.1:53 to 10.0.0.2:9"]);
    }
}
