//! Putting the queues back.

use super::io::{self, Io, POLLIN};
use super::typing::{CHUNK, PATIENCE, Sync, Way, Work, await_worker, flush_typed, neutral, put_input, type_bytes};
use super::*;

/// Bytes in a full line buffer.
const RING: usize = 4095;

const STATUS_FLUSHREAD: u32 = 0x01;
const STATUS_FLUSHWRITE: u32 = 0x02;
const STATUS_STOP: u32 = 0x04;
const STATUS_START: u32 = 0x08;
const STATUS_FLOW: u32 = 0x30;
const STATUS_IOCTL: u32 = 0x40;

/// Puts what `hold` holds onto `hold.slave` and `hold.master`, which may be a fresh pair with empty queues; 0 or a negated errno.
/// Afterwards the settings, flow and packet mode are the original ones. EAGAIN: the kernel took less than it had; what lies beyond
/// [`Hold::output_put`] and [`Hold::flip_put`] is the caller's to feed.
pub fn put_back(hold: &mut Hold) -> i64 {
    let result = put(hold);
    hold.return_master();
    result
}

fn put(hold: &mut Hold) -> i64 {
    if hold.phase == RETURNED || hold.phase == EMPTY {
        return 0;
    }
    if hold.line_count as usize > MAX_LINES
        || hold.input_len as usize > INPUT_SIZE
        || hold.ring_len > hold.input_len
        || hold.output_len as usize > OUTPUT_SIZE
        || hold.echo_len as usize > ECHO_SIZE
        || hold.column > MOST_COLUMNS
    {
        return io::EINVAL;
    }
    let own = io::open_own(hold.slave, hold.master);
    if own.is_none() && hold.slave < 0 {
        return io::EBADF;
    }
    let simulate = hold.no_sti == 0 && io::may_simulate(own.unwrap_or(hold.slave));
    let way = if simulate { Way::Simulate } else { Way::Master };
    let mut work = Work {
        slave: own.unwrap_or(hold.slave),
        master: hold.master,
        way,
        sync: Sync::Pause,
        pending: [0; CHUNK],
        len: 0,
    };
    let result = if way == Way::Master && work.master < 0 { Err(io::EPERM) } else { run(hold, &mut work) };
    if let Some(fd) = own {
        io::close(fd);
    }
    result.err().unwrap_or(0)
}

fn run(hold: &mut Hold, work: &mut Work) -> Io<()> {
    if hold.phase == DRAINING && hold.ring_len == 0 {
        // The drain failed before it had sorted the input.
        hold.ring_len = hold.input_len;
    }
    // While there is no output yet, echoes and a stop tell when typed input has been processed. A STOP character, held echoes, status
    // bits and an erasure have to come before the input.
    let first =
        work.master >= 0 && hold.status == 0 && hold.echo_len == 0 && hold.erasing == 0 && hold.flow != FLOW_CHAR;
    work.sync = if work.way == Way::Master && first { Sync::Exact } else { Sync::Pause };
    let input = if work.sync == Sync::Exact { put_input(hold, work) } else { Ok(()) };
    let between = goes_between(hold, work);
    if work.master >= 0 {
        put_output_side(hold, work, between)?;
    }
    let input = if work.sync == Sync::Exact || between { input } else { put_input(hold, work) };
    io::set_settings(work.slave, &hold.settings)?;
    if hold.locked == 1 {
        io::set_locks(work.slave, &hold.locks)?;
    }
    input?;
    if work.master >= 0 {
        put_flip(hold, work)?;
        if hold.status == 0 {
            io::set_packet(work.master, hold.packet)?;
        }
        if hold.master_stopped == 1 {
            io::xonc(work.master, 0)?;
        }
    }
    hold.phase = RETURNED;
    if hold.output_put < hold.output_len || hold.flip_put < hold.input_len - hold.ring_len {
        return Err(io::EAGAIN);
    }
    Ok(())
}

