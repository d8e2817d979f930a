//! Reading the queues out.

use super::io::{self, Io, POLLIN, POLLOUT, POLLPRI};
use super::*;

/// Longest wait for the sentinels to be processed, in microseconds; then the line buffer is full.
const SENTINEL_WAIT: u64 = 150_000;
/// Longest wait for the next complete line from behind a full line buffer, in microseconds.
const LINE_WAIT: u64 = 20_000;
const STEP_WAIT: u64 = 50_000;

/// The descriptors at work.
struct Work {
    /// Reads and settings: ours if possible, else the victim's slave.
    slave: i32,
    master: i32,
    /// The descriptor to close at the end.
    own: Option<i32>,
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
    let work = Work { slave: own.unwrap_or(hold.slave), master: hold.master, own };
    let result = run(hold, &work);
    if let Some(fd) = work.own {
        io::close(fd);
    }
    result.err().unwrap_or(0)
}

fn run(hold: &mut Hold, work: &Work) -> Io<()> {
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
    let result = read_input(hold, work);
    let flow = match result {
        Ok(()) => read_flow(hold, work),
        Err(_) => Ok(()),
    };
    io::set_settings(work.slave, &hold.settings)?;
    result.and(flow)?;
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

fn read_input(hold: &mut Hold, work: &Work) -> Io<()> {
    if work.master >= 0 {
        start_master(hold, work)?;
    }
    if hold.settings.canonical() { read_canonical(hold, work) } else { read_raw(hold, work) }
}

/// One read into the free part of `input`, of at most `limit` bytes.
fn read_some(hold: &mut Hold, slave: i32, limit: usize) -> Io<usize> {
    hold.phase = DRAINING;
    let room = hold.input.get_mut(hold.input_len as usize..).unwrap_or_default();
    let len = room.len().min(limit);
    let room = room.get_mut(..len).unwrap_or_default();
    if room.is_empty() {
        return Err(io::ENOBUFS);
    }
    let count = io::read(slave, room)?;
    hold.input_len += count as u32;
    Ok(count)
}

/// Reads without lines until nothing is left, what is unprocessed included.
fn read_rest(hold: &mut Hold, slave: i32) -> Io<()> {
    while io::ready(slave, POLLIN) {
        read_some(hold, slave, usize::MAX)?;
    }
    Ok(())
}

fn read_raw(hold: &mut Hold, work: &Work) -> Io<()> {
    // With nothing to read this makes the kernel process what is pending.
    io::poll(work.slave, POLLIN, 0);
    let count = io::unread(work.slave);
    if count == 0 {
        return Ok(());
    }
    let limit = hold.settings.ring_limit();
    if work.master < 0 && count >= limit {
        return Err(io::ENOBUFS);
    }
    let neutral = hold.settings.neutral();
    io::set_settings(work.slave, &Settings { iflag: neutral.iflag & !PARMRK, ..neutral })?;
    read_rest(hold, work.slave)?;
    // Below the limit nothing can have waited behind the buffer but what the kernel's worker had not come to yet.
    hold.ring_full = u32::from(count >= limit);
    hold.ring_len = if hold.ring_full == 1 { count.min(hold.input_len) } else { hold.input_len };
    Ok(())
}

fn read_canonical(hold: &mut Hold, work: &Work) -> Io<()> {
    // Where no line is complete this makes the kernel process what is pending.
    let lines = io::ready(work.slave, POLLIN);
    let before = io::unread(work.slave);
    let mut neutral = hold.settings.neutral();
    if work.master < 0 {
        // An external master in packet mode would see these two change.
        keep_stop_characters(&hold.settings, &mut neutral);
    }
    neutral.cc[VEOL] = SENTINEL;
    io::set_settings(work.slave, &neutral)?;
    let sent = send_sentinels(work, before)?;
    let through = if lines {
        sent > 0 && io::await_that(SENTINEL_WAIT, || io::unread(work.slave) > before)
    } else {
        // The buffer takes them in any case; if neither ends a line the master is stopped.
        io::ready(work.slave, POLLIN)
    };
    if through {
        read_lines(hold, work)?;
        take_sentinels(hold, if work.master < 0 { sent } else { 0 });
        Ok(())
    } else if !lines {
        read_partial(hold, work, sent)
    } else if work.master < 0 {
        Err(io::ENOBUFS)
    } else {
        read_full(hold, work, neutral, before, sent)
    }
}

fn keep_stop_characters(from: &Settings, to: &mut Settings) {
    to.cc[VSTOP] = from.cc[VSTOP];
    to.cc[VSTART] = from.cc[VSTART];
}

/// Sentinels behind the input; yields how many were sent. To a master two, or none if it is stopped or has no room. Simulated ones are
/// processed at once, and dropped by a full buffer, so the second is sent only where the first has ended no line.
fn send_sentinels(work: &Work, before: u32) -> Io<usize> {
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
    io::write(work.master, &[SENTINEL, SENTINEL])
}

/// No line and no sentinel came through: the unfinished line, without lines.
fn read_partial(hold: &mut Hold, work: &Work, sent: usize) -> Io<()> {
    let neutral = hold.settings.neutral();
    io::set_settings(work.slave, &Settings { lflag: neutral.lflag & !ICANON, ..neutral })?;
    read_rest(hold, work.slave)?;
    strip_sentinels(hold, sent);
    hold.ring_len = hold.input_len;
    Ok(())
}

/// Everything has been processed and the sentinels end the last line.
fn read_lines(hold: &mut Hold, work: &Work) -> Io<()> {
    while io::ready(work.slave, POLLIN) {
        let from = hold.input_len as usize;
        let count = read_some(hold, work.slave, usize::MAX)?;
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

fn last_line_len(hold: &Hold) -> usize {
    match (hold.line_count as usize).checked_sub(1) {
        Some(last) => usize::from(hold.lines.get(last).copied().unwrap_or(0) & 0x1fff),
        None => 0,
    }
}

/// Turns the lines that the sentinels ended into the unfinished line. A literal-next has kept the first one from ending a line.
/// `simulated`: how many were sent by simulated typing, 0 where two went through the master.
fn take_sentinels(hold: &mut Hold, simulated: usize) {
    let len = last_line_len(hold);
    if simulated == 0 && len == 1 && hold.line_count > 1 {
        // The second sentinel's own line.
        hold.line_count -= 1;
        strip_sentinels(hold, 2);
    } else {
        hold.lnext = u32::from(simulated != 1);
        strip_sentinels(hold, if simulated == 1 { 1 } else { 2.min(len) });
    }
    hold.line_count = hold.line_count.saturating_sub(1);
    hold.ring_len = hold.input_len;
}

fn strip_sentinels(hold: &mut Hold, sent: usize) {
    for _ in 0..sent {
        let Some(last) = (hold.input_len as usize).checked_sub(1) else { return };
        if hold.input.get(last) == Some(&SENTINEL) {
            hold.input_len -= 1;
        }
    }
}

/// The buffer is full and more waits behind it. `before` bytes are in complete lines; the buffer's content ends where with the EOF marks its
/// slots are used up.
fn read_full(hold: &mut Hold, work: &Work, neutral: Settings, before: u32, sent: usize) -> Io<()> {
    // Bytes that come in from now on are data for later: undoubled, and in lines at every blank so that there is always a complete one.
    let mut settings = Settings { iflag: neutral.iflag & !PARMRK, lflag: neutral.lflag | IEXTEN, ..neutral };
    settings.cc[VEOL2] = b' ';
    io::set_settings(work.slave, &settings)?;
    let mut len = 0;
    // The lines of the buffer have `before` bytes; then a read that yields nothing is a lone EOF mark.
    while hold.input_len <= before && io::await_that(LINE_WAIT, || io::unread(work.slave) > 1) {
        let want = io::unread(work.slave).saturating_sub(1) as usize;
        let count = read_some(hold, work.slave, want)?;
        let last = (hold.input_len as usize).checked_sub(1).and_then(|at| hold.input.get(at).copied());
        let end = hold.settings.end_of(last.filter(|_| count > 0 || len > 0));
        len += count as u32;
        if hold.input_len <= before && (count < want || end != END_EOF) {
            push_line(hold, len, end)?;
            hold.ring_len = hold.input_len;
            len = 0;
        }
    }
    let from = hold.input_len as usize;
    io::set_settings(work.slave, &Settings { lflag: settings.lflag & !ICANON, ..settings })?;
    read_rest(hold, work.slave)?;
    if from < before as usize {
        end_last_line(hold, from, len)?;
    }
    strip_sentinels(hold, sent);
    // Behind the last line's end come the bytes that are still within the buffer.
    let within = hold.settings.ring_limit().saturating_sub(slots_of_marks(hold)).max(hold.ring_len);
    hold.ring_full = u32::from(hold.input_len >= within);
    hold.ring_len = within.min(hold.input_len);
    Ok(())
}

fn slots_of_marks(hold: &Hold) -> u32 {
    hold.lines.iter().take(hold.line_count as usize).filter(|line| **line >> 13 == END_EOF).count() as u32
}

/// The last byte of the last line in the buffer was read without lines, with a NUL for its EOF mark.
fn end_last_line(hold: &mut Hold, at: usize, len: u32) -> Io<()> {
    let byte = hold.input.get(at).copied();
    let end = hold.settings.end_of(byte);
    if byte.is_none() || (end == END_EOF && hold.input.get(at + 1) != Some(&0)) {
        return Ok(());
    }
    push_line(hold, len + 1, end)?;
    hold.ring_len = at as u32 + 1;
    if end != END_EOF {
        return Ok(());
    }
    hold.input_len -= 1;
    let mut slots = hold.input.iter_mut().skip(at + 1);
    let mut previous = slots.next();
    for slot in slots {
        if let Some(hole) = previous.replace(slot) {
            *hole = previous.as_ref().map_or(0, |slot| **slot);
        }
    }
    Ok(())
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

/// Whether the slave's output was stopped, and what the stop has held back. The queues are empty now, so a side that cannot be
/// written to is stopped.
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
        let mut settings = hold.settings.neutral();
        settings.iflag |= IXON;
        settings.cc[VSTART] = START;
        io::set_settings(work.slave, &settings)?;
        io::write(work.master, &[START])?;
        if !io::await_that(STEP_WAIT, || io::ready(work.slave, POLLOUT)) {
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
