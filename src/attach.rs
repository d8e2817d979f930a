//! Attaching to a session that was restored with --detach: finding its holder, and getting the terminal from it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::error::{Context, Error, Result, Subject};
use crate::holder::{ASK, ATTACH, Answer};
use crate::ids::Pid;
use crate::procfs::Stat;
use crate::sys::pass;

/// A session that has a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The process id of its root, as it is outside of any pid namespace of its own.
    pub id: Pid,
    /// Who has its terminal now; 0 where that is in another pid namespace.
    pub attached: Option<Pid>,
}

impl Session {
    /// The name of its root's program.
    pub fn comm(&self) -> String {
        Stat::read(self.id).map_or_else(|_| "unknown".into(), |stat| stat.comm_text())
    }
}

/// A terminal that is ours until the connection is dropped.
#[derive(Debug)]
pub struct Attached {
    pub id: Pid,
    pub master: OwnedFd,
    /// What the session wrote last, while nobody was there.
    pub backlog: Vec<u8>,
    /// On which the holder tells the end of the session.
    pub connection: UnixStream,
}

/// All sessions with a holder, by their ids. A socket whose holder is gone is removed.
pub fn sessions(dir: &Path) -> Result<Vec<Session>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).during("listing", Subject::Path(dir.into()))? {
        let entry = entry.during("listing", Subject::Path(dir.into()))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
        match call(dir, id, ASK) {
            Ok((_, Answer::Busy(pid), _)) => found.push(Session { id, attached: Some(pid) }),
            Ok(_) => found.push(Session { id, attached: None }),
            Err(_) => {}
        }
    }
    found.sort_by_key(|session| session.id);
    Ok(found)
}

/// Takes over the terminal of a session.
pub fn attach(dir: &Path, id: Pid) -> Result<Attached> {
    refuse_inside(id)?;
    let (connection, answer, fds) = call(dir, id, ATTACH)?;
    let mut fds = fds.into_iter();
    match (answer, fds.next(), fds.next()) {
        (Answer::Yours, Some(master), Some(file)) => {
            let (mut file, mut backlog) = (File::from(file), Vec::new());
            file.rewind()
                .and_then(|()| file.read_to_end(&mut backlog))
                .during("reading the last output", Subject::None)?;
            Ok(Attached { id, master, backlog, connection })
        }
        (Answer::Busy(pid), ..) => {
            let who = if pid.0 > 0 { format!("process {pid}") } else { "somebody".into() };
            Err(Error::failed(format!("{who} is attached to session {id}; detach there first (Ctrl-\\ and then d)")))
        }
        _ => Err(Error::unexpected("the holder of a session", format!("{answer:?}"))),
    }
}

/// One question and its answer.
fn call(dir: &Path, id: Pid, question: u8) -> Result<(UnixStream, Answer, Vec<OwnedFd>)> {
    let path = dir.join(id.to_string());
    let missing = || {
        Error::failed(format!(
            "there is no session {id} to attach to; ptyagent attach without an id takes the only one or lists them"
        ))
    };
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(&path);
            return Err(missing());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(Error::io("connecting to a session", Subject::Path(path), &error)),
    };
    stream.write_all(&[question]).during("asking the holder of a session", Subject::None)?;
    let mut bytes = [0; Answer::SIZE];
    let (count, fds) =
        pass::receive(stream.as_fd(), &mut bytes).during("hearing from the holder of a session", Subject::None)?;
    let answer = bytes.get(..count).and_then(Answer::from_bytes);
    let answer = answer.ok_or_else(|| Error::failed(format!("session {id} has just ended")))?;
    Ok((stream, answer, fds))
}

/// A terminal that shows itself never ends.
fn refuse_inside(id: Pid) -> Result<()> {
    let mut pid = Pid(std::process::id() as i32);
    while pid.0 > 0 {
        if pid == id {
            return Err(Error::failed(format!("this is session {id} itself; attach to it from another terminal")));
        }
        pid = match Stat::read(pid) {
            Ok(stat) => stat.ppid,
            Err(_) => return Ok(()),
        };
    }
    Ok(())
}
