//! What waits in a terminal's queues, read out and put back by system calls alone.
//!
//! Runs inside a tracee, so that a controller that dies takes no byte with it, and in the controller, which at a restore holds the
//! descriptors itself. No allocation, no panic, no sleep that would clobber a restart block.
//!
//! 1. `drain`: packet mode off, the unread output, the kind of flow stop and the echoes that it held back: any later byte on the master
//!    is known to be ours. Then what the line discipline knows of the cursor.
//! 2. Settings under which nothing is edited or signalled and everything is echoed as it is; ICANON stays, since changing it forgets the
//!    read boundaries. What was not processed when we came is echoed as it comes in: that many bytes at the end of the input are to be
//!    processed again.
//! 3. Two sentinel bytes behind the input: when they are echoed, all before them has come in. They also show whether a literal-next is
//!    pending: then the first does not end a line.
//! 4. Where they do not get through the line buffer is full and raw bytes wait behind it: reads leave one byte of a complete line
//!    each time, as the kernel throws input away once a full buffer has no complete line.
//! 5. The original settings.
//! 6. `put_back`: the input with every special byte quoted by VLNEXT, before or after output without OPOST, flow stop, pending packet status and
//!    held echoes; the original settings, the unprocessed bytes, packet mode.
//!
//! The caller keeps every user of the terminal frozen, and blocks SIGTTOU; a background process may not read (EIO).
//! Source: drivers/tty/n_tty.c, drivers/tty/tty_buffer.c, drivers/tty/pty.c.

#[path = "queue_cursor.rs"]
mod cursor;
#[path = "queue_drain.rs"]
mod drain;
#[path = "queue_flow.rs"]
mod flow;
#[path = "queue_io.rs"]
mod io;
#[path = "queue_put.rs"]
mod put;
#[path = "queue_room.rs"]
mod room;
#[path = "queue_typing.rs"]
mod typing;

pub use cursor::MOST as MOST_COLUMNS;
#[allow(unused_imports)]
pub use drain::{can_put_back, drain};
pub use put::put_back;

/// Most lines that a line buffer of 4096 slots holds: lone EOF marks.
pub const MAX_LINES: usize = 4096;
/// Bytes for the input: the line buffer, what waits behind it, two sentinels.
pub const INPUT_SIZE: usize = (4096 + room::MOST + 2).next_multiple_of(1024);
/// Bytes for the output: the master's line buffer and what waits behind it.
pub const OUTPUT_SIZE: usize = 4096 + room::MOST;
/// Bytes for echoes that were held back: at most 4096 operations, expanded.
pub const ECHO_SIZE: usize = 6 * 1024;

/// [`Hold::phase`]: nothing has been read.
pub const EMPTY: u32 = 0;
/// [`Hold::phase`]: `drain` is at work, or failed on its way; `put_back` gives back what is there.
pub const DRAINING: u32 = 1;
/// [`Hold::phase`]: all is held.
pub const HELD: u32 = 2;
/// [`Hold::phase`]: `put_back` is done.
pub const RETURNED: u32 = 3;

/// [`Hold::lender`]: the copy was made.
pub const BORROWED: i32 = -1;

/// How a line ends: by a newline.
pub const END_NEWLINE: u16 = 0;
/// How a line ends: by an EOF mark, which is not among the line's bytes.
pub const END_EOF: u16 = 1;
/// How a line ends: by VEOL.
pub const END_EOL: u16 = 2;
/// How a line ends: by VEOL2.
pub const END_EOL2: u16 = 3;

/// [`Hold::flow`]: output runs.
#[allow(dead_code)]
pub const FLOW_RUNS: u32 = 0;
/// [`Hold::flow`]: stopped by TCXONC, TCOOFF.
pub const FLOW_IOCTL: u32 = 1;
/// [`Hold::flow`]: stopped by the STOP character.
pub const FLOW_CHAR: u32 = 2;
/// [`Hold::flow`]: not writable, and not ours to find out why: the output queue of an external master may be full.
pub const FLOW_UNKNOWN: u32 = 3;

/// The kernel's `struct termios2`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub struct Settings {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
    pub ispeed: u32,
    pub ospeed: u32,
}

/// Everything that is held of one terminal. All zeroes is a valid empty value.
#[repr(C)]
pub struct Hold {
    /// In: a descriptor of the slave, or -1: then it is opened, through the master, or without one as /dev/tty.
    pub slave: i32,
    /// In: a descriptor of the master, or -1 where it is external.
    pub master: i32,
    /// In: the process whose descriptor `master` is, 0 where it is the caller's. [`BORROWED`]: `master` is a copy that `put_back` closes.
    pub lender: i32,
    /// In: 1 to do without TIOCSTI even where the kernel would allow it.
    pub no_sti: u32,
    pub phase: u32,
    /// The original settings; in for a `put_back` from an image.
    pub settings: Settings,
    /// 1: packet mode.
    pub packet: u32,
    /// The pending status byte of packet mode.
    pub status: u32,
    /// Flow of the slave's output.
    pub flow: u32,
    /// 1: the master's own output was stopped by TCOOFF.
    pub master_stopped: u32,
    /// 1: the line buffer was full, what lies beyond `ring_len` was unprocessed.
    pub ring_full: u32,
    /// 1: a literal-next is pending.
    pub lnext: u32,
    /// Lines in `lines`.
    pub line_count: u32,
    /// Bytes of `input` that are in the line buffer: the lines', then the unfinished line's or raw ones.
    pub ring_len: u32,
    /// Bytes of `input`; beyond `ring_len` they are raw and unprocessed.
    pub input_len: u32,
    pub output_len: u32,
    pub echo_len: u32,
    /// Bytes of `output` that `put_back` has written.
    pub output_put: u32,
    /// Bytes of `input` beyond `ring_len` that `put_back` has written; the rest is to be written as the master takes it.
    pub flip_put: u32,
    /// 1: the next three are known.
    pub cursor: u32,
    /// The column of the output, [`MOST_COLUMNS`] at most.
    pub column: u32,
    /// The column at which the unfinished line begins, modulo eight.
    pub canon_column: u32,
    /// 1: an erasure is being shown, and the next character ends it with a slash (ECHOPRT).
    pub erasing: u32,
    /// 1: settings are locked, see `locks`; they are unlocked while the queues are worked on.
    pub locked: u32,
    /// The locked settings (TIOCGLCKTRMIOS), without speeds.
    pub locks: [u32; 9],
    /// Length in bytes without the EOF mark (low 13 bits) and end of each line (high 3 bits).
    pub lines: [u16; MAX_LINES],
    pub input: [u8; INPUT_SIZE],
    pub output: [u8; OUTPUT_SIZE],
    pub echo: [u8; ECHO_SIZE],
}

