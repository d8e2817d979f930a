//! Reading the queues out.

use super::io::{self, Io, POLLIN, POLLOUT, POLLPRI};
use super::*;

/// Longest wait for the sentinels to be processed, in microseconds; then the line buffer is full.
const SENTINEL_WAIT: u64 = 100_000;
/// Longest wait for the next complete line from behind a full line buffer, in microseconds.
const LINE_WAIT: u64 = 20_000;

/// The descriptors at work.
struct Work {
    /// Reads and settings: ours if possible, else the victim's slave.
    slave: i32,
    master: i32,
    /// The descriptor to close at the end.
    own: Option<i32>,
    /// Bytes that came into the line buffer under our settings, and the last two of them: the master has their echoes.
    echoed: u32,
    tail: [u8; 2],
}

/// 0 where what `drain` reads can be put back, else a negated errno: EPERM or EIO where the master is external and the kernel does not
/// let us use TIOCSTI (see dev.tty.legacy_tiocsti), EBADF without a descriptor. Changes nothing.
pub fn can_put_back(hold: &Hold) -> i64 {
    if hold.slave < 0 && hold.master < 0 {
        return io::EBADF;
    }
    match (hold.master >= 0, hold.no_sti == 0 && io::may_simulate(hold.slave)) {
        (true, _) | (false, true) => 0,
        (false, false) => io::EPERM,
    }
}

/// Reads everything that waits in the queues of `hold.slave` and `hold.master` into `hold`; 0 or a negated errno. Afterwards the original
/// settings are in place, packet mode is off and the output is not stopped; `put_back` makes it as it was.
///
/// After an error with [`Hold::phase`] still [`EMPTY`] nothing has changed; with [`DRAINING`] call `put_back`. Errors: those of
/// `can_put_back`; ENOBUFS where an external master has filled the line buffer; EIO where the terminal was hung up or the caller is in
/// the background.
pub fn drain(hold: &mut Hold) -> i64 {
    let possible = can_put_back(hold);
    if possible != 0 || hold.phase != EMPTY {
        return if possible != 0 { possible } else { io::EINVAL };
    }
    let own = io::open_own(hold.slave, hold.master);
    if own.is_none() && hold.slave < 0 {
        return io::EBADF;
    }
    let mut work = Work { slave: own.unwrap_or(hold.slave), master: hold.master, own, echoed: 0, tail: [0; 2] };
    let result = run(hold, &mut work);
    if let Some(fd) = work.own {
        io::close(fd);
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
        packet_off(hold, work)?;
        read_output(hold, work.master)?;
    }
    let result = read_flow(hold, work).and_then(|()| read_input(hold, work));
    io::set_settings(work.slave, &hold.settings)?;
    result?;
    hold.phase = HELD;
    Ok(())
}

fn packet_off(hold: &mut Hold, work: &Work) -> Io<()> {
    hold.packet = io::packet(work.master)?;
    if hold.packet == 0 {
        return Ok(());
    }
    hold.phase = DRAINING;
    if io::ready(work.master, POLLPRI) {
        let mut status = [0u8];
        io::read(work.master, &mut status)?;
        hold.status = u32::from(status[0]);
    }
    io::set_packet(work.master, 0)
}

/// Reads until the kernel, which has to process all that is pending before it says so, has nothing left.
fn read_output(hold: &mut Hold, master: i32) -> Io<()> {
    while io::ready(master, POLLIN) {
        hold.phase = DRAINING;
        let room = hold.output.get_mut(hold.output_len as usize..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ENOBUFS);
        }
        let count = io::read(master, room)?;
        hold.output_len += count as u32;
    }
    Ok(())
}

