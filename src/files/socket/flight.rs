//! Messages that wait in Unix sockets, with the descriptors that only they hold.
//!
//! A queue is looked at with MSG_PEEK by a short-lived process of ours that shares our descriptor table: it sets SO_PEEK_OFF, which walks the queue,
//! and SO_PASSCRED, which shows who sent, and puts both back even where the controller is killed meanwhile. The kernel gives us copies
//! of the descriptors in flight; they are a table of their own beside those of the processes. Messages may hold sockets that hold messages.
//!
//! An empty message that was looked at before hides from a walk. Where it is the first, a look without an offset shows it; where the sender is
//! the socket's only peer, the sender's memory tells that there is more than was seen. Both are refused. An inspection does not
//! look at messages that may be empty.
//!
//! A stream shows its borders where a reader would see them: behind the bytes that descriptors came with, and where the sender changes. Where those
//! bytes begin is found by a look that fails at the last byte.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::files::dump::{Table, fetch};
use crate::files::kind::{Descriptor, FileKind};
use crate::files::ofd::OfdTable;
use crate::ids::{Pid, RemoteFd};
use crate::image::{Images, SkPacket, pb};
use crate::sys::process::stub::StubPid;
use crate::sys::process::{errand, pidfd_open};
use crate::sys::socket::{self, Companions, Peeked, Walk};
use crate::task::survey::SurveyMode;

use super::{Sockets, is_unix};

/// One message, or a stretch of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    data: Vec<u8>,
    /// pid, uid, gid.
    credentials: Option<(i32, u32, u32)>,
    name: Vec<u8>,
    /// Numbers in our own table.
    rights: Vec<i32>,
}

/// All messages of a tree's Unix sockets.
#[derive(Debug)]
pub struct Flight {
    us: Pid,
    pidfd: OwnedFd,
    queues: BTreeMap<u64, Vec<Message>>,
    /// Memory of what each socket has sent and nobody has read, in bytes: SIOCOUTQ.
    unsent: BTreeMap<u64, u64>,
    descriptors: Vec<Descriptor>,
    /// Keeps what `descriptors` are about open.
    _files: Vec<OwnedFd>,
}

/// A socket to look into, and whose it is.
struct Source {
    copy: OwnedFd,
    inode: u64,
    pid: Pid,
    comm: String,
    fd: i32,
}

