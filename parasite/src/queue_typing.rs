//! Putting input back by typing it, and waiting until the kernel has processed what was typed.

use super::io::{self, Io, POLLIN, POLLOUT};
use super::*;

/// Largest write of typed input.
pub const CHUNK: usize = 1024;
pub const STEP_WAIT: u64 = 50_000;
/// Bytes in a line buffer that throws away what comes in.
const THROWN_AWAY: usize = 4096;
/// For what is certain to come.
pub const PATIENCE: u64 = 2_000_000;
const WORKER_WAIT: i32 = 40;

/// Where typed bytes go: through the kernel's simulated input, done when the call returns, or through the master.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Simulate,
    Master,
}

/// How long typed bytes are awaited.
#[derive(Clone, Copy, PartialEq)]
pub enum Sync {
    /// Until they have been echoed and a STOP character behind them has stopped the output.
    Exact,
    /// [`WORKER_WAIT`], where simulated input does not make it needless.
    Pause,
}

pub struct Work {
    pub slave: i32,
    pub master: i32,
    pub way: Way,
    pub sync: Sync,
    /// Bytes on their way to the master.
    pub pending: [u8; CHUNK],
    pub len: usize,
}

/// The settings for writing: neutral, but the flow characters stay, so that no status bit is raised.
pub fn neutral(hold: &Hold) -> Settings {
    let mut settings = hold.settings.neutral();
    settings.cc[VSTOP] = hold.settings.cc[VSTOP];
    settings.cc[VSTART] = hold.settings.cc[VSTART];
    Settings { iflag: settings.iflag & !PARMRK, oflag: settings.oflag & !OPOST, ..settings }
}

/// Adds bytes to what is typed.
pub fn type_bytes(work: &mut Work, bytes: &[u8]) -> Io<()> {
    for byte in bytes {
        if work.way == Way::Simulate {
            io::simulate(work.slave, *byte)?;
            continue;
        }
        if work.len == CHUNK {
            flush_typed(work)?;
        }
        if let Some(slot) = work.pending.get_mut(work.len) {
            *slot = *byte;
            work.len += 1;
        }
    }
    Ok(())
}

/// Sends what was typed; the line buffer has room for all of it, so waiting for the kernel's worker is enough.
pub fn flush_typed(work: &mut Work) -> Io<()> {
    let mut done = 0;
    while done < work.len {
        let rest = work.pending.get(done..work.len).unwrap_or_default();
        match io::write_now(work.master, rest) {
            Ok(count) => done += count,
            Err(io::EAGAIN) => {
                if !io::await_that(PATIENCE, || io::ready(work.master, POLLOUT)) {
                    return Err(io::EAGAIN);
                }
            }
            Err(error) => return Err(error),
        }
    }
    work.len = 0;
    Ok(())
}

/// Lines with their ends, the unfinished line and the literal-next, or raw bytes; processed when this returns.
pub fn put_input(hold: &Hold, work: &mut Work) -> Io<()> {
    let ring = hold.input.get(..hold.ring_len as usize).unwrap_or_default();
    if hold.settings.lflag & EXTPROC != 0 {
        return put_external(hold, work, ring);
    }
    if ring.is_empty() && hold.line_count == 0 && hold.lnext == 0 {
        return Ok(());
    }
    if !hold.settings.canonical() {
        return put_raw(hold, work, ring);
    }
    let mut typing = typing_settings(hold, work.sync);
    io::set_settings(work.slave, &typing)?;
    let mut at = 0;
    let mut complete = 0;
    for line in hold.lines.iter().take(hold.line_count as usize) {
        let (len, end) = (usize::from(*line & 0x1fff), *line >> 13);
        let bytes = ring.get(at..at + len).ok_or(io::EINVAL)?;
        at += len;
        complete += len as u32;
        match (bytes.split_last(), end) {
            (Some((last, body)), END_NEWLINE | END_EOL | END_EOL2) => {
                type_quoted(work, &typing, body)?;
                type_bytes(work, &[*last])?;
            }
            _ => {
                type_quoted(work, &typing, bytes)?;
                type_bytes(work, &[typing.cc[VEOF]])?;
            }
        }
    }
    let partial = ring.get(at..).unwrap_or_default();
    type_quoted(work, &typing, partial)?;
    flush_typed(work)?;
    settle(hold, work, &typing, complete)?;
    if hold.lnext == 1 {
        typing.lflag |= ECHOCTL;
        io::set_settings(work.slave, &typing)?;
        type_bytes(work, &[typing.cc[VLNEXT]])?;
        flush_typed(work)?;
        match work.sync {
            Sync::Exact => take_echoes(work, 2)?,
            Sync::Pause => settle(hold, work, &typing, complete)?,
        }
    }
    Ok(())
}

/// Raw bytes: typed as one unfinished line with every special character quoted, which switching ICANON off makes plain bytes of. The flow
/// characters stay as they are, since a change would leave a bit in the packet status.
fn put_raw(hold: &Hold, work: &mut Work, bytes: &[u8]) -> Io<()> {
    let mut typing = typing_settings(hold, Sync::Pause);
    typing.lflag |= ICANON;
    io::set_settings(work.slave, &typing)?;
    type_quoted(work, &typing, bytes)?;
    flush_typed(work)?;
    // With no line to read this makes the kernel process what was typed.
    io::poll(work.slave, POLLIN, 0);
    Ok(())
}

