//! The bytes that wait in a terminal's queues, as plain data.
//!
//! The work is done by `parasite_side::queue`, in a tracee or in this process: it drains the unread output, then the input, line by
//! line under neutral settings, and puts both back. [`Queues`] is what a [`Hold`] holds, with lengths that are right by
//! construction; a [`Hold`] from a tracee or an image is not trusted.
//!
//! What stays ambiguous:
//! - A line whose last byte is a quoted newline, VEOL or VEOL2 and that an EOF mark ends comes back ended by that byte; the reads are the
//!   same, and only a program that leaves canonical mode with the line unread sees a NUL less. In a full line buffer the number of such lines
//!   is known, though not which they are: the last ones that could be are taken for them, so that the buffer is as full as it was.
//! - In a full line buffer behind which 4 KB without blank or newline wait: an EOF mark against a NUL at the end of its last line. With
//!   PARMRK: whether the last slot or two hold such a mark.
//! - The 4096th byte of an unfinished line that has overflowed; nothing in canonical mode can read it.
//! - Under EXTPROC a flush of the output that is pending in packet mode with more output than the master's line buffer holds comes back with
//!   TIOCPKT_IOCTL. With ICANON a full line buffer makes the typist wait after a restore, also where nothing had been read since EXTPROC was set: then the
//!   kernel would throw away what comes in.
//! - An external master in packet mode is told once more of a TCOOFF that it knows of: only TCOON tells it from a full output queue.
//! - Columns beyond 512, but for what a tab makes of them, and those of a terminal with an external master; where an unfinished line behind whole
//!   ones begins, and that it is being erased where the line buffer is full or echoes were held back; tabs in echoes that were held back.

use crate::error::{Error, Result};
use crate::parasite_side::queue as side;
use crate::parasite_side::queue::{Hold, Settings};
use crate::sys::tty::Termios2;

/// How a line of the input ends for the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Newline,
    /// By VEOF, which is not among the bytes.
    Eof,
    Eol,
    Eol2,
}

/// One complete line: what one read returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// At most 4096 bytes, terminator included, EOF mark not.
    pub bytes: Vec<u8>,
    pub end: End,
}

/// Whether the slave's output was stopped, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    #[default]
    Runs,
    /// By TCXONC with TCOOFF: only TCOON starts it.
    Ioctl,
    /// By the STOP character.
    Character,
    /// Not writable; with an external master the reason cannot be known.
    Unknown,
}

/// What the line discipline knows of the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The column of the output, at most [`side::MOST_COLUMNS`].
    pub column: u32,
    /// The column at which the unfinished line begins, modulo eight.
    pub line: u32,
    /// An erasure is being shown.
    pub erasing: bool,
}

/// All that waits in a terminal, and the settings under which it does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Queues {
    pub termios: Termios2,
    /// Complete lines, in canonical mode.
    pub lines: Vec<Line>,
    /// The unfinished line; without canonical mode the bytes of the line buffer.
    pub partial: Vec<u8>,
    /// A literal-next (VLNEXT) is pending.
    pub lnext: bool,
    /// The line buffer was full.
    pub full: bool,
    /// Typed bytes that were not processed yet, behind a full line buffer.
    pub flip: Vec<u8>,
    /// Unread output.
    pub output: Vec<u8>,
    /// Echoes that were held back by a stop or a full output queue.
    pub echo: Vec<u8>,
    /// None where it is not known: it would be told to an external master.
    pub cursor: Option<Cursor>,
    pub flow: Flow,
    /// The master's own output was stopped by TCOOFF.
    pub master_stopped: bool,
    /// Packet mode.
    pub packet: bool,
    /// The pending status byte of packet mode.
    pub status: u8,
}

fn bad(detail: &str) -> Error {
    Error::unexpected("terminal queues", detail)
}

fn bytes(area: &[u8], from: u32, to: u32) -> Result<Vec<u8>> {
    area.get(from as usize..to as usize).map(<[u8]>::to_vec).ok_or_else(|| bad("a length beyond its area"))
}

