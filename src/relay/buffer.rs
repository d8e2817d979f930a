//! The bounded buffer of one direction: a reader fills it, a writer empties it, in order, and neither waits for the other.

use std::os::fd::BorrowedFd;

use nix::unistd;

use crate::error::Errno;

/// Bytes on their way from one descriptor to another.
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// This many bytes, at least one.
    Read(usize),
    /// Nothing now.
    NotReady,
    /// End of file, or EIO: the other side of a terminal is gone.
    Ended,
}

/// What a write achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Something was written, or the descriptor takes nothing now.
    Going,
    /// EPIPE, EIO or ENXIO: nobody will ever read it.
    Ended,
}

impl Buffer {
    pub fn new(capacity: usize) -> Buffer {
        Buffer { bytes: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is in it, oldest first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Forgets the oldest bytes, at most this many.
    pub fn discard(&mut self, count: usize) {
        self.start += count.min(self.len());
    }

    /// Appends as much as there is room for.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        let count = bytes.len().min(self.bytes.len() - self.end);
        self.bytes[self.end..self.end + count].copy_from_slice(&bytes[..count]);
        self.end += count;
    }

    /// Takes out the newest bytes, at most this many.
    pub fn take_last(&mut self, count: usize) -> Vec<u8> {
        let at = self.end - count.min(self.len());
        let taken = self.bytes[at..self.end].to_vec();
        self.end = at;
        taken
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn room(&self) -> usize {
        self.bytes.len() - self.len()
    }

    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// One read of at most `limit` bytes, which must not be 0. Interrupted reads count as not ready.
    pub fn fill(&mut self, from: BorrowedFd<'_>, limit: usize) -> Result<Fill, Errno> {
        self.compact();
        let stop = self.bytes.len().min(self.end.saturating_add(limit));
        match unistd::read(from, &mut self.bytes[self.end..stop]) {
            Ok(0) | Err(Errno::EIO) => Ok(Fill::Ended),
            Ok(count) => {
                self.end += count;
                Ok(Fill::Read(count))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Fill::NotReady),
            Err(errno) => Err(errno),
        }
    }

    /// One write of what is there, of which the descriptor may take a part.
    pub fn flush(&mut self, to: BorrowedFd<'_>) -> Result<Flush, Errno> {
        match unistd::write(to, &self.bytes[self.start..self.end]) {
            Ok(count) => {
                self.start += count;
                Ok(Flush::Going)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Flush::Going),
            Err(Errno::EPIPE | Errno::EIO | Errno::ENXIO) => Ok(Flush::Ended),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn keeps_order_through_partial_reads_and_writes() {
        let (reader, writer) = unistd::pipe().unwrap();
        let (sink_reader, sink) = unistd::pipe().unwrap();
        let mut buffer = Buffer::new(8);
        unistd::write(&writer, b"0123456789abcdef").unwrap();
        assert_eq!(buffer.fill(reader.as_fd(), 3), Ok(Fill::Read(3)));
        assert_eq!(buffer.fill(reader.as_fd(), 100), Ok(Fill::Read(5)));
        assert!(!buffer.has_room());
        assert_eq!(buffer.flush(sink.as_fd()), Ok(Flush::Going));
        assert!(buffer.is_empty());
        assert_eq!(buffer.fill(reader.as_fd(), 100), Ok(Fill::Read(8)));
        assert_eq!(buffer.flush(sink.as_fd()), Ok(Flush::Going));
        let mut all = [0; 32];
        assert_eq!(unistd::read(&sink_reader, &mut all), Ok(16));
        assert_eq!(&all[..16], b"0123456789abcdef");
        drop(writer);
        assert_eq!(buffer.fill(reader.as_fd(), 100), Ok(Fill::Ended));
    }
}