/// Under EXTPROC nothing is special. With ICANON a full buffer throws input away as long as nothing was read since either was switched on: a byte
/// is read before, but where the buffer has shown by one byte too many that it did so.
fn put_external(hold: &Hold, work: &mut Work, bytes: &[u8]) -> Io<()> {
    let edited = bytes.iter().any(|byte| !byte.is_ascii() || byte.is_ascii_uppercase());
    let iflag = if edited { hold.settings.iflag & !(ISTRIP | IUCLC) } else { hold.settings.iflag };
    let settings = Settings { iflag, ..hold.settings };
    io::set_settings(work.slave, &settings)?;
    if settings.lflag & ICANON != 0 && bytes.len() < THROWN_AWAY {
        type_processed(work, b"x")?;
        if io::unread(work.slave) == 1 {
            io::read(work.slave, &mut [0])?;
        }
    }
    type_processed(work, bytes)
}

fn type_processed(work: &mut Work, bytes: &[u8]) -> Io<()> {
    type_bytes(work, bytes)?;
    flush_typed(work)?;
    await_worker(|| io::unread(work.slave) >= bytes.len() as u32, work);
    Ok(())
}

/// Lines can be typed: VEOF, VLNEXT, the original VEOL and VEOL2; nothing else is special but the flow characters. All is echoed where that is
/// to tell when it has been processed.
fn typing_settings(hold: &Hold, sync: Sync) -> Settings {
    let original = &hold.settings;
    let mut settings = neutral(hold);
    settings.lflag |= IEXTEN;
    settings.cc[VEOL] = original.cc[VEOL];
    settings.cc[VEOL2] = if original.lflag & IEXTEN != 0 { original.cc[VEOL2] } else { 0 };
    if sync == Sync::Exact {
        settings.iflag |= IXON;
        settings.lflag |= ECHO;
        (settings.cc[VSTOP], settings.cc[VSTART]) = (0, 0);
    }
    let taken = [settings.cc[VEOL], settings.cc[VEOL2], settings.cc[VSTOP], settings.cc[VSTART], b'\n'];
    let mut free = [0x04, 0x16, 0x1c, 0x1d, 0x1e, 0x1f, 0x02].into_iter().filter(|byte| !taken.contains(byte));
    let mut choose = |slot: &mut u8| *slot = free.next().unwrap_or(*slot);
    choose(&mut settings.cc[VEOF]);
    choose(&mut settings.cc[VLNEXT]);
    if sync == Sync::Exact {
        choose(&mut settings.cc[VSTOP]);
        choose(&mut settings.cc[VSTART]);
    }
    settings
}

fn type_quoted(work: &mut Work, typing: &Settings, bytes: &[u8]) -> Io<()> {
    for byte in bytes {
        let special = [VEOF, VLNEXT, VEOL, VEOL2, VSTOP, VSTART].iter().any(|slot| typing.cc.get(*slot) == Some(byte));
        if *byte == b'\n' || (special && *byte != 0) {
            type_bytes(work, &[typing.cc[VLNEXT]])?;
        }
        type_bytes(work, &[*byte])?;
    }
    Ok(())
}

/// Waits until all that was typed has been processed: exact after simulated input, where no line is complete, and where echoes and a stop of the
/// output tell.
fn settle(hold: &Hold, work: &Work, typing: &Settings, complete: u32) -> Io<()> {
    if work.way == Way::Simulate {
        return Ok(());
    }
    if work.sync == Sync::Exact {
        return settle_exactly(hold, work, typing);
    }
    await_worker(|| io::unread(work.slave) >= complete, work);
    // Asking makes the kernel process all where there is no line.
    let last_is_line = hold.line_count > 0 && partial_len(hold) == 0 && complete > 0 && hold.lnext == 0;
    if io::ready(work.slave, POLLIN) && !last_is_line {
        io::pause(WORKER_WAIT);
    }
    Ok(())
}

/// Every byte has an echo but those that quote, and EOF marks; all is processed where a STOP character has been. A full buffer takes none.
fn settle_exactly(hold: &Hold, work: &Work, typing: &Settings) -> Io<()> {
    take_echoes(work, hold.ring_len as usize)?;
    // Asking makes the kernel process all where there is no line.
    if !io::ready(work.slave, POLLIN) {
        return Ok(());
    }
    if hold.ring_full == 1 {
        if partial_len(hold) == 0 {
            io::pause(WORKER_WAIT);
        }
        return Ok(());
    }
    io::write(work.master, &[typing.cc[VSTOP]])?;
    let stopped = io::await_that(PATIENCE, || !io::ready(work.slave, POLLOUT));
    io::write(work.master, &[typing.cc[VSTART]])?;
    let started = io::await_that(PATIENCE, || io::ready(work.slave, POLLOUT));
    if stopped && started { Ok(()) } else { Err(io::EAGAIN) }
}

/// Reads this many echoes away. EAGAIN where they do not come.
fn take_echoes(work: &Work, count: usize) -> Io<()> {
    let mut sink = [0u8; 256];
    let mut left = count;
    while left > 0 {
        if !io::await_that(PATIENCE, || io::ready(work.master, POLLIN)) {
            return Err(io::EAGAIN);
        }
        left -= io::read(work.master, sink.get_mut(..left.min(256)).unwrap_or_default())?;
    }
    Ok(())
}

fn partial_len(hold: &Hold) -> u32 {
    let lines: u32 = hold.lines.iter().take(hold.line_count as usize).map(|line| u32::from(*line & 0x1fff)).sum();
    hold.ring_len.saturating_sub(lines)
}

pub fn await_worker(done: impl FnMut() -> bool, work: &Work) {
    if !io::await_that(STEP_WAIT, done) && work.way == Way::Master {
        io::pause(WORKER_WAIT);
    }
}