fn read_input(hold: &mut Hold, work: &mut Work) -> Io<()> {
    if work.master >= 0 {
        start_master(hold, work)?;
    }
    if hold.settings.canonical() { read_canonical(hold, work) } else { read_raw(hold, work) }
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
    let settings = reading(hold, work);
    // Under EXTPROC nothing would be echoed.
    io::set_settings(work.slave, &Settings { lflag: settings.lflag & !(ICANON | EXTPROC), ..settings })?;
    read_rest(hold, work)?;
    find_border(hold, work, 0)
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
    let sent = send_sentinels(work, before)?;
    let through = match (lines, work.master < 0) {
        // The buffer takes them in any case; if neither ends a line the master is stopped.
        (false, _) => io::ready(work.slave, POLLIN),
        (true, true) => io::unread(work.slave) > before,
        (true, false) => {
            sent > 0
                && io::await_that(SENTINEL_WAIT, || count_echoes(work).is_err() || work.tail == [SENTINEL, SENTINEL])
        }
    };
    if through {
        read_lines(hold, work)?;
        hold.lnext = u32::from(if work.master < 0 { sent > 1 } else { work.echoed == sent && last_line_len(hold) > 1 });
    } else if lines && work.master < 0 {
        return Err(io::ENOBUFS);
    } else if lines {
        read_full(hold, work, &settings, before)?;
        hold.ring_full = 1;
    } else {
        io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..settings })?;
        read_rest(hold, work)?;
    }
    find_border(hold, work, sent)?;
    if hold.ring_full == 1 {
        find_marks(hold);
    }
    Ok(())
}

/// Sentinels behind the input; yields how many were sent. To a master two, or none if it is stopped or has no room. Simulated ones are
/// processed at once, and dropped by a full buffer, so the second is sent only where the first has ended no line.
fn send_sentinels(work: &Work, before: u32) -> Io<u32> {
    if work.master < 0 {
        io::simulate(work.slave, SENTINEL)?;
        if io::unread(work.slave) > before {
            return Ok(1);
        }
        io::simulate(work.slave, SENTINEL)?;
        return Ok(2);
    }
    if !io::ready(work.master, POLLOUT) {
        return Ok(0);
    }
    io::write(work.master, &[SENTINEL, SENTINEL]).map(|count| count as u32)
}

/// Everything has been processed and the sentinels end the last line.
fn read_lines(hold: &mut Hold, work: &mut Work) -> Io<()> {
    while io::ready(work.slave, POLLIN) {
        let from = hold.input_len as usize;
        let count = read_some(hold, work, usize::MAX)?;
        let last = hold.input.get(from..from + count).and_then(|line| line.last().copied());
        let end = hold.settings.end_of(last);
        push_line(hold, count as u32, end)?;
    }
    Ok(())
}

fn push_line(hold: &mut Hold, len: u32, end: u16) -> Io<()> {
    let slot = hold.lines.get_mut(hold.line_count as usize).ok_or(io::ENOBUFS)?;
    *slot = (len as u16 & 0x1fff) | end << 13;
    hold.line_count += 1;
    Ok(())
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
/// A read that has used up its size tells nothing of where the line ends. The first one, of half the lines, lets in bytes which are
/// a complete line behind those of the buffer, so that all others reach the end of their line.
fn read_full(hold: &mut Hold, work: &mut Work, settings: &Settings, before: u32) -> Io<()> {
    let (mut len, mut first) = (0, true);
    while hold.input_len <= before && io::await_that(LINE_WAIT, || io::unread(work.slave) > 1) {
        let unread = io::unread(work.slave);
        let want = if first { unread / 2 } else { unread - 1 };
        let count = read_some(hold, work, want as usize)? as u32;
        len += count;
        let last = (hold.input_len as usize).checked_sub(1).and_then(|at| hold.input.get(at).copied());
        let end = hold.settings.end_of(last.filter(|_| len > 0));
        // Behind `before` bytes a line ends; then a read that yields nothing is a lone EOF mark.
        if hold.input_len <= before && (count < want || end != END_EOF || hold.input_len == before) {
            push_line(hold, len, end)?;
            len = 0;
        }
        if first {
            let left = before.saturating_sub(hold.input_len);
            io::await_that(LINE_WAIT, || io::unread(work.slave) > left);
            first = false;
        }
    }
    let from = hold.input_len;
    io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..*settings })?;
    read_rest(hold, work)?;
    if from < before { end_last_line(hold, from as usize, len) } else { Ok(()) }
}

