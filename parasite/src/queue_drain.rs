//! Reading the queues out.

use super::io::{self, Io, POLLIN, POLLOUT};
use super::*;

/// Longest wait for the sentinels to be processed, in microseconds; then the line buffer is full.
const SENTINEL_WAIT: u64 = 100_000;
/// For what is certain to come, in microseconds.
const PATIENCE: u64 = 2_000_000;

/// Bytes in a full line buffer.
const RING: u32 = 4095;

/// The descriptors at work.
pub struct Work {
    /// Reads and settings: ours if possible, else the victim's slave.
    pub slave: i32,
    pub master: i32,
    /// The descriptor to close at the end.
    own: Option<i32>,
    /// Bytes that came into the line buffer under our settings, and the last two of them: the master has their echoes.
    echoed: u32,
    tail: [u8; 2],
}

impl Work {
    /// Whether the sentinels seem to have been the last that came in.
    fn is_through(&self) -> bool {
        self.tail == [SENTINEL, SENTINEL]
    }
}

/// 0 where what `drain` reads can be put back by this descriptor of the slave or by the master, else a negated errno: EPERM where the master is external
/// and the kernel does not let us use TIOCSTI (see dev.tty.legacy_tiocsti). Changes nothing.
pub fn can_put_back(hold: &Hold, slave: i32) -> i64 {
    match (hold.master >= 0, hold.no_sti == 0 && io::may_simulate(slave)) {
        (true, _) | (false, true) => 0,
        (false, false) => io::EPERM,
    }
}

/// Reads everything that waits in the queues of `hold.slave` and `hold.master` into `hold`, which is empty; 0 or a negated errno. Afterwards the original
/// settings are in place, packet mode is off and the output is not stopped; `put_back` makes it as it was.
///
/// After an error with [`Hold::phase`] still [`EMPTY`] nothing has changed; with [`DRAINING`] call `put_back`. Errors: those of
/// `can_put_back`; EBADF where the terminal cannot be opened; ENOBUFS where an external master has filled the line buffer; EIO where the terminal was hung up or the caller is in
/// the background.
pub fn drain(hold: &mut Hold) -> i64 {
    if hold.phase != EMPTY {
        return io::EINVAL;
    }
    if let Err(error) = hold.borrow_master() {
        return error;
    }
    let own = io::open_own(hold.slave, hold.master);
    if own.is_none() && hold.slave < 0 {
        hold.return_master();
        return io::EBADF;
    }
    let mut work = Work { slave: own.unwrap_or(hold.slave), master: hold.master, own, echoed: 0, tail: [0; 2] };
    let result = match can_put_back(hold, work.slave) {
        0 => run(hold, &mut work),
        error => Err(error),
    };
    if let Some(fd) = work.own {
        io::close(fd);
    }
    if hold.phase == EMPTY {
        hold.return_master();
    }
    result.err().unwrap_or(0)
}

fn run(hold: &mut Hold, work: &mut Work) -> Io<()> {
    hold.settings = io::settings(work.slave)?;
    hold.locks = io::locks(work.slave)?;
    if hold.locks != [0; 9] {
        // Locked settings cannot be made neutral. EPERM, and nothing has changed, without CAP_SYS_ADMIN.
        io::set_locks(work.slave, &[0; 9])?;
        hold.locked = 1;
        hold.phase = DRAINING;
    }
    if work.master >= 0 {
        flow::packet_off(hold, work)?;
        flow::read_output(hold, work.master)?;
    }
    let result = flow::read(hold, work).and_then(|()| read_cursor(hold, work)).and_then(|()| read_input(hold, work));
    io::set_settings(work.slave, &hold.settings)?;
    result?;
    hold.phase = HELD;
    Ok(())
}

fn read_cursor(hold: &mut Hold, work: &Work) -> Io<()> {
    if work.master < 0 { Ok(()) } else { cursor::read_column(hold, work.slave, work.master) }
}

fn read_input(hold: &mut Hold, work: &mut Work) -> Io<()> {
    if work.master >= 0 {
        flow::start_master(hold, work)?;
    }
    if hold.settings.canonical() {
        read_canonical(hold, work)?
    } else {
        read_raw(hold, work)?
    }
    hold.ring_full = u32::from(slots(hold) >= hold.settings.ring_limit());
    Ok(())
}