fn fill(area: &mut [u8], at: usize, from: &[u8]) -> Result<()> {
    let slots = area.get_mut(at..at + from.len()).ok_or_else(|| bad("more bytes than a terminal can hold"))?;
    slots.copy_from_slice(from);
    Ok(())
}

impl From<Settings> for Termios2 {
    fn from(settings: Settings) -> Termios2 {
        let Settings { iflag, oflag, cflag, lflag, line, cc, ispeed, ospeed } = settings;
        Termios2 {
            c_iflag: iflag,
            c_oflag: oflag,
            c_cflag: cflag,
            c_lflag: lflag,
            c_line: line,
            c_cc: cc,
            c_ispeed: ispeed,
            c_ospeed: ospeed,
        }
    }
}

impl From<Termios2> for Settings {
    fn from(termios: Termios2) -> Settings {
        Settings {
            iflag: termios.c_iflag,
            oflag: termios.c_oflag,
            cflag: termios.c_cflag,
            lflag: termios.c_lflag,
            line: termios.c_line,
            cc: termios.c_cc,
            ispeed: termios.c_ispeed,
            ospeed: termios.c_ospeed,
        }
    }
}

/// An empty [`Hold`] on the heap, where its 63 KiB belong.
pub fn empty_hold() -> Box<Hold> {
    let settings = Settings::from(Termios2::default());
    Box::new(Hold {
        slave: -1,
        master: -1,
        lender: 0,
        no_sti: 0,
        phase: side::EMPTY,
        settings,
        packet: 0,
        status: 0,
        flow: 0,
        master_stopped: 0,
        ring_full: 0,
        lnext: 0,
        line_count: 0,
        ring_len: 0,
        input_len: 0,
        output_len: 0,
        echo_len: 0,
        output_put: 0,
        flip_put: 0,
        cursor: 0,
        column: 0,
        canon_column: 0,
        erasing: 0,
        locked: 0,
        locks: [0; 9],
        lines: [0; side::MAX_LINES],
        input: [0; side::INPUT_SIZE],
        output: [0; side::OUTPUT_SIZE],
        echo: [0; side::ECHO_SIZE],
    })
}

/// A [`Hold`] from the bytes that a tracee's region has. Errors: another length.
pub fn hold_from_bytes(bytes: &[u8]) -> Result<Box<Hold>> {
    crate::sys::region::from_bytes(bytes).ok_or_else(|| bad("another length than a hold has"))
}

impl Queues {
    /// Whether there is nothing to put back beyond the settings.
    pub fn is_empty(&self) -> bool {
        let input = self.lines.is_empty() && self.partial.is_empty() && self.flip.is_empty() && !self.lnext;
        input && self.output.is_empty() && self.echo.is_empty()
    }

    /// What a drained `hold` holds. Errors: a length or a line end that no drain writes.
    pub fn from_hold(hold: &Hold) -> Result<Queues> {
        let told = hold.column <= side::MOST_COLUMNS && hold.canon_column < 8;
        if !told || hold.ring_len > hold.input_len || hold.line_count as usize > side::MAX_LINES {
            return Err(bad("numbers that contradict each other"));
        }
        let mut lines = Vec::with_capacity(hold.line_count as usize);
        let mut at = 0;
        for line in hold.lines.iter().take(hold.line_count as usize) {
            let end = match line >> 13 {
                side::END_NEWLINE => End::Newline,
                side::END_EOF => End::Eof,
                side::END_EOL => End::Eol,
                side::END_EOL2 => End::Eol2,
                _ => return Err(bad("an unknown line end")),
            };
            let len = u32::from(line & 0x1fff);
            if at + len > hold.ring_len || (len == 0 && end != End::Eof) {
                return Err(bad("lines beyond the line buffer"));
            }
            lines.push(Line { bytes: bytes(&hold.input, at, at + len)?, end });
            at += len;
        }
        Ok(Queues {
            termios: hold.settings.into(),
            lines,
            partial: bytes(&hold.input, at, hold.ring_len)?,
            lnext: hold.lnext != 0,
            full: hold.ring_full != 0,
            flip: bytes(&hold.input, hold.ring_len, hold.input_len)?,
            output: bytes(&hold.output, 0, hold.output_len)?,
            echo: bytes(&hold.echo, 0, hold.echo_len)?,
            cursor: (hold.cursor != 0).then_some(Cursor {
                column: hold.column,
                line: hold.canon_column,
                erasing: hold.erasing != 0,
            }),
            flow: match hold.flow {
                side::FLOW_RUNS => Flow::Runs,
                side::FLOW_IOCTL => Flow::Ioctl,
                side::FLOW_CHAR => Flow::Character,
                side::FLOW_UNKNOWN => Flow::Unknown,
                _ => return Err(bad("an unknown flow state")),
            },
            master_stopped: hold.master_stopped != 0,
            packet: hold.packet != 0,
            status: u8::try_from(hold.status).map_err(|_| bad("a status that is no byte"))?,
        })
    }