/// The last byte of the last line in the buffer was read without lines, with a NUL for its EOF mark.
fn end_last_line(hold: &mut Hold, at: usize, len: u32) -> Io<()> {
    let byte = hold.input.get(at).copied();
    let end = hold.settings.end_of(byte);
    if byte.is_none() || (end == END_EOF && hold.input.get(at + 1) != Some(&0)) {
        return Ok(());
    }
    push_line(hold, len + 1, end)?;
    if end == END_EOF {
        hold.input.copy_within(at + 2.., at + 1);
        hold.input_len -= 1;
    }
    Ok(())
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
    hold.ring_full |= u32::from(late > sent && hold.line_count == 0);
    Ok(())
}

/// A full buffer that has fewer bytes and EOF marks than slots has marks that no read shows: behind lines that end in a quoted
/// terminator. Which of them is not known, and makes no difference to a reader.
fn find_marks(hold: &mut Hold) {
    let lines = hold.lines.get_mut(..hold.line_count as usize).unwrap_or_default();
    let marks = lines.iter().filter(|line| **line >> 13 == END_EOF).count() as u32;
    let hidden = hold.settings.ring_limit().saturating_sub(hold.ring_len + marks) as usize;
    if hidden <= lines.len() - marks as usize {
        let ended = lines.iter_mut().rev().filter(|line| **line >> 13 != END_EOF);
        ended.take(hidden).for_each(|line| *line = *line & 0x1fff | END_EOF << 13);
    }
}

/// A master that was stopped by TCOOFF takes no sentinel; one that has no room goes on having none.
fn start_master(hold: &mut Hold, work: &Work) -> Io<()> {
    if !io::ready(work.master, POLLOUT) {
        io::xonc(work.master, 1)?;
        if io::ready(work.master, POLLOUT) {
            hold.master_stopped = 1;
            hold.phase = DRAINING;
        }
    }
    Ok(())
}

/// Whether the slave's output was stopped, and what the stop has held back. The output is empty now, so if the slave cannot be written
/// to it is stopped.
fn read_flow(hold: &mut Hold, work: &Work) -> Io<()> {
    if !io::ready(work.slave, POLLOUT) {
        io::xonc(work.slave, 1)?;
        hold.flow = if io::ready(work.slave, POLLOUT) {
            FLOW_IOCTL
        } else if work.master < 0 {
            FLOW_UNKNOWN
        } else {
            FLOW_CHAR
        };
        if hold.flow == FLOW_IOCTL && work.master < 0 {
            return io::xonc(work.slave, 0);
        }
        hold.phase = DRAINING;
    }
    if work.master < 0 {
        return Ok(());
    }
    if hold.flow == FLOW_CHAR {
        // Without IXON the kernel starts what a STOP character has stopped; a START character might have to wait behind a full buffer.
        io::set_settings(work.slave, &Settings { iflag: hold.settings.iflag & !IXON, ..hold.settings })?;
        if !io::ready(work.slave, POLLOUT) {
            return Err(io::EIO);
        }
    }
    read_echoes(hold, work)
}

/// Echoes that found no room or were stopped: writing nothing makes the kernel send them.
fn read_echoes(hold: &mut Hold, work: &Work) -> Io<()> {
    io::write(work.slave, &[])?;
    while io::ready(work.master, POLLIN) {
        let room = hold.echo.get_mut(hold.echo_len as usize..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ENOBUFS);
        }
        let count = io::read(work.master, room)?;
        hold.echo_len += count as u32;
    }
    Ok(())
}