/// Nothing is special, and where the master is at hand all that comes in from now on is echoed as it is: it was not processed when we
/// came.
fn reading(hold: &Hold, work: &Work) -> Settings {
    let mut settings = hold.settings.neutral();
    if work.master < 0 {
        // An external master in packet mode would see these two change.
        settings.cc[VSTOP] = hold.settings.cc[VSTOP];
        settings.cc[VSTART] = hold.settings.cc[VSTART];
        return settings;
    }
    let (iflag, oflag) = (settings.iflag & !(PARMRK | IXON), settings.oflag & !OPOST);
    Settings { iflag, oflag, lflag: settings.lflag | ECHO, ..settings }
}

/// One read into the free part of `input`, of at most `limit` bytes.
fn read_some(hold: &mut Hold, work: &mut Work, limit: usize) -> Io<usize> {
    hold.phase = DRAINING;
    let room = hold.input.get_mut(hold.input_len as usize..).unwrap_or_default();
    let len = room.len().min(limit);
    let room = room.get_mut(..len).unwrap_or_default();
    if room.is_empty() {
        return Err(io::ENOBUFS);
    }
    let count = io::read(work.slave, room)?;
    hold.input_len += count as u32;
    // The kernel drops echoes that find no room; what one read lets in always finds it.
    count_echoes(work)?;
    Ok(count)
}

/// Takes the echoes of what came in.
fn count_echoes(work: &mut Work) -> Io<()> {
    let mut echoes = [0u8; 512];
    while work.master >= 0 && io::ready(work.master, POLLIN) {
        let count = io::read(work.master, &mut echoes)?;
        work.echoed += count as u32;
        for byte in echoes.iter().take(count).skip(count.saturating_sub(2)) {
            work.tail = [work.tail[1], *byte];
        }
    }
    Ok(())
}

/// Reads without lines until nothing is left, what is unprocessed included.
fn read_rest(hold: &mut Hold, work: &mut Work) -> Io<()> {
    while io::ready(work.slave, POLLIN) {
        read_some(hold, work, usize::MAX)?;
    }
    Ok(())
}

fn read_raw(hold: &mut Hold, work: &mut Work) -> Io<()> {
    // With nothing to read this makes the kernel process what is pending.
    io::poll(work.slave, POLLIN, 0);
    let count = io::unread(work.slave);
    if count == 0 {
        return Ok(());
    }
    if work.master < 0 && count >= hold.settings.ring_limit() {
        return Err(io::ENOBUFS);
    }
    if hold.settings.lflag & EXTPROC != 0 {
        return read_external(hold, work);
    }
    let settings = reading(hold, work);
    io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..settings })?;
    read_rest(hold, work)?;
    find_border(hold, work, 0)
}

/// Under EXTPROC nothing is edited, so no settings are in the way; a change would leave a status bit for an external master, and make a full
/// buffer throw input away. All that was in the buffer comes with the first read, but for a lone VEOF at its end, which is taken and not told.
fn read_external(hold: &mut Hold, work: &mut Work) -> Io<()> {
    let limit = hold.settings.ring_limit();
    loop {
        let is_first = hold.input_len == 0;
        io::poll(work.slave, POLLIN, 0);
        let count = io::unread(work.slave);
        // Less than nothing is there where a buffer has been read that had thrown input away.
        if count == 0 || count as usize > INPUT_SIZE {
            break;
        }
        // Such a buffer has one byte more than it says, and is out of order without it.
        let most = if count == RING { count + 1 } else { count };
        let got = read_some(hold, work, most as usize)? as u32;
        if got > RING {
            io::flush(work.slave, 0)?;
        }
        if got + 1 == count {
            *hold.input.get_mut(hold.input_len as usize).ok_or(io::ENOBUFS)? = hold.settings.cc[VEOF];
            hold.input_len += 1;
        }
        if hold.ring_len == 0 && hold.input_len >= limit {
            // What comes in behind the first read was on its way, and fills the buffer up.
            hold.ring_len = if is_first { hold.input_len } else { limit };
        }
    }
    if hold.ring_len == 0 {
        hold.ring_len = hold.input_len;
    }
    Ok(())
}

