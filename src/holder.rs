//! Who holds the terminal of a session that was restored with --detach, until somebody attaches to it, and between those who do.
//!
//! The holder is the worker that restored the session: the parent of its root. It has the master, and a unix socket under the session's id in a
//! directory of the user's. Whoever attaches gets a copy of the master and does all the reading and writing; the holder tells when the root
//! ends, and has the terminal again when the connection ends. With nobody attached it reads what the session writes, so that
//! no program waits for a reader, and keeps the end of it for who attaches next. When the root ends the master is closed, and the kernel hangs
//! the session up.
//!
//! The protocol: one byte asks ([`ATTACH`] or [`ASK`]), [`Answer`]s come back in nine bytes each.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::Pid;
use crate::relay::{Buffer, Ending, Fill, make_nonblocking};
use crate::sys::pass;
use crate::sys::process::stub::cut_loose;
use crate::sys::process::{memfd_create, pidfd_open, wait4};

/// Asks for the terminal.
pub const ATTACH: u8 = b'a';
/// Asks whether somebody has it.
pub const ASK: u8 = b'q';

/// How much of the last output is kept for who attaches next, in bytes: some screens full.
pub const BACKLOG: usize = 32 << 10;

/// How long a client may take to say what it wants.
const GREETING: Duration = Duration::from_millis(500);
/// How long until a master without any open slave is tried again: no event tells that a slave was opened.
const REOPEN: Duration = Duration::from_millis(50);

/// What a holder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The terminal is yours: the message has the master and a file with the last output.
    Yours,
    /// This process has it (0: one of another pid namespace).
    Busy(Pid),
    /// Nobody has it.
    Free,
    /// The root of the session ended with this exit status.
    Ended(u8),
}

impl Answer {
    pub const SIZE: usize = 9;