/// Whether the input goes between the output and packet mode. Under EXTPROC the settings that it takes would leave STATUS_IOCTL behind that; where
/// this is pending it does not matter, and repeating it would make a line of what is there.
fn goes_between(hold: &Hold, work: &Work) -> bool {
    let fixed = hold.echo_len > 0 || hold.flow == FLOW_CHAR || hold.status & (STATUS_FLUSHREAD | STATUS_IOCTL) != 0;
    work.master >= 0 && hold.status != 0 && hold.settings.lflag & EXTPROC != 0 && !fixed
}

/// The output, the stop, and where status bits are pending packet mode with them. Switching packet mode on forgets all bits, so from then on
/// nothing may raise another one.
///
/// A flush can be repeated only where it loses nothing: before the input is there, and with no more output than the master's line
/// buffer, which it leaves alone; what is more comes behind it. A stop that left a bit comes after packet mode, one that did not before it: then
/// a flush that came after the stop has left no more than that.
fn put_output_side(hold: &mut Hold, work: &mut Work, with_input: bool) -> Io<()> {
    io::set_packet(work.master, 0)?;
    cursor::put(hold, work.slave, work.master)?;
    let leaves_a_bit = hold.status & STATUS_STOP != 0;
    put_output(hold, work, if hold.status & STATUS_FLUSHWRITE != 0 { RING } else { OUTPUT_SIZE })?;
    if !leaves_a_bit {
        put_flow(hold, work)?;
    }
    if hold.status != 0 {
        if with_input {
            put_input(hold, work)?;
        }
        io::set_settings(work.slave, &hold.settings)?;
        io::await_that(PATIENCE, || io::unread(work.master) >= hold.output_put.min(RING as u32));
        io::set_packet(work.master, 1)?;
        raise_flushes(hold, work)?;
        if hold.status & STATUS_FLUSHWRITE != 0 {
            // What a worker that is later than that has left to the flush is written again.
            hold.output_put = hold.output_put.min(io::unread(work.master));
        }
        put_output(hold, work, OUTPUT_SIZE)?;
    }
    if leaves_a_bit {
        put_flow(hold, work)?;
    }
    put_echoes(hold, work)
}

/// Repeats the actions that left bits in the packet status byte.
fn raise_flushes(hold: &Hold, work: &Work) -> Io<()> {
    let settings = &hold.settings;
    if hold.status & STATUS_FLUSHREAD != 0 {
        io::flush(work.slave, 0)?;
    }
    if hold.status & STATUS_FLUSHWRITE != 0 {
        io::flush(work.slave, 1)?;
    }
    if hold.status & STATUS_FLOW != 0 {
        let on = settings.iflag & IXON != 0 && settings.cc[VSTOP] == STOP && settings.cc[VSTART] == START;
        let mut other = *settings;
        other.iflag |= IXON;
        other.cc[VSTOP] = if on { 0 } else { STOP };
        other.cc[VSTART] = if on { 0 } else { START };
        io::set_settings(work.slave, &other)?;
        io::set_settings(work.slave, settings)?;
    }
    if hold.status & STATUS_IOCTL != 0 {
        io::set_settings(work.slave, &Settings { lflag: settings.lflag ^ EXTPROC, ..*settings })?;
        io::set_settings(work.slave, settings)?;
    }
    if hold.status & STATUS_START != 0 {
        io::xonc(work.slave, 0)?;
        io::xonc(work.slave, 1)?;
    }
    Ok(())
}