fn read_canonical(hold: &mut Hold, work: &mut Work) -> Io<()> {
    // Where no line is complete this makes the kernel process what is pending.
    let lines = io::ready(work.slave, POLLIN);
    let before = io::unread(work.slave);
    let mut settings = reading(hold, work);
    settings.cc[VEOL] = SENTINEL;
    if work.master >= 0 {
        // What comes in is in lines at every blank, so that there is always a complete one.
        settings.cc[VEOL2] = b' ';
        settings.lflag |= IEXTEN;
    }
    io::set_settings(work.slave, &settings)?;
    let sent = send_sentinels(work, lines, before)?;
    let through = match (lines, work.master < 0) {
        // The buffer takes them in any case; if neither ends a line the master is stopped.
        (false, _) => io::ready(work.slave, POLLIN),
        (true, true) => io::unread(work.slave) > before,
        (true, false) => sent > 0 && io::await_that(SENTINEL_WAIT, || count_echoes(work).is_err() || work.is_through()),
    };
    if through {
        read_lines(hold, work, 0)?;
    } else if lines && work.master < 0 {
        return Err(io::ENOBUFS);
    } else if lines {
        read_full(hold, work, &settings, before)?;
    } else {
        io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..settings })?;
        read_rest(hold, work)?;
    }
    // A literal-next has kept the first sentinel from ending a line.
    let alone = sent == 2 && (work.master < 0 || work.echoed == sent && last_line_len(hold) > 1);
    hold.lnext = u32::from(alone);
    find_border(hold, work, sent)?;
    if lines && !through {
        find_marks(hold);
    }
    if through && work.master >= 0 {
        cursor::read_line(hold, work.slave, work.master)?;
    }
    Ok(())
}

/// Sentinels behind the input; yields how many were sent. The second only where the first has ended no line, if that can be told at once: simulated
/// ones are processed then, and dropped by a full buffer; where no line is complete, asking makes the kernel process them. Else a master
/// gets two, or none if it is stopped or has no room.
fn send_sentinels(work: &Work, lines: bool, before: u32) -> Io<u32> {
    let alone = work.master < 0 || !lines;
    let bytes = [SENTINEL; 2];
    for sent in 1..=2 {
        if work.master < 0 {
            io::simulate(work.slave, SENTINEL)?;
        } else if !io::ready(work.master, POLLOUT) {
            return Ok(sent - 1);
        } else {
            io::write(work.master, if alone { &bytes[..1] } else { &bytes })?;
        }
        let ended = if lines { io::unread(work.slave) > before } else { io::ready(work.slave, POLLIN) };
        if alone && ended {
            return Ok(sent);
        }
        if !alone {
            break;
        }
    }
    Ok(2)
}

/// Everything has been processed and the sentinels end the last line.
///
/// `len` bytes of the first line have been read before.
fn read_lines(hold: &mut Hold, work: &mut Work, len: u32) -> Io<()> {
    let mut len = len as usize;
    while io::ready(work.slave, POLLIN) {
        let count = len + read_some(hold, work, usize::MAX)?;
        let line = (hold.input_len as usize).checked_sub(count).and_then(|from| hold.input.get(from..from + count));
        let end = hold.settings.end_of(line.and_then(|line| line.last().copied()));
        push_line(hold, count as u32, end);
        len = 0;
    }
    Ok(())
}

/// Notes a line. Those of the line buffer have room; what came in behind it is no line in the end.
fn push_line(hold: &mut Hold, len: u32, end: u16) {
    if let Some(slot) = hold.lines.get_mut(hold.line_count as usize) {
        *slot = (len as u16 & 0x1fff) | end << 13;
        hold.line_count += 1;
    }
}

fn last_line_len(hold: &Hold) -> u32 {
    match (hold.line_count as usize).checked_sub(1) {
        Some(last) => u32::from(hold.lines.get(last).copied().unwrap_or(0) & 0x1fff),
        None => 0,
    }
}