    pub fn to_bytes(self) -> [u8; Answer::SIZE] {
        let (kind, number) = match self {
            Answer::Yours => (b'y', 0),
            Answer::Busy(pid) => (b'b', i64::from(pid.0)),
            Answer::Free => (b'f', 0),
            Answer::Ended(status) => (b'e', i64::from(status)),
        };
        let mut bytes = [kind; Answer::SIZE];
        bytes[1..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Answer> {
        let (kind, number) = bytes.split_first()?;
        let number = i64::from_le_bytes(number.try_into().ok()?);
        match kind {
            b'y' => Some(Answer::Yours),
            b'b' => i32::try_from(number).ok().map(|pid| Answer::Busy(Pid(pid))),
            b'f' => Some(Answer::Free),
            b'e' => u8::try_from(number).ok().map(Answer::Ended),
            _ => None,
        }
    }
}

/// The directory of this user's sockets, made if it is not there: `PTYAGENT_RUNTIME_DIR`, else `/run/ptyagent` for root, else `ptyagent` in
/// `XDG_RUNTIME_DIR`, else in /tmp.
pub fn directory() -> Result<PathBuf> {
    let user = nix::unistd::geteuid();
    let named = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = match (named("PTYAGENT_RUNTIME_DIR"), named("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => dir,
        _ if user.is_root() => PathBuf::from("/run/ptyagent"),
        (None, Some(dir)) => dir.join("ptyagent"),
        (None, None) => PathBuf::from(format!("/tmp/ptyagent-{user}")),
    };
    let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
    if let Err(error) = made.as_ref()
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        made.during("making the directory of attachable sessions", Subject::Path(dir.clone()))?;
    }
    let data = std::fs::symlink_metadata(&dir).during("looking at", Subject::Path(dir.clone()))?;
    match data.is_dir() && data.uid() == user.as_raw() && data.mode() & 0o077 == 0 {
        true => Ok(dir),
        false => Err(Error::failed(format!(
            "{} is not a directory of this user alone; remove it, then try again",
            dir.display()
        ))),
    }
}

/// The socket of a session that is about to be restored.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens under a name that nobody looks for.
    pub fn bind(dir: &Path) -> Result<Listener> {
        let path = dir.join(format!("new-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixListener::bind(&path).during("making a socket", Subject::Path(path.clone()))?;
        Ok(Listener { socket, path })
    }

    /// From now on it is found under the session's id.
    pub fn publish(&mut self, id: Pid) -> Result<()> {
        let path = self.path.with_file_name(id.to_string());
        std::fs::rename(&self.path, &path).during("naming a socket", Subject::Path(path.clone()))?;
        self.path = path;
        Ok(())
    }

    /// Nobody can attach any more.
    pub fn close(self) {
        // Who finds a socket without a holder removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Holds a session's terminal until its root, a child of ours, ends; yields the root's exit status.
pub fn hold(listener: Listener, master: OwnedFd, root: Pid) -> Result<u8> {
    let pidfd = pidfd_open(root).map_err(|errno| Error::of_pid("pinning", root, errno))?;
    cut_loose(&[listener.socket.as_fd(), master.as_fd(), pidfd.as_fd()]).during("cutting loose", Subject::None)?;
    make_nonblocking(master.as_fd())?;
    let mut holder = Holder { listener, master, pidfd, client: None, output: Buffer::new(2 * BACKLOG) };
    let ended = holder.serve();
    let status = ended.and_then(|()| wait4(root, 0).map_err(|errno| Error::of_pid("waiting for the end", root, errno)));
    let status = status.map(|ended| Ending::of_wait(ended.map_or(0, |(_, status)| status)).exit_status());
    if let (Some(client), Ok(status)) = (&holder.client, &status) {
        // It may have gone at this very moment.
        let _ = pass::send(client.stream.as_fd(), &Answer::Ended(*status).to_bytes(), &[]);
    }
    holder.listener.close();
    status
}

struct Holder {
    listener: Listener,
    master: OwnedFd,
    /// Of the root.
    pidfd: OwnedFd,
    client: Option<Client>,
    output: Buffer,
}

struct Client {
    stream: UnixStream,
    pid: Pid,
}

/// What one poll told.
struct Ready {
    asked: bool,
    ended: bool,
    client: bool,
    master: bool,
}

impl Holder {
    /// Until the root ends.
    fn serve(&mut self) -> Result<()> {
        let mut slave_open = true;
        loop {
            let ready = self.wait(slave_open)?;
            if ready.ended {
                return Ok(());
            }
            if ready.client {
                // It says nothing but its end.
                self.client = None;
            }
            if self.client.is_none() && (ready.master || !slave_open) {
                slave_open = self.read()?;
            }
            if ready.asked {
                self.answer();
            }
        }
    }

    fn wait(&self, slave_open: bool) -> Result<Ready> {
        let mut fds = vec![
            PollFd::new(self.listener.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
        ];
        match &self.client {
            Some(client) => fds.push(PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)),
            None if slave_open => fds.push(PollFd::new(self.master.as_fd(), PollFlags::POLLIN)),
            None => {}
        }
        let timeout = match self.client.is_none() && !slave_open {
            true => PollTimeout::try_from(REOPEN).unwrap_or(PollTimeout::ZERO),
            false => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).during("waiting for a terminal", Subject::None),
        }
        let told = |at: usize| fds.get(at).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        let attached = self.client.is_some();
        Ok(Ready { asked: told(0), ended: told(1), client: attached && told(2), master: !attached && told(2) })
    }

    /// Takes what the session has written, and forgets the oldest of it; yields whether the slave is open.
    fn read(&mut self) -> Result<bool> {
        let excess = self.output.len().saturating_sub(BACKLOG);
        self.output.discard(excess);
        let read =
            self.output.fill(self.master.as_fd(), BACKLOG).during("reading the session's output", Subject::None)?;
        Ok(read != Fill::Ended)
    }

    /// Serves one connection. Whatever goes wrong with it is its own affair.
    fn answer(&mut self) {
        let Ok((mut stream, _)) = self.listener.socket.accept() else { return };
        let Ok(peer) = getsockopt(&stream, PeerCredentials) else { return };
        let us = nix::unistd::geteuid().as_raw();
        let mut wish = [0];
        let heard = stream.set_read_timeout(Some(GREETING)).and_then(|()| stream.read_exact(&mut wish));
        if heard.is_err() || (peer.uid() != us && peer.uid() != 0) {
            return;
        }
        let (answer, fds) = match (&self.client, wish[0]) {
            (Some(client), _) => (Answer::Busy(client.pid), None),
            (None, ATTACH) => match self.backlog() {
                Ok(backlog) => (Answer::Yours, Some(backlog)),
                Err(_) => return,
            },
            (None, _) => (Answer::Free, None),
        };
        let fds: Vec<_> = fds.iter().flat_map(|backlog| [self.master.as_fd(), backlog.as_fd()]).collect();
        let sent = pass::send(stream.as_fd(), &answer.to_bytes(), &fds);
        if sent.is_ok() && answer == Answer::Yours {
            self.output.clear();
            self.client = Some(Client { stream, pid: Pid(peer.pid()) });
        }
    }

    /// A file with the last output, from the beginning of a line where some was forgotten.
    fn backlog(&self) -> std::result::Result<OwnedFd, Errno> {
        let bytes = self.output.bytes();
        let cut = bytes.len().saturating_sub(BACKLOG);
        let tail = &bytes[cut..];
        let start = if cut == 0 { 0 } else { tail.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1) };
        let file = memfd_create(c"output", 0)?;
        let mut rest = &tail[start..];
        while !rest.is_empty() {
            let count = nix::unistd::write(&file, rest)?;
            rest = &rest[count..];
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_wire() {
        for answer in [Answer::Yours, Answer::Busy(Pid(4711)), Answer::Free, Answer::Ended(255)] {
            assert_eq!(Answer::from_bytes(&answer.to_bytes()), Some(answer));
        }
        assert_eq!(Answer::from_bytes(b"x12345678"), None);
        assert_eq!(Answer::from_bytes(b"y"), None);
    }
}
