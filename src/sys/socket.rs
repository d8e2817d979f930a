//! Calls on sockets with raw addresses and options. Source: socket(2), unix(7), recv(2), send(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, socklen_t};
use nix::errno::Errno;

/// The longest address of any family: struct sockaddr_storage.
pub const ADDRESS: usize = 128;
/// SCM_MAX_FD: descriptors of one message, at most.
pub const RIGHTS: usize = 253;
/// Room for the control messages of one message: descriptors, credentials, a label, a timestamp.
pub const CONTROL: usize = 2048;
/// SIOCUNIXFILE (include/uapi/linux/un.h, Linux 4.2).
const SIOCUNIXFILE: u64 = 0x89e0;

/// A new close-on-exec socket.
pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The bytes of an option, at most `room` of them.
pub fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int, room: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; room];
    let mut len = room as socklen_t;
    let at = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: the kernel writes at most `len` bytes to `value` and their number to `len`.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    value.truncate(len as usize);
    Ok(value)
}

/// An option whose question is in the value.
pub fn asked_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, mut value: Vec<u8>) -> Result<Vec<u8>, Errno> {
    let mut len = value.len() as socklen_t;
    let at = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: the kernel reads and writes at most `len` bytes of `value`, and their number.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    value.truncate(len as usize);
    Ok(value)
}

/// An option that is a number.
pub fn number(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> Result<i32, Errno> {
    let value = option(fd, level, name, size_of::<c_int>())?;
    Ok(value.try_into().map_or(0, i32::from_ne_bytes))
}

/// The value of SO_GET_FILTER: the instructions of a classic filter, eight bytes each. EACCES: the filter is no classic one.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u64>, Errno> {
    let mut len: socklen_t = 0;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    // SAFETY: with a length of 0 the kernel writes the number of instructions to `len` and nothing else.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::null_mut(), &raw mut len) })?;
    let mut code = vec![0u64; len as usize];
    if len != 0 {
        // SAFETY: the kernel takes `len` as a number of instructions and writes at most so many.
        let got =
            unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, code.as_mut_ptr().cast::<c_void>(), &raw mut len) };
        Errno::result(got)?;
    }
    Ok(code)
}

/// SO_ATTACH_FILTER.
pub fn attach_filter(fd: BorrowedFd<'_>, code: &[u64]) -> Result<(), Errno> {
    let len = u16::try_from(code.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: code.as_ptr().cast_mut().cast() };
    let (at, size) = ((&raw const program).cast::<c_void>(), size_of::<libc::sock_fprog>() as socklen_t);
    // SAFETY: the kernel reads the program and its instructions.
    Errno::result(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, at, size) })
        .map(drop)
}

pub fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let (at, len) = (value.as_ptr().cast::<c_void>(), value.len() as socklen_t);
    // SAFETY: the kernel reads `value`.
    Errno::result(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) }).map(drop)
}

/// The address that a socket is bound to, family included.
pub fn name(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    address(|at, len| {
        // SAFETY: the kernel writes at most `len` bytes, and their number.
        unsafe { libc::getsockname(fd.as_raw_fd(), at, len) }
    })
}

/// The address of the peer. ENOTCONN where there is none.
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    address(|at, len| {
        // SAFETY: the kernel writes at most `len` bytes, and their number.
        unsafe { libc::getpeername(fd.as_raw_fd(), at, len) }
    })
}

fn address(ask: impl FnOnce(*mut libc::sockaddr, *mut socklen_t) -> c_int) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; ADDRESS];
    let mut len = ADDRESS as socklen_t;
    Errno::result(ask(bytes.as_mut_ptr().cast(), &raw mut len))?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let (at, len) = (address.as_ptr().cast(), address.len() as socklen_t);
    // SAFETY: the kernel reads `address`.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), at, len) }).map(drop)
}

pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let (at, len) = (address.as_ptr().cast(), address.len() as socklen_t);
    // SAFETY: the kernel reads `address`.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), at, len) }).map(drop)
}

pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// The oldest waiting connection, close-on-exec.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let none = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let got = unsafe { libc::accept4(fd.as_raw_fd(), none, std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    // SAFETY: the kernel has just made this descriptor for us.
    Errno::result(got).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn shutdown(fd: BorrowedFd<'_>, how: c_int) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// A path handle on the file that a Unix socket is bound to. ENOENT: it has none; EPERM: no CAP_NET_ADMIN.
pub fn bound_file(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let got = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// What goes with the bytes of a message.
#[derive(Debug, Clone, Copy, Default)]
pub struct Companions<'a> {
    /// Empty for a connected socket.
    pub to: &'a [u8],
    pub rights: &'a [RawFd],
    /// pid, uid and gid: SCM_CREDENTIALS.
    pub credentials: Option<(i32, u32, u32)>,
}

/// sendmsg(2) without blocking and without SIGPIPE; yields the number of bytes. Allocates nothing.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], with: Companions<'_>) -> Result<usize, Errno> {
    let mut control = [0u64; CONTROL / 8];
    let mut used = 0;
    if let Some((pid, uid, gid)) = with.credentials {
        used += put(&mut control, used, libc::SCM_CREDENTIALS, [pid, uid as i32, gid as i32].into_iter());
    }
    if !with.rights.is_empty() {
        if with.rights.len() > RIGHTS {
            return Err(Errno::EINVAL);
        }
        used += put(&mut control, used, libc::SCM_RIGHTS, with.rights.iter().copied());
    }
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if !with.to.is_empty() {
        message.msg_name = with.to.as_ptr().cast_mut().cast();
        message.msg_namelen = with.to.len() as socklen_t;
    }
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if used != 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = used;
    }
    // SAFETY: the kernel reads the bytes, the address and the control messages, which all outlive the call.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(|bytes| bytes as usize)
}

