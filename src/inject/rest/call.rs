//! Calls that move one piece after another, and the call that makes the rest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;

use crate::error::{Context, Result, Subject};
use crate::ids::Pid;

/// A system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub nr: i64,
    /// rdi, rsi, rdx, r10, r8, r9.
    pub args: [u64; 6],
}

impl Call {
    /// The call that registers at its instruction are about to make, or have made.
    pub(super) fn new(nr: i64, regs: &user_regs_struct) -> Call {
        Call { nr, args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] }
    }

    pub fn fd(&self) -> i32 {
        self.args[0] as i32
    }

    /// The flags of a call on a socket: MSG_DONTWAIT and others; 0 of another call.
    pub fn flags(&self) -> i32 {
        let at = match self.nr {
            libc::SYS_sendto | libc::SYS_recvfrom | libc::SYS_sendmmsg | libc::SYS_recvmmsg => 3,
            libc::SYS_sendmsg | libc::SYS_recvmsg => 2,
            _ => return 0,
        };
        self.args[at] as i32
    }
}

/// A call that moved some of its bytes, or of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The call itself, or the rest of it that was cut short again.
    pub call: Call,
    /// Moved by the parts before.
    pub before: u64,
    /// Moved by this call.
    pub moved: u64,
    /// Asked of this call.
    pub wanted: u64,
}

impl Transfer {
    pub fn done(&self) -> u64 {
        self.before + self.moved
    }
}

/// What a cut call would still have moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Bytes or messages; 0 where the call came back by itself.
    pub count: u64,
    pub through: Through,
}

/// What the rest is moved through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    File,
    /// A call that has sent something raises no SIGPIPE.
    Socket,
    /// Filters judge the process's calls: no other call is made than that which they have allowed.
    Filtered,
}

/// What makes the rest of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    pub call: Call,
    /// Moved so far.
    pub done: u64,
    /// What the second argument points to, where the victim's memory has it not in this form.
    pub data: Vec<u8>,
}

/// struct mmsghdr and struct msghdr in bytes, and where the latter has its pieces.
const MMSGHDR: u64 = 64;
const MSGHDR: usize = 56;
const IOV_AT: usize = 16;
const NOSIGNAL: u64 = libc::MSG_NOSIGNAL as u64;
/// UIO_MAXIOV.
const MOST: u64 = 1024;

/// How much a call asks for, where it is one of those that move piece after piece.
pub(super) fn wanted(mem: &File, pid: Pid, call: &Call) -> Result<Option<u64>> {
    let args = &call.args;
    Ok(match call.nr {
        libc::SYS_read | libc::SYS_write | libc::SYS_sendto | libc::SYS_recvfrom => Some(args[2]),
        libc::SYS_sendmmsg | libc::SYS_recvmmsg => Some(args[2] & u64::from(u32::MAX)),
        libc::SYS_sendfile => Some(args[3]),
        libc::SYS_copy_file_range => Some(args[4]),
        libc::SYS_getrandom => Some(args[1]),
        _ => pieces(mem, pid, call)?.map(|pieces| pieces.iter().map(|(_, len)| len).sum()),
    })
}

/// The pieces of memory of a call that has several: address and length in bytes.
fn pieces(mem: &File, pid: Pid, call: &Call) -> Result<Option<Vec<(u64, u64)>>> {
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes);
    let read = |at: u64, len: usize| -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        mem.read_exact_at(&mut bytes, at).during("reading a call's arguments", Subject::Pid(pid))?;
        Ok(bytes)
    };
    let (at, count) = match call.nr {
        libc::SYS_readv | libc::SYS_writev => (call.args[1], call.args[2]),
        libc::SYS_recvmsg | libc::SYS_sendmsg => {
            let header = read(call.args[1], MSGHDR)?;
            (word(&header, IOV_AT), word(&header, IOV_AT + 8))
        }
        _ => return Ok(None),
    };
    let bytes = read(at, count.min(MOST) as usize * 16)?;
    Ok(Some(bytes.chunks_exact(16).map(|piece| (word(piece, 0), word(piece, 8))).collect()))
}

/// The call that moves what is left behind that which was moved. None where it takes more room than there is: the pieces of memory that are
/// left have to fit into `room` bytes, unless it is one.
pub(super) fn rest(mem: &File, pid: Pid, transfer: &Transfer, left: Left, room: usize) -> Result<Option<Rest>> {
    let (mut call, moved, done) = (transfer.call, transfer.moved, transfer.done());
    let Left { count: left, through } = left;
    match call.nr {
        libc::SYS_read | libc::SYS_write | libc::SYS_sendto | libc::SYS_recvfrom => {
            (call.args[1], call.args[2]) = (call.args[1].wrapping_add(moved), left);
            match (call.nr, through) {
                (libc::SYS_write, Through::Socket) => {
                    let [fd, at, len, ..] = call.args;
                    call = Call { nr: libc::SYS_sendto, args: [fd, at, len, NOSIGNAL, 0, 0] };
                }
                (libc::SYS_sendto, _) => call.args[3] |= NOSIGNAL,
                _ => {}
            }
        }
        libc::SYS_sendmmsg | libc::SYS_recvmmsg => {
            (call.args[1], call.args[2]) = (call.args[1].wrapping_add(MMSGHDR * moved), left);
        }
        libc::SYS_getrandom => (call.args[0], call.args[1]) = (call.args[0].wrapping_add(moved), left),
        // The kernel has moved the positions, wherever they are.
        libc::SYS_sendfile => call.args[3] = left,
        libc::SYS_copy_file_range => call.args[4] = left,
        _ => {
            let Some(pieces) = pieces(mem, pid, &call)? else { return Ok(None) };
            let pieces = behind(&pieces, moved, left);
            return Ok(of_pieces(call, &pieces, done, through, room));
        }
    }
    Ok(Some(Rest { call, done, data: Vec::new() }))
}

