//! The room behind a full line buffer, and the writes that use it.
//!
//! The kernel takes a buffer for each write that finds no room in the last one: of its size in steps of 256 bytes and at most 1792, with room for
//! twice that. It takes one as long as those in use count 8192 or less. One of 256 bytes that is free again is kept, and taken again whatever the
//! count is; at most 33 of them come into being. A used-up buffer in front counts until the worker has found another one behind it.
//! Source: drivers/tty/tty_buffer.c.

use super::io::{self, Io, POLLOUT};
use super::typing::STEP_WAIT;

/// Bytes behind a line buffer, at most: buffers of 8192 and a last one of 1792 bytes, then 33 small ones, all with room for twice that.
pub const MOST: usize = 2 * (8192 + LARGE + 33 * SMALL);

/// Bytes that find room behind a line buffer in pieces of 1024, also where a used-up buffer is in front.
pub const COMMON: usize = 16 * 1024;

/// A write to a small buffer.
pub const SMALL: usize = 256;
const LARGE: usize = 1792;
/// Two buffers' worth of writes to each: with four large ones this makes 8192 bytes.
const REST: usize = 1024;

/// Writes `bytes` from `put` on, `size` at a time, as far as there is room.
pub fn put_pieces(fd: i32, bytes: &[u8], put: &mut u32, size: usize) -> Io<()> {
    while (*put as usize) < bytes.len() {
        let mut result = Ok(());
        let comes = || {
            let before = *put;
            result = piece(fd, bytes, put, size);
            result.is_err() || *put > before
        };
        let came = io::await_that(STEP_WAIT, comes);
        result?;
        if !came {
            break;
        }
    }
    Ok(())
}

/// Writes `bytes` from `put` on so that most of them find room: large buffers up to the count at which only one more is given, that one, and then the
/// small ones that were kept. `wait`: milliseconds for the worker to let go of a used-up buffer in front.
pub fn put_large(fd: i32, bytes: &[u8], put: &mut u32, wait: i32) -> Io<()> {
    piece(fd, bytes, put, LARGE)?;
    if wait > 0 {
        io::pause(wait);
    }
    for size in [LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, REST, REST] {
        piece(fd, bytes, put, size)?;
    }
    // Writable: less than 8192.
    while (*put as usize) < bytes.len() && io::ready(fd, POLLOUT) {
        piece(fd, bytes, put, SMALL)?;
        piece(fd, bytes, put, SMALL)?;
    }
    piece(fd, bytes, put, LARGE)?;
    piece(fd, bytes, put, LARGE)?;
    put_pieces(fd, bytes, put, SMALL)
}

/// One write of at most `size` bytes; it may find no room.
fn piece(fd: i32, bytes: &[u8], put: &mut u32, size: usize) -> Io<()> {
    let rest = bytes.get(*put as usize..).unwrap_or_default();
    let chunk = rest.get(..size).unwrap_or(rest);
    if chunk.is_empty() {
        return Ok(());
    }
    match io::write_now(fd, chunk) {
        Ok(count) => *put += count as u32,
        Err(io::EAGAIN) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