const _: () = {
    assert!(size_of::<Settings>() == 44);
    assert!(size_of::<Hold>() == 172 + 2 * MAX_LINES + INPUT_SIZE + OUTPUT_SIZE + ECHO_SIZE);
    assert!(size_of::<Hold>() <= 96 * 1024);
    assert!(align_of::<Hold>() == 4);
};

// Flag words of the settings, by their kernel names.
pub(crate) const PARMRK: u32 = 0o10;
pub(crate) const ISTRIP: u32 = 0o40;
pub(crate) const IUCLC: u32 = 0o1000;
pub(crate) const IXON: u32 = 0o2000;
/// IGNBRK, BRKINT, INPCK, ISTRIP, INLCR, IGNCR, ICRNL, IUCLC, IXANY, IMAXBEL.
pub(crate) const EDITS: u32 = 0o1 | 0o2 | 0o20 | 0o40 | 0o100 | 0o200 | 0o400 | 0o1000 | 0o4000 | 0o20000;
pub(crate) const OPOST: u32 = 0o1;
pub(crate) const ONLCR: u32 = 0o4;
pub(crate) const XTABS: u32 = 0o14000;
pub(crate) const OCRNL: u32 = 0o10;
pub(crate) const ONOCR: u32 = 0o20;
pub(crate) const ONLRET: u32 = 0o40;
pub(crate) const IUTF8: u32 = 0o40_000;
pub(crate) const ICANON: u32 = 0o2;
pub(crate) const ECHO: u32 = 0o10;
pub(crate) const ECHOE: u32 = 0o20;
pub(crate) const NOFLSH: u32 = 0o200;
pub(crate) const ECHOCTL: u32 = 0o1000;
pub(crate) const ECHOPRT: u32 = 0o2000;
pub(crate) const IEXTEN: u32 = 0o100_000;
pub(crate) const EXTPROC: u32 = 0o200_000;

// Slots of the control characters.
pub(crate) const VERASE: usize = 2;
pub(crate) const VEOF: usize = 4;
pub(crate) const VTIME: usize = 5;
pub(crate) const VMIN: usize = 6;
pub(crate) const VSTART: usize = 8;
pub(crate) const VSTOP: usize = 9;
pub(crate) const VEOL: usize = 11;
pub(crate) const VLNEXT: usize = 15;
pub(crate) const VEOL2: usize = 16;

/// The sentinel: ends a line while the input is drained. A carriage return, since that ends the lines of a paste.
pub(crate) const SENTINEL: u8 = b'\r';
pub(crate) const STOP: u8 = 0x13;
pub(crate) const START: u8 = 0x11;

impl Hold {
    /// Puts a copy of the lender's descriptor in the place of its number. EBADF: it lends none.
    pub(crate) fn borrow_master(&mut self) -> io::Io<()> {
        if self.lender > 0 {
            self.master = io::copy_of(self.lender, self.master).map_err(|_| io::EBADF)?;
            self.lender = BORROWED;
        }
        Ok(())
    }

    /// Closes what was borrowed, once: whatever is put back later would have another descriptor under its number.
    pub(crate) fn return_master(&mut self) {
        if self.lender == BORROWED {
            io::close(self.master);
            (self.lender, self.master, self.phase) = (0, -1, RETURNED);
        }
    }
}

impl Settings {
    /// Whether reads return lines.
    pub(crate) fn canonical(&self) -> bool {
        self.lflag & (ICANON | EXTPROC) == ICANON
    }

    /// Nothing is edited, echoed or signalled, no character is special. ICANON, EXTPROC, IXON, PARMRK and the output side stay.
    pub(crate) fn neutral(&self) -> Settings {
        let mut cc = [0; 19];
        cc[VMIN] = 1;
        cc[VTIME] = 0;
        Settings { iflag: self.iflag & !EDITS, lflag: self.lflag & (ICANON | EXTPROC | NOFLSH), cc, ..*self }
    }

    /// How a line with this last byte ends.
    pub(crate) fn end_of(&self, last: Option<u8>) -> u16 {
        match last {
            Some(b'\n') => END_NEWLINE,
            Some(0) | None => END_EOF,
            Some(byte) if byte == self.cc[VEOL] => END_EOL,
            Some(byte) if byte == self.cc[VEOL2] && self.lflag & IEXTEN != 0 => END_EOL2,
            Some(_) => END_EOF,
        }
    }

    /// Slots of the line buffer after which the kernel stops filling it.
    pub(crate) fn ring_limit(&self) -> u32 {
        if self.iflag & PARMRK != 0 { 4093 } else { 4095 }
    }
}