/// The pieces behind the first `moved` bytes, `left` bytes of them.
fn behind(pieces: &[(u64, u64)], moved: u64, left: u64) -> Vec<(u64, u64)> {
    let (mut skip, mut left) = (moved, left);
    let mut rest = Vec::new();
    for (at, len) in pieces {
        let gone = skip.min(*len);
        skip -= gone;
        let some = (len - gone).min(left);
        left -= some;
        rest.extend((some > 0).then_some((at.wrapping_add(gone), some)));
    }
    rest
}

fn of_pieces(call: Call, pieces: &[(u64, u64)], done: u64, through: Through, room: usize) -> Option<Rest> {
    let ([fd, header, third, ..], flags) = (call.args, call.flags() as u64);
    if let ([(at, len)], false) = (pieces, through == Through::Filtered) {
        let (nr, flags) = match (call.nr, through) {
            (libc::SYS_readv, _) => (libc::SYS_read, 0),
            (libc::SYS_writev, Through::File) => (libc::SYS_write, 0),
            (libc::SYS_recvmsg, _) => (libc::SYS_recvfrom, flags),
            _ => (libc::SYS_sendto, flags | NOSIGNAL),
        };
        return Some(Rest { call: Call { nr, args: [fd, *at, *len, flags, 0, 0] }, done, data: Vec::new() });
    }
    let vectors: Vec<u8> =
        pieces.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()]).flatten().collect();
    // No name and no control messages: those have gone with the first bytes. `placed` fills in where the pieces are.
    let message = |flags| {
        let mut message = vec![0; MSGHDR];
        message[IOV_AT + 8..IOV_AT + 16].copy_from_slice(&(pieces.len() as u64).to_le_bytes());
        (libc::SYS_sendmsg, [message, vectors.clone()].concat(), flags | NOSIGNAL)
    };
    let (nr, data, third) = match (call.nr, through) {
        (libc::SYS_writev, Through::Socket) if MSGHDR + vectors.len() <= room => message(0),
        (libc::SYS_readv | libc::SYS_writev, _) => (call.nr, vectors, pieces.len() as u64),
        (libc::SYS_sendmsg, _) => message(third),
        // The kernel would write into the message's header.
        _ => return None,
    };
    let call = Call { nr, args: [fd, header, third, 0, 0, 0] };
    (data.len() <= room).then_some(Rest { call, done, data })
}

impl Rest {
    /// The call and its data, where that is placed at an address.
    pub(super) fn placed(&self, at: u64) -> (Call, Vec<u8>) {
        let (mut call, mut data) = (self.call, self.data.clone());
        call.args[1] = at;
        if call.nr == libc::SYS_sendmsg {
            if let Some(word) = data.get_mut(IOV_AT..IOV_AT + 8) {
                word.copy_from_slice(&(at + MSGHDR as u64).to_le_bytes());
            }
        }
        (call, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECES: [(u64, u64); 4] = [(1000, 10), (2000, 0), (3000, 20), (4000, 30)];

    #[test]
    fn what_was_moved_is_skipped() {
        assert_eq!(behind(&PIECES, 0, 60), [(1000, 10), (3000, 20), (4000, 30)]);
        assert_eq!(behind(&PIECES, 10, 50), [(3000, 20), (4000, 30)]);
        assert_eq!(behind(&PIECES, 35, 25), [(4005, 25)]);
        assert_eq!(behind(&PIECES, 5, 6), [(1005, 5), (3000, 1)]);
    }

    #[test]
    fn one_piece_needs_no_list() {
        let call = Call { nr: libc::SYS_writev, args: [3, 0x7000, 4, 9, 9, 9] };
        let made = |through| of_pieces(call, &[(4005, 25)], 35, through, 120).unwrap();
        let rest = |nr, flags| Rest { call: Call { nr, args: [3, 4005, 25, flags, 0, 0] }, done: 35, data: Vec::new() };
        assert_eq!(made(Through::File), rest(libc::SYS_write, 0));
        assert_eq!(made(Through::Socket), rest(libc::SYS_sendto, NOSIGNAL));
        assert_eq!((made(Through::Filtered).call.nr, made(Through::Filtered).data.len()), (libc::SYS_writev, 16));
    }

    #[test]
    fn several_pieces_lie_beside_the_stub() {
        let call = Call { nr: libc::SYS_sendmsg, args: [3, 0x7000, 0, 9, 9, 9] };
        let (call, data) = of_pieces(call, &PIECES[2..], 10, Through::Socket, 120).unwrap().placed(0x9000);
        assert_eq!((call.nr, call.args[1], call.args[2]), (libc::SYS_sendmsg, 0x9000, NOSIGNAL));
        assert_eq!(data[16..24], 0x9038u64.to_le_bytes());
        assert_eq!((data[24], data.len(), &data[56..64]), (2, 88, &3000u64.to_le_bytes()[..]));
        let call = Call { nr: libc::SYS_recvmsg, ..call };
        assert_eq!(of_pieces(call, &PIECES[2..], 10, Through::Socket, 120), None);
    }
}