impl Flight {
    /// Looks into every Unix socket of the tables. Refused for a dump: what cannot be carried in a message.
    pub fn find(tables: &[Table<'_>], mode: SurveyMode) -> Result<Flight> {
        let us = Pid(std::process::id() as i32);
        let pidfd = pidfd_open(us).map_err(|errno| Error::of_pid("pinning", us, errno))?;
        let (queues, unsent) = Default::default();
        let mut flight = Flight { us, pidfd, queues, unsent, descriptors: Vec::new(), _files: Vec::new() };
        let mut seen = BTreeSet::new();
        let mut sources = Vec::new();
        for table in tables {
            for descriptor in table.descriptors.iter().filter(|one| is_unix_socket(one)) {
                if seen.insert(descriptor.stat.inode) {
                    let copy = fetch(table, descriptor.fd)?;
                    let (inode, comm) = (descriptor.stat.inode, table.comm.to_owned());
                    sources.push(Source { copy, inode, pid: table.pid, comm, fd: descriptor.fd.0 });
                }
            }
        }
        while let Some(source) = sources.pop() {
            let unsent = crate::sys::tty::unsent(source.copy.as_fd()).unwrap_or(0);
            flight.unsent.insert(source.inode, u64::try_from(unsent).unwrap_or(0));
            let Some(messages) = look(&source, mode)? else { continue };
            for fd in messages.iter().flat_map(|message| &message.rights).copied() {
                // A terminal would have to be held by somebody who can be asked about it.
                let Some(descriptor) = Descriptor::read(us, RemoteFd(fd))? else { continue };
                if mode == SurveyMode::Dump {
                    descriptor.refuse_unsupported(source.pid, &source.comm)?;
                    refuse_lonely(&descriptor, &source)?;
                    refuse_lonely_terminal(&descriptor, tables, &source)?;
                }
                if is_unix_socket(&descriptor) && seen.insert(descriptor.stat.inode) {
                    let copy = duplicate(fd)?;
                    let (inode, comm) = (descriptor.stat.inode, source.comm.clone());
                    sources.push(Source { copy, inode, pid: source.pid, comm, fd: source.fd });
                }
                flight.descriptors.push(descriptor);
                flight._files.push(adopt(fd));
            }
            flight.queues.insert(source.inode, messages);
        }
        Ok(flight)
    }

    /// Refuses a socket in which more waits than could be seen: its one peer has more memory out than all that was seen takes.
    pub fn refuse_hidden(&self, tables: &[Table<'_>], sockets: &Sockets<'_>) -> Result<()> {
        let all = tables.iter().flat_map(|table| table.descriptors.iter().map(move |one| (table, one)));
        for (table, descriptor) in all.filter(|(_, descriptor)| is_unix_socket(descriptor)) {
            let inode = descriptor.stat.inode;
            let Some(kind) =
                sockets.kind_with_one_peer(inode as u32).filter(|(kind, _)| *kind != libc::SOCK_STREAM as u32)
            else {
                continue;
            };
            let (kind, peer) = kind;
            let sent = self.unsent.get(&u64::from(peer)).copied().unwrap_or(0);
            let seen = self.queues.get(&inode).map_or(&[][..], Vec::as_slice);
            if sent > 0 && sent > memory_of(kind, seen)? {
                return Err(hidden(table.pid, table.comm, descriptor.fd.0));
            }
        }
        Ok(())
    }

    /// What is in flight, as one more table.
    pub fn table(&self) -> Table<'_> {
        Table {
            pid: self.us,
            seen: self.us,
            comm: "in flight",
            pidfd: self.pidfd.as_fd(),
            descriptors: &self.descriptors,
        }
    }

    /// Adds all messages to the images.
    pub fn record(&self, images: &mut Images, sockets: &Sockets<'_>, ofds: &OfdTable) -> Result<()> {
        let id_of = |inode: &u64| sockets.ids.get(&(*inode as u32));
        let mut queues: Vec<_> =
            self.queues.iter().filter_map(|(inode, queue)| Some((id_of(inode)?.0, queue))).collect();
        // Inode numbers are the kernel's to choose, and two dumps are to give the same.
        queues.sort_by_key(|(id, _)| *id);
        for (id, messages) in queues {
            self.record_queue(images, messages, id, ofds)?;
        }
        Ok(())
    }

    fn record_queue(&self, images: &mut Images, messages: &[Message], id: u32, ofds: &OfdTable) -> Result<()> {
        for message in messages {
            let id_of = |fd: &i32| ofds.get(&(self.us, RemoteFd(*fd))).map(|id| id.0).ok_or(Error::Gone(self.us));
            let rights = message.rights.iter().map(id_of).collect::<Result<Vec<u32>>>()?;
            let scm = if rights.is_empty() {
                Vec::new()
            } else {
                vec![pb::ScmEntry { r#type: libc::SCM_RIGHTS as u32, rights }]
            };
            let length = message.data.len() as u32;
            let entry = pb::SkPacketEntry { id_for: id, length, scm };
            images.sk_queues.push(SkPacket { entry, data: message.data.clone() });
            let credentials = message.credentials.map(|(pid, uid, gid)| pb::PtyagentCredentials {
                pid: Some(pid),
                uid: Some(uid),
                gid: Some(gid),
                groups: Vec::new(),
            });
            let name = (!message.name.is_empty()).then(|| message.name.clone());
            images.own.get_or_insert_default().packets.push(pb::PtyagentPacket { credentials, name });
        }
        Ok(())
    }
}

fn is_unix_socket(descriptor: &Descriptor) -> bool {
    matches!(&descriptor.kind, FileKind::Socket { protocol } if is_unix(protocol.as_deref()))
}

fn duplicate(fd: i32) -> Result<OwnedFd> {
    let file = adopt(fd);
    let copy = file.try_clone().during("copying a descriptor", Subject::None);
    std::mem::forget(file);
    copy
}

fn adopt(fd: i32) -> OwnedFd {
    socket::adopt(fd)
}

fn refuse(source: &Source, kind: impl Into<String>, remedy: &str) -> Error {
    let (pid, comm, fd) = (source.pid, source.comm.clone(), Some(source.fd));
    Error::Refused(Refusal { pid, comm, fd, kind: kind.into(), remedy: remedy.into() })
}

fn hidden(pid: Pid, comm: &str, fd: i32) -> Error {
    let kind = "a socket with an empty message that was looked at before and cannot be seen again".into();
    let remedy = "let the program receive it, then dump again".into();
    Error::Refused(Refusal { pid, comm: comm.to_owned(), fd: Some(fd), kind, remedy })
}

/// The memory that unread messages of these lengths count for with their sender: what it is for one of each in a pair of our own.
fn memory_of(kind: u32, messages: &[Message]) -> Result<u64> {
    let during = |errno| Error::sys("measuring messages", Subject::None, errno);
    let (one, other) = errand::pair(StubPid::Any, None, kind as i32).map_err(during)?;
    let mut sum = 0;
    for message in messages {
        socket::send(one.as_fd(), &message.data, Companions::default()).map_err(during)?;
        sum += u64::try_from(crate::sys::tty::unsent(one.as_fd()).map_err(during)?).unwrap_or(0);
        socket::discard(other.as_fd()).map_err(during)?;
    }
    Ok(sum)
}

/// These are made in the process that has them.
fn refuse_lonely(descriptor: &Descriptor, source: &Source) -> Result<()> {
    match descriptor.kind {
        FileKind::Epoll | FileKind::Pidfd => {
            let kind = format!("a message that waits in it holds {}", descriptor.kind);
            Err(refuse(source, kind, "let the program receive it, then dump again"))
        }
        _ => Ok(()),
    }
}

/// Only a process of the tree can be asked about a terminal.
fn refuse_lonely_terminal(descriptor: &Descriptor, tables: &[Table<'_>], source: &Source) -> Result<()> {
    if !descriptor.kind.is_tty() {
        return Ok(());
    }
    let held = || tables.iter().flat_map(|table| table.descriptors).any(|one| one.kind == descriptor.kind);
    if descriptor.kind != FileKind::DevTty && held() {
        return Ok(());
    }
    let kind = format!("a message that waits in it holds {}, which no process of the tree has open", descriptor.kind);
    Err(refuse(source, kind, "let the program receive it, then dump again"))
}

/// The messages of a socket; none where it is empty or has no queue of messages.
fn look(source: &Source, mode: SurveyMode) -> Result<Option<Vec<Message>>> {
    let copy = source.copy.as_fd();
    let number = |name| socket::number(copy, libc::SOL_SOCKET, name);
    let stream = number(libc::SO_TYPE) == Ok(libc::SOCK_STREAM);
    let mut slots = [PollFd::new(copy, PollFlags::POLLIN | PollFlags::POLLPRI)];
    poll(&mut slots, PollTimeout::ZERO).during("asking a socket for its events", Subject::None)?;
    let events = slots[0].revents().unwrap_or(PollFlags::empty());
    if number(libc::SO_ACCEPTCONN) == Ok(1)
        || !events.contains(PollFlags::POLLIN)
        || (mode == SurveyMode::Inspect && !stream)
    {
        return Ok(None);
    }
    if events.contains(PollFlags::POLLPRI) && mode == SurveyMode::Dump {
        let kind = "a socket with an out-of-band byte in it";
        return Err(refuse(source, kind, "let the program read it, then dump again"));
    }
    let unread = crate::sys::tty::unread(copy).unwrap_or(0).max(0) as usize;
    let failed = events.contains(PollFlags::POLLERR);
    if unread == 0 && (stream || failed) {
        return Ok(None);
    }
    if failed && !stream {
        // The kernel tells an error before any message, and only once: a look would take it.
        let kind = "a socket with unread messages and an error that nobody has been told";
        return Err(refuse(source, kind, "let the program read it, then dump again"));
    }
    // A queue of datagrams tells the length of the first alone.
    let mut room = unread + (64 << 10);
    let mut all: Vec<Message> = Vec::new();
    let mut seen = 0;
    let refused = |all: &[Message], error| {
        all.iter().flat_map(|message| &message.rights).for_each(|fd| drop(adopt(*fd)));
        Err(error)
    };
    while room <= 1 << 30 {
        let range = socket::Range { start: seen, limit: stream.then(|| unread - seen) };
        let read = |walk: Walk, area: &[u64]| (walk, messages(walk.count, area));
        let (walk, messages) = errand::peek(copy, range, room, read)
            .during("looking into the queue", Subject::Fd(source.pid, source.fd))?;
        seen += messages.iter().map(|message| message.data.len()).sum::<usize>();
        all.extend(messages);
        let shows_first = walk.first_is_empty == all.first().is_some_and(|message| message.data.is_empty());
        if !stream && !shows_first {
            return refused(&all, hidden(source.pid, &source.comm, source.fd));
        }
        if walk.complete {
            return Ok(Some(if stream { borders(copy, all)? } else { all }));
        }
        room *= 4;
    }
    let remedy = "let the program read it, then dump again";
    refused(&all, refuse(source, "a socket with over a gigabyte unread", remedy))
}

/// The messages in an area that [`socket::peek_all`] has filled.
fn messages(count: usize, area: &[u64]) -> Vec<Message> {
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let Some((peeked, data, next)) = Peeked::at(area, at) else { break };
        let name = peeked.name.get(..peeked.name_len as usize).filter(|name| name.len() > 2).unwrap_or_default();
        found.push(Message {
            data,
            credentials: (peeked.pid != 0).then_some((peeked.pid, peeked.uid, peeked.gid)),
            name: name.to_vec(),
            rights: peeked.fds.get(..peeked.rights as usize).unwrap_or_default().to_vec(),
        });
        at = next;
    }
    found
}

/// Splits a stretch of a stream that ends with descriptors before the bytes that these came with, which are the last of its buffers.
fn borders(copy: BorrowedFd<'_>, stretches: Vec<Message>) -> Result<Vec<Message>> {
    let mut all = Vec::new();
    let mut offset = 0;
    for stretch in stretches {
        let len = stretch.data.len();
        if stretch.rights.is_empty() || len < 2 {
            offset += len;
            all.push(stretch);
            continue;
        }
        let border = errand::last_border(copy, offset, len).during("looking into a stream", Subject::None)?;
        let (before, with) = stretch.data.split_at(border);
        if !before.is_empty() {
            all.push(Message { data: before.to_vec(), rights: Vec::new(), ..stretch.clone() });
        }
        all.push(Message { data: with.to_vec(), ..stretch.clone() });
        offset += len;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;
    use crate::sys::socket::send;

    fn source(copy: OwnedFd) -> Source {
        Source { copy, inode: 0, pid: Pid(1), comm: String::new(), fd: 0 }
    }

    fn sent(socket: BorrowedFd<'_>, bytes: &[u8], rights: &[BorrowedFd<'_>]) {
        let rights: Vec<i32> = rights.iter().map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(send(socket, bytes, Companions { rights: &rights, ..Companions::default() }), Ok(bytes.len()));
    }

    #[test]
    fn a_stream_shows_its_borders_and_keeps_everything() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        sent(one.as_fd(), b"plain", &[]);
        sent(one.as_fd(), b"with", &[file.as_fd()]);
        sent(one.as_fd(), b"more", &[]);
        sent(one.as_fd(), b"two", &[file.as_fd(), one.as_fd()]);
        sent(one.as_fd(), b"end", &[]);
        for _ in 0..2 {
            let found = look(&source(other.as_fd().try_clone_to_owned().unwrap()), SurveyMode::Dump).unwrap().unwrap();
            let shapes: Vec<(&[u8], usize)> =
                found.iter().map(|message| (message.data.as_slice(), message.rights.len())).collect();
            assert_eq!(shapes, [(&b"plain"[..], 0), (b"with", 1), (b"more", 0), (b"two", 2), (b"end", 0)]);
            assert!(found.iter().all(|message| message.credentials.is_none()));
        }
        assert_eq!(socket::number(other.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF), Ok(-1));
        assert_eq!(socket::number(other.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED), Ok(0));
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &other, &mut bytes).unwrap();
        assert_eq!(bytes, b"plainwithmoretwoend");
    }

    #[test]
    fn datagrams_keep_their_borders_and_their_senders() {
        let (one, other) = UnixDatagram::pair().unwrap();
        for bytes in [&b"first"[..], b"", b"", b"last"] {
            one.send(bytes).unwrap();
        }
        let credentials = Some((std::process::id() as i32, 1, 2));
        send(one.as_fd(), b"mine", Companions { credentials, ..Companions::default() }).unwrap();
        let found = look(&source(other.as_fd().try_clone_to_owned().unwrap()), SurveyMode::Dump).unwrap().unwrap();
        let data: Vec<&[u8]> = found.iter().map(|message| message.data.as_slice()).collect();
        assert_eq!(data, [&b"first"[..], b"", b"", b"last", b"mine"]);
        assert_eq!((found[3].credentials, found[4].credentials), (None, credentials));
    }
}