    /// A `Hold` for `put_back` onto the terminal behind two descriptors of the process that will run it; `master` -1 if external.
    /// Errors: more than a terminal can hold.
    pub fn to_hold(&self, slave: i32, master: i32) -> Result<Box<Hold>> {
        let mut hold = empty_hold();
        (hold.slave, hold.master, hold.phase) = (slave, master, side::HELD);
        hold.settings = self.termios.into();
        hold.packet = u32::from(self.packet);
        hold.status = u32::from(self.status);
        hold.flow = match self.flow {
            Flow::Runs => side::FLOW_RUNS,
            Flow::Ioctl => side::FLOW_IOCTL,
            Flow::Character => side::FLOW_CHAR,
            Flow::Unknown => side::FLOW_UNKNOWN,
        };
        hold.master_stopped = u32::from(self.master_stopped);
        hold.ring_full = u32::from(self.full);
        hold.lnext = u32::from(self.lnext);
        if let Some(cursor) = self.cursor {
            if cursor.column > side::MOST_COLUMNS {
                return Err(bad("a column that no terminal tells"));
            }
            (hold.cursor, hold.erasing) = (1, u32::from(cursor.erasing));
            (hold.column, hold.canon_column) = (cursor.column, cursor.line);
        }
        let ring = self.fill_lines(&mut hold)?;
        fill(&mut hold.input, ring, &self.flip)?;
        fill(&mut hold.output, 0, &self.output)?;
        fill(&mut hold.echo, 0, &self.echo)?;
        hold.ring_len = ring as u32;
        hold.input_len = (ring + self.flip.len()) as u32;
        hold.output_len = self.output.len() as u32;
        hold.echo_len = self.echo.len() as u32;
        Ok(hold)
    }

    /// Writes the lines and the unfinished one; yields their bytes, at most the 4096 of a line buffer.
    fn fill_lines(&self, hold: &mut Hold) -> Result<usize> {
        let (mut at, mut slots) = (0, 0);
        for (index, line) in self.lines.iter().enumerate() {
            let end = match line.end {
                End::Newline => side::END_NEWLINE,
                End::Eof => side::END_EOF,
                End::Eol => side::END_EOL,
                End::Eol2 => side::END_EOL2,
            };
            slots += line.bytes.len() + usize::from(line.end == End::Eof);
            let slot = hold.lines.get_mut(index).filter(|_| slots <= 4096);
            *slot.ok_or_else(|| bad("more lines than a line buffer holds"))? = line.bytes.len() as u16 | end << 13;
            fill(&mut hold.input, at, &line.bytes)?;
            at += line.bytes.len();
        }
        if slots + self.partial.len() > 4096 {
            return Err(bad("more bytes than a line buffer holds"));
        }
        fill(&mut hold.input, at, &self.partial)?;
        hold.line_count = self.lines.len() as u32;
        Ok(at + self.partial.len())
    }
}