/// Reads from a full buffer, of which `before` bytes are in complete lines, and what waits behind it. One byte of a complete line is left each
/// time: without one, a full buffer throws away what comes in.
///
/// A read that has used up its size tells nothing of where the line ends. The first one, which does so if there is one line, lets in bytes which
/// are a complete line behind those of the buffer, so that all others reach the end of their line. If the sentinels get through after all, no more
/// is behind.
fn read_full(hold: &mut Hold, work: &mut Work, settings: &Settings, before: u32) -> Io<()> {
    let mut len = 0;
    let mut want = io::unread(work.slave).saturating_sub(1);
    // Hardly ever is a buffer full with no more than that in lines: rather the kernel is slow.
    if want < 64 && io::await_that(PATIENCE / 4, || count_echoes(work).is_err() || work.is_through()) {
        return read_lines(hold, work, 0);
    }
    while want > 0 && hold.input_len <= before {
        let count = read_some(hold, work, want as usize)? as u32;
        len += count;
        let last = (hold.input_len as usize).checked_sub(1).and_then(|at| hold.input.get(at).copied());
        let end = hold.settings.end_of(last.filter(|_| len > 0));
        // Behind `before` bytes a line ends; then a read that yields nothing is a lone EOF mark.
        if hold.input_len <= before && (count < want || end != END_EOF || hold.input_len == before) {
            push_line(hold, len, end);
            len = 0;
        }
        let left = before.saturating_sub(hold.input_len).max(1);
        // A line comes, or the place of all that was read is taken.
        let (slave, read) = (work.slave, hold.input_len);
        let comes = |work: &mut Work| {
            count_echoes(work).is_err() || work.is_through() || io::unread(slave) > left || work.echoed >= read
        };
        io::await_that(PATIENCE, || comes(work));
        if work.is_through() {
            return read_lines(hold, work, len);
        }
        want = io::unread(work.slave).saturating_sub(1);
    }
    let from = hold.input_len;
    io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..*settings })?;
    read_rest(hold, work)?;
    if from < before {
        end_last_line(hold, from as usize, len);
    }
    Ok(())
}

/// The last byte of the last line in the buffer was read without lines, with a NUL for its EOF mark.
fn end_last_line(hold: &mut Hold, at: usize, len: u32) {
    let byte = hold.input.get(at).copied();
    let end = hold.settings.end_of(byte);
    if byte.is_none() || (end == END_EOF && hold.input.get(at + 1) != Some(&0)) {
        return;
    }
    push_line(hold, len + 1, end);
    if end == END_EOF {
        hold.input.copy_within(at + 2.., at + 1);
        hold.input_len -= 1;
    }
}

/// Takes the sentinels away and finds where the line buffer's content ended: what came in later has been echoed. A line that ends
/// beyond is none yet.
fn find_border(hold: &mut Hold, work: &mut Work, sent: u32) -> Io<()> {
    if work.master >= 0 {
        // Echoes that wait go out when something is written.
        io::write(work.slave, &[])?;
        count_echoes(work)?;
    }
    let late = if work.master < 0 { sent } else { work.echoed };
    hold.ring_len = hold.input_len.checked_sub(late).ok_or(io::EIO)?;
    hold.input_len = hold.input_len.checked_sub(sent).filter(|len| *len >= hold.ring_len).ok_or(io::EIO)?;
    let mut len: u32 = hold.lines.iter().take(hold.line_count as usize).map(|line| u32::from(line & 0x1fff)).sum();
    while len > hold.ring_len {
        len -= last_line_len(hold);
        hold.line_count -= 1;
    }
    Ok(())
}

/// A full buffer that has fewer bytes and EOF marks than slots has marks that no read shows: behind lines that end in a quoted
/// terminator. Which of them is not known, and makes no difference to a reader.
fn find_marks(hold: &mut Hold) {
    let hidden = hold.settings.ring_limit().saturating_sub(slots(hold)) as usize;
    let lines = hold.lines.get_mut(..hold.line_count as usize).unwrap_or_default();
    let candidates = lines.iter().filter(|line| **line >> 13 != END_EOF).count();
    let ended = lines.iter_mut().rev().filter(|line| **line >> 13 != END_EOF);
    // Where there are more the buffer was not full, but the kernel was slow.
    if hidden <= candidates {
        ended.take(hidden).for_each(|line| *line = *line & 0x1fff | END_EOF << 13);
    }
}

/// Slots of the line buffer that are in use: bytes and EOF marks.
fn slots(hold: &Hold) -> u32 {
    let lines = hold.lines.iter().take(hold.line_count as usize);
    hold.ring_len + lines.filter(|line| **line >> 13 == END_EOF).count() as u32
}
