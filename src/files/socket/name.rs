//! Names of Unix sockets, and the files that some are bound to.
//!
//! A socket is bound in a temporary directory beside the recorded place, by a process that has this directory as its root: so the kernel keeps
//! the recorded string, whatever stands at the path itself. The file is moved to its place by one rename when everything else
//! is done, over the dead socket that the dump has left there.

use std::ffi::{CString, OsStr};
use std::fs::Permissions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::error::{Context, Error, Result, Subject};
use crate::image::pb;
use crate::sys::process::errand::{self, Errand};
use crate::sys::process::stub::StubPid;
use crate::sys::socket;

/// Bytes of the family, before the name.
const FAMILY: usize = 2;

/// The kinds of name that a struct sockaddr_un may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    None,
    Abstract,
    Path(&'a Path),
}

impl Name<'_> {
    pub fn of(address: &[u8]) -> Name<'_> {
        match address.get(FAMILY..) {
            None | Some([]) => Name::None,
            Some([0, ..]) => Name::Abstract,
            Some(path) => {
                let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
                Name::Path(Path::new(OsStr::from_bytes(&path[..end])))
            }
        }
    }
}

/// The name of an address for a person; an abstract one begins with @.
pub fn text(address: &[u8]) -> Option<String> {
    match Name::of(address) {
        Name::None => None,
        Name::Abstract => Some(format!("@{}", address.get(FAMILY + 1..).unwrap_or_default().escape_ascii())),
        Name::Path(path) => Some(path.display().to_string()),
    }
}

/// The file of a bound socket, still in its temporary directory, which goes when this is dropped.
#[derive(Debug)]
pub struct Node {
    _directory: TempDir,
    file: PathBuf,
    handle: OwnedFd,
}

impl Node {
    /// An address by which this very file is reached.
    pub fn address(&self) -> Vec<u8> {
        path_address(format!("/proc/self/fd/{}", self.handle.as_raw_fd()).as_bytes())
    }

    /// Gives the file its owner and mode and moves it to its place; one that had been removed is removed again.
    pub fn publish(self, to: Option<&Path>, perms: Option<&pb::FilePermsEntry>) -> Result<()> {
        let subject = || Subject::Path(to.unwrap_or(&self.file).into());
        if let Some(perms) = perms {
            let (uid, gid) = (Some(perms.uid.into()), Some(perms.gid.into()));
            nix::unistd::chown(&self.file, uid, gid).during("giving away the socket file", subject())?;
            let mode = Permissions::from_mode(perms.mode & 0o7777);
            std::fs::set_permissions(&self.file, mode).during("setting the mode", subject())?;
        }
        let Some(to) = to else { return Ok(()) };
        refuse_living(to)?;
        std::fs::rename(&self.file, to).during("moving the socket file to its place", subject())
    }
}

fn path_address(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path, b"\0"].concat()
}

/// Fails where the path leads to anything but a dead socket. A datagram socket that connects harms nobody, and tells apart what lives.
pub fn refuse_living(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let in_the_way =
        |what: &str| Err(Error::failed(format!("{} {what}; move it away, then restore again", path.display())));
    if !found.file_type().is_socket() {
        return in_the_way("is in the way of a socket");
    }
    let probe = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).during("making a socket", Subject::None)?;
    let handle = handle(path)?;
    let address = path_address(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes());
    match socket::connect(probe.as_fd(), &address) {
        Err(nix::errno::Errno::ECONNREFUSED) => Ok(()),
        _ => in_the_way("is the socket of a program that runs"),
    }
}

fn handle(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .during("opening", Subject::Path(path.into()))
}

/// Gives a socket its recorded name. `beside` is the recorded place of its file; without one it is made where temporary files go.
pub fn bind(socket: BorrowedFd<'_>, address: &[u8], beside: Option<&Path>) -> Result<Option<Node>> {
    match Name::of(address) {
        Name::None => Ok(None),
        Name::Abstract => {
            socket::bind(socket, address).map_err(|errno| {
                let name = address.get(FAMILY + 1..).unwrap_or_default().escape_ascii().to_string();
                let remedy = "end the program that has it, then restore again";
                Error::failed(format!("the name @{name} of a socket cannot be taken: {}; {remedy}", errno.desc()))
            })?;
            Ok(None)
        }
        Name::Path(path) => bind_file(socket, address, path, beside).map(Some),
    }
}

fn bind_file(socket: BorrowedFd<'_>, address: &[u8], path: &Path, beside: Option<&Path>) -> Result<Node> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ptyagent-");
    let made = match beside.and_then(Path::parent) {
        Some(parent) => builder.tempdir_in(parent).map_err(|_| {
            let what = format!("the directory {} of a socket is missing or may not be written", parent.display());
            Error::failed(format!("{what}; make it as it was, then restore again"))
        })?,
        None => builder.tempdir().during("making a temporary directory", Subject::None)?,
    };
    let root = made.path();
    // As deep as any ".." in a relative name can lead up.
    let depth = path.components().count() + 1;
    let inside: PathBuf = std::iter::repeat_n("d", depth).collect();
    let mut at = if path.is_absolute() { root.to_path_buf() } else { root.join(&inside) };
    let subject = || Subject::Path(root.into());
    std::fs::create_dir_all(root.join(&inside)).during("making a directory", subject())?;
    for part in path.strip_prefix("/").unwrap_or(path).parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("making a directory", subject(), &error));
            }
            _ => {}
        }
    }
    let file = at.join(path.file_name().unwrap_or_default());
    let c_text =
        |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::failed("a path with a NUL"));
    let (root, directory) = (c_text(root)?, c_text(&Path::new("/").join(&inside))?);
    let errand = Errand::Bind { socket, address, root: &root, directory: &directory };
    errand::run(StubPid::Any, None, errand).during("binding a socket (CAP_SYS_CHROOT)", Subject::Path(path.into()))?;
    // Whoever connects while the session is made may do so; the recorded mode comes with the place.
    std::fs::set_permissions(&file, Permissions::from_mode(0o777)).during("setting the mode", subject())?;
    let handle = handle(&file)?;
    Ok(Node { _directory: made, file, handle })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_name_is_kept_and_its_file_appears_at_the_end() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("s");
        std::fs::create_dir(place.path().join("sub")).unwrap();
        for name in ["/no/such/dir/s", "rel/s", "../../up/s", to.to_str().unwrap()] {
            let socket = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
            let address = path_address(name.as_bytes());
            let node = bind(socket.as_fd(), &address, Some(&to)).unwrap().unwrap();
            assert_eq!(socket::name(socket.as_fd()).unwrap(), address);
            let client = UnixDatagram::unbound().unwrap();
            socket::connect(client.as_fd(), &node.address()).unwrap();
            node.publish(Some(&to), Some(&pb::FilePermsEntry { mode: 0o100_640, uid: 0, gid: 0 })).unwrap();
            assert!(refuse_living(&to).is_err(), "it lives");
            assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o640);
            UnixDatagram::unbound().unwrap().connect(&to).unwrap();
            client.send(b"x").unwrap();
            drop(socket);
            refuse_living(&to).unwrap();
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2, "nothing else is left");
        std::fs::write(place.path().join("file"), "").unwrap();
        assert!(refuse_living(&place.path().join("file")).is_err());
    }
}
