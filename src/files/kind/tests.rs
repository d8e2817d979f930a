use std::fs::File;
use std::os::fd::AsRawFd;

use super::*;

fn me() -> Pid {
    Pid(std::process::id() as i32)
}

fn own(file: &impl AsRawFd) -> Descriptor {
    Descriptor::read(me(), RemoteFd(file.as_raw_fd())).unwrap().unwrap()
}

fn char_kind(major: u32, minor: u32) -> FileKind {
    let info = FdInfo::parse(b"pos:\t0\nflags:\t02\nmnt_id:\t1\ntty-index:\t9\n").unwrap();
    char_device(Device { major, minor }, &info)
}

#[test]
fn device_numbers_are_named() {
    assert_eq!(char_kind(5, 2), FileKind::TtyMaster { index: Some(PtyIndex(9)) });
    assert_eq!(char_kind(136, 4095), FileKind::TtySlave { index: PtyIndex(4095) });
    assert_eq!(char_kind(137, 1), FileKind::TtySlave { index: PtyIndex(257) });
    assert_eq!((char_kind(5, 0), char_kind(5, 1)), (FileKind::DevTty, FileKind::Console));
    assert_eq!((char_kind(4, 1), char_kind(1, 3)), (FileKind::Vt { number: 1 }, FileKind::Null));
    assert!(matches!(char_kind(4, 64), FileKind::Serial(_)));
    assert!(matches!(char_kind(188, 0), FileKind::Serial(_)));
    assert!(matches!(char_kind(10, 229), FileKind::CharDevice(_)));
}

#[test]
fn objects_without_a_path_are_named_by_their_link() {
    for (link, kind) in [
        ("anon_inode:[eventfd]", FileKind::Eventfd),
        ("anon_inode:inotify", FileKind::Inotify),
        ("anon_inode:bpf-map", FileKind::Bpf),
        ("pidfd:[77]", FileKind::Pidfd),
        ("net:[4026531833]", FileKind::Namespace),
        ("anon_inode:[news]", FileKind::Other("anon_inode:[news]".into())),
    ] {
        assert_eq!(object(link.as_bytes()), kind);
    }
}

#[test]
fn own_files_are_recognised() {
    assert_eq!(own(&File::open("/dev/null").unwrap()).kind, FileKind::Null);
    assert_eq!(own(&File::open("/").unwrap()).kind, FileKind::Directory);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a b (deleted)");
    let file = File::create(&path).unwrap();
    assert_eq!(own(&file).kind, FileKind::Regular);
    own(&file).refuse_unsupported(me(), "x").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(own(&file).kind, FileKind::Removed);
    own(&file).refuse_unsupported(me(), "x").unwrap();
}

#[test]
fn a_file_renamed_over_or_with_another_name_left_is_not_taken_for_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("a"), directory.path().join("b"));
    let file = File::create(&path).unwrap();
    std::fs::hard_link(&path, &other).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(own(&file).kind, FileKind::Hidden);
    assert_eq!(own(&file).refuse_unsupported(me(), "x").unwrap_err().exit_status(), 3);
    std::fs::write(&path, "another").unwrap();
    assert_eq!(own(&file).kind, FileKind::Hidden);
}

#[test]
fn pipes_sockets_and_anonymous_objects_are_recognised() {
    let (reader, _writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    assert!(matches!(own(&reader).kind, FileKind::Pipe { inode } if inode == own(&reader).stat.inode));
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(own(&socket).kind, FileKind::Socket { protocol: Some("UNIX-STREAM".into()) });
    let memfd = crate::sys::process::memfd_create(c"a", 0).unwrap();
    assert_eq!(own(&memfd).kind, FileKind::Memfd);
    assert_eq!(own(&crate::sys::process::pidfd_open(me()).unwrap()).kind, FileKind::Pidfd);
    own(&socket).refuse_unsupported(Pid(7), "vi").unwrap();
    let raw = crate::sys::socket::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    let Ok(raw) = raw else { return };
    let error = own(&raw).refuse_unsupported(Pid(7), "vi").unwrap_err().to_string();
    assert!(error.starts_with("refused: process 7 (vi), descriptor "), "{error}");
}

#[test]
fn terminals_are_recognised() {
    let Ok(pty) = nix::pty::openpty(None, None) else { return };
    let FileKind::TtySlave { index } = own(&pty.slave).kind else { unreachable!("not a slave") };
    assert_eq!(own(&pty.master).kind, FileKind::TtyMaster { index: Some(index) });
}

#[test]
fn a_closed_descriptor_is_none() {
    assert_eq!(Descriptor::read(me(), RemoteFd(99_999)).unwrap(), None);
    assert!(matches!(Descriptor::read(Pid(i32::MAX), RemoteFd(0)), Err(Error::Gone(_))));
}