/// The first `most` bytes of the output. The master's line buffer is filled first and the worker awaited: what is queued behind it then gets all
/// the room there is.
///
/// What does not fit behind it is thrown away by a flush and written again in a way that takes less room: after a flush the master has
/// all that there is, so that it tells where to go on.
fn put_output(hold: &mut Hold, work: &Work, most: usize) -> Io<()> {
    let end = most.min(hold.output_len as usize);
    if hold.output_put as usize >= end {
        return Ok(());
    }
    io::set_settings(work.slave, &neutral(hold))?;
    let bytes = hold.output.get(..end).unwrap_or_default();
    let ring = bytes.get(..RING).unwrap_or(bytes);
    room::put_pieces(work.slave, ring, &mut hold.output_put, CHUNK)?;
    let rest = end.saturating_sub(RING);
    if rest > 0 {
        io::await_that(PATIENCE, || io::unread(work.master) as usize >= RING);
        // Of equal size, so that a queue that had no room left hardly ever has some: the kernel counts buffers, each of two pieces.
        let even = rest.div_ceil(rest.div_ceil(CHUNK));
        room::put_pieces(work.slave, bytes, &mut hold.output_put, even)?;
    }
    for wait in [0, 1, 10, 100] {
        // A drain that failed may have left output of its own there.
        if hold.output_put as usize >= end || hold.phase != HELD {
            break;
        }
        io::flush(work.slave, 1)?;
        hold.output_put = io::unread(work.master).min(end as u32);
        match wait {
            // The buffers that this takes are kept for the next try.
            0 => room::put_pieces(work.slave, bytes, &mut hold.output_put, room::SMALL)?,
            wait => room::put_large(work.slave, bytes, &mut hold.output_put, wait)?,
        }
    }
    Ok(())
}

/// Stops the output as it was stopped, which in packet mode leaves its status bit. A STOP character goes through the input, which is still empty.
fn put_flow(hold: &Hold, work: &mut Work) -> Io<()> {
    match hold.flow {
        FLOW_IOCTL => io::xonc(work.slave, 0),
        FLOW_CHAR => {
            let mut settings = neutral(hold);
            settings.iflag |= IXON;
            settings.lflag &= !EXTPROC;
            if settings.cc[VSTOP] == 0 {
                // Any but ^S, which together with ^Q would leave a bit in the packet status.
                settings.cc[VSTOP] = SENTINEL;
            }
            io::set_settings(work.slave, &settings)?;
            type_bytes(work, &[settings.cc[VSTOP]])?;
            flush_typed(work)?;
            // With nothing to read this makes the kernel process what was typed; a full output queue would not tell.
            io::poll(work.slave, POLLIN, 0);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Echoes that wait for room or for the output to go on: typed as input that is echoed as it is, and read away again.
fn put_echoes(hold: &mut Hold, work: &mut Work) -> Io<()> {
    if hold.echo_len == 0 {
        return Ok(());
    }
    let base = neutral(hold);
    let settings =
        Settings { lflag: base.lflag & !(ICANON | EXTPROC) | ECHO, iflag: base.iflag & !IXON, ..hold.settings };
    let settings = Settings { cc: base.cc, iflag: settings.iflag | hold.settings.iflag & IXON, ..settings };
    io::set_settings(work.slave, &settings)?;
    let newlines = hold.settings.oflag & (OPOST | ONLCR) == OPOST | ONLCR;
    let mut count = 0;
    let echo = hold.echo.get(..hold.echo_len as usize).unwrap_or_default();
    for (at, byte) in echo.iter().enumerate() {
        // The carriage return comes back when the newline is written.
        let doubled = newlines && *byte == b'\r' && echo.get(at + 1) == Some(&b'\n');
        let special =
            settings.iflag & IXON != 0 && *byte != 0 && (*byte == settings.cc[VSTOP] || *byte == settings.cc[VSTART]);
        // A newline by itself was a carriage return.
        let returned = newlines && hold.settings.oflag & OCRNL != 0 && *byte == b'\n';
        let alone = returned && echo.get(at.wrapping_sub(1)) != Some(&b'\r');
        if !doubled && !special && count < 4000 {
            type_bytes(work, &[if alone { b'\r' } else { *byte }])?;
            count += 1;
        }
    }
    flush_typed(work)?;
    await_worker(|| io::unread(work.slave) >= count, work);
    let mut sink = [0u8; 256];
    while io::ready(work.slave, POLLIN) {
        io::read(work.slave, &mut sink)?;
    }
    Ok(())
}

/// What was unprocessed, under the original settings. Taken as far as the kernel has room.
fn put_flip(hold: &mut Hold, work: &Work) -> Io<()> {
    let flip = hold.input.get(hold.ring_len as usize..hold.input_len as usize).unwrap_or_default();
    if flip.len() > room::COMMON {
        return room::put_large(work.master, flip, &mut hold.flip_put, 0);
    }
    room::put_pieces(work.master, flip, &mut hold.flip_put, CHUNK)
}