/// Writes one control message of level SOL_SOCKET at a byte offset; yields the room that it takes.
fn put(control: &mut [u64; CONTROL / 8], at: usize, kind: c_int, words: impl Iterator<Item = i32>) -> usize {
    let base = control.as_mut_ptr().cast::<u8>();
    let mut len = 16;
    for word in words {
        // SAFETY: 16 + 4 * 253 bytes behind 32 of credentials are inside the 2048 of the buffer.
        unsafe { base.add(at + len).cast::<i32>().write(word) };
        len += 4;
    }
    control[at / 8] = len as u64;
    control[at / 8 + 1] = u64::from(libc::SOL_SOCKET as u32) | u64::from(kind as u32) << 32;
    len.next_multiple_of(8)
}

/// Where a peeked message's parts are in an area of bytes, in native byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Peeked {
    /// Bytes that follow this header.
    pub len: u32,
    /// MSG_TRUNC and MSG_CTRUNC among others.
    pub flags: u32,
    /// 0 where the message has no credentials.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub name_len: u32,
    pub rights: u32,
    pub name: [u8; ADDRESS],
    pub fds: [i32; RIGHTS + 2],
}

impl Peeked {
    /// The message at a word of an area that [`peek_all`] has filled: its header, its bytes, and the word where the next one begins.
    pub fn at(area: &[u64], at: usize) -> Option<(Peeked, Vec<u8>, usize)> {
        const HEAD: usize = size_of::<Peeked>() / 8;
        let words = area.get(at..)?;
        let head = words.get(..HEAD)?;
        // SAFETY: `head` is aligned for the header, is as long, and any bytes are a header.
        let peeked = unsafe { *head.as_ptr().cast::<Peeked>() };
        let words = words.get(HEAD..)?.get(..(peeked.len as usize).div_ceil(8))?;
        let mut data: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        data.truncate(peeked.len as usize);
        Some((peeked, data, at + HEAD + words.len()))
    }
}

/// Takes over a descriptor that a message brought.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller has it from a message that was received for it, and gives it up.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

const _: () = assert!(size_of::<Peeked>() % 8 == 0 && size_of::<libc::cmsghdr>() == 16);

/// What a walk along a queue has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// How many messages it came to.
    pub count: usize,
    /// Whether all fitted.
    pub complete: bool,
    /// The first message is empty, which a walk sees only once: the kernel passes over an empty message that was looked at
    /// (__skb_try_recv_from_queue, net/core/datagram.c). False for a stream.
    pub first_is_empty: bool,
}

/// A part of a queue, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Behind so many.
    pub start: usize,
    /// Of a stream, how many there are: a look behind its end would take an error that waits to be told.
    pub limit: Option<usize>,
}

/// Looks at every message of a queue without taking one, into `area`: a header and the bytes of each, 8-byte aligned.
///
/// SO_PEEK_OFF and SO_PASSCRED are changed for the time of the look. A message that does not fit is looked at again by the walk that begins
/// behind those that did. Allocates nothing.
pub fn peek_all(fd: BorrowedFd<'_>, range: Range, area: &mut [u64]) -> Result<Walk, Errno> {
    let get = |name| number_in_place(fd, name);
    let set = |name, value: i32| set_option(fd, libc::SOL_SOCKET, name, &value.to_ne_bytes());
    let (offset, credentials) = (get(libc::SO_PEEK_OFF)?, get(libc::SO_PASSCRED)?);
    let Range { start, limit } = range;
    let start = i32::try_from(start).map_err(|_| Errno::EOVERFLOW)?;
    let walked =
        set(libc::SO_PASSCRED, 1).and_then(|()| set(libc::SO_PEEK_OFF, start)).and_then(|()| peek_on(fd, limit, area));
    let found = walked.and_then(|(count, complete)| {
        let first_is_empty = limit.is_none() && set(libc::SO_PEEK_OFF, -1).and_then(|()| first_len(fd))? == Some(0);
        Ok(Walk { count, complete, first_is_empty })
    });
    let back = set(libc::SO_PEEK_OFF, offset).and(set(libc::SO_PASSCRED, credentials));
    back.and(found)
}

/// Where the last of the kernel's buffers begins that hold `len` bytes from an offset of a stream, from that offset on.
///
/// The room is one byte too short and ends at memory that cannot be written: the kernel copies buffer by buffer, and counts none that it
/// cannot copy whole (unix_stream_read_generic, net/unix/af_unix.c). SO_PEEK_OFF is changed for the time of the look. Allocates nothing.
pub fn last_border(fd: BorrowedFd<'_>, offset: i32, len: usize, room: &mut [u8]) -> Result<usize, Errno> {
    let set = |value: i32| set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &value.to_ne_bytes());
    let start = room.len().checked_sub(len - 1).and_then(|start| room.get_mut(start..)).ok_or(Errno::EFAULT)?;
    let at = start.as_mut_ptr().cast::<c_void>();
    let before = number_in_place(fd, libc::SO_PEEK_OFF)?;
    let found = set(offset).and_then(|()| {
        // SAFETY: the kernel writes at most to the end of `room`, behind which there is a page that it fails at.
        let got = unsafe { libc::recv(fd.as_raw_fd(), at, len, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
        Errno::result(got)
    });
    set(before)?;
    match found {
        Err(Errno::EFAULT) => Ok(0),
        found => found.map(|border| border as usize),
    }
}

fn number_in_place(fd: BorrowedFd<'_>, name: c_int) -> Result<i32, Errno> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most four bytes to `value`.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut len) })?;
    Ok(value)
}

/// The length of the first message; none where nothing waits.
fn first_len(fd: BorrowedFd<'_>) -> Result<Option<usize>, Errno> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: there is no room to write to.
    match Errno::result(unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), 0, flags) }) {
        Err(Errno::EAGAIN) => Ok(None),
        len => len.map(|len| Some(len as usize)),
    }
}

/// Takes one message and throws it away.
pub fn discard(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: there is no room to write to.
    Errno::result(unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) }).map(drop)
}

fn peek_on(fd: BorrowedFd<'_>, limit: Option<usize>, area: &mut [u64]) -> Result<(usize, bool), Errno> {
    const HEAD: usize = size_of::<Peeked>() / 8;
    let (mut at, mut count, mut bytes_seen) = (0, 0, 0);
    loop {
        if limit.is_some_and(|limit| bytes_seen >= limit) {
            return Ok((count, true));
        }
        let Some((head, room)) = area.get_mut(at..).and_then(|rest| rest.split_at_mut_checked(HEAD)) else {
            return Ok((count, false));
        };
        // SAFETY: `head` is aligned for the header, is as long, and any bytes are a header.
        let peeked = unsafe { &mut *head.as_mut_ptr().cast::<Peeked>() };
        // SAFETY: the same memory as bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), room.len() * 8) };
        match peek_one(fd, bytes, peeked) {
            Err(Errno::EAGAIN) => return Ok((count, true)),
            Err(errno) => return Err(errno),
            // The end of a stream, not an empty message.
            Ok(false) => return Ok((count, true)),
            Ok(true) => {}
        }
        let full = peeked.len as usize > room.len() * 8 || peeked.flags & libc::MSG_TRUNC as u32 != 0;
        if full || peeked.len as usize == room.len() * 8 {
            peeked.fds.iter().take(peeked.rights as usize).for_each(|fd| drop(adopt(*fd)));
            return Ok((count, false));
        }
        at += HEAD + (peeked.len as usize).div_ceil(8);
        bytes_seen += peeked.len as usize;
        count += 1;
    }
}

/// One message; `false` at the end of a stream.
fn peek_one(fd: BorrowedFd<'_>, room: &mut [u8], peeked: &mut Peeked) -> Result<bool, Errno> {
    let mut control = [0u64; CONTROL / 8];
    let mut vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: msghdr is plain data, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = peeked.name.as_mut_ptr().cast();
    message.msg_namelen = ADDRESS as socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes the room, the address and the control messages within their lengths.
    let got = Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    (peeked.len, peeked.flags, peeked.name_len) = (got as u32, message.msg_flags as u32, message.msg_namelen);
    (peeked.pid, peeked.uid, peeked.gid, peeked.rights) = (0, 0, 0, 0);
    // SAFETY: the kernel has filled the control messages, which the macros walk within msg_controllen.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let (data, len) = (libc::CMSG_DATA(header), (*header).cmsg_len - 16);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    let words = data.cast::<u32>();
                    (peeked.pid, peeked.uid, peeked.gid) = (*words as i32, *words.add(1), *words.add(2));
                }
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let count = (len / 4).min(peeked.fds.len());
                    std::ptr::copy_nonoverlapping(data.cast::<i32>(), peeked.fds.as_mut_ptr(), count);
                    peeked.rights = count as u32;
                }
                // SCM_PIDFD: a descriptor that nobody asked for.
                (libc::SOL_SOCKET, 4) => _ = libc::close(*data.cast::<i32>()),
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    // Only a stream, which has no names, ends; an empty datagram has credentials or a name, or its length tells at least that it is a message.
    Ok(got > 0 || peeked.rights > 0 || peeked.pid != 0 || !is_stream(fd))
}

fn is_stream(fd: BorrowedFd<'_>) -> bool {
    number_in_place(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
}
