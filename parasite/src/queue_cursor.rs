//! Where the line discipline believes the cursor to be, and what it is in the middle of erasing.
//!
//! Nobody can ask for either; they show in what the kernel makes of tabs, which is written or typed, and read away again:
//!
//! 1. The column: a tab that is expanded is as many blanks as are left to the next multiple of eight; then backspaces, at which the count ends at 0,
//!    are written eight at a time until one more does not move.
//! 2. The column at which the unfinished line begins, modulo eight, for that is all that is ever looked at: the backspaces that erase a tab.
//! 3. With them comes a slash where an erasure was being shown (ECHOPRT).
//!
//! Source: do_output_char, n_tty_process_echo_ops and eraser in drivers/tty/n_tty.c.

use super::io::{self, Io, POLLIN, POLLOUT};
use super::*;

/// The furthest column that is told; of one behind it the remainder by eight is, which is all that a tab looks at.
pub const MOST: u32 = 512;

const BACKSPACE: u8 = 0x08;
/// Back to the last multiple of eight but one, one further and on again, and a tab, which is shorter where there was no further.
const STEP: &[u8; 19] = b"\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08x\t";
const ERASE: u8 = 0x7f;
const SLASH: u8 = b'/';

/// Nothing is special but the character that erases.
fn quiet(hold: &Hold) -> Settings {
    let mut settings = hold.settings.neutral();
    settings.cc[VERASE] = ERASE;
    settings
}

/// Reads the column, once all output is out and the flow runs. Echoes that had been held back are out by then: the column is that before them.
pub fn read_column(hold: &mut Hold, slave: i32, master: i32) -> Io<()> {
    if !io::ready(slave, POLLOUT) {
        return Ok(());
    }
    hold.phase = DRAINING;
    io::set_settings(slave, &Settings { oflag: OPOST | XTABS, ..quiet(hold) })?;
    let first = written(slave, master, b"\t", b' ')?;
    hold.column = MOST.saturating_sub(first);
    for round in 1..=MOST / 8 {
        // The first tab leads less far than the others.
        let step = if round == 1 { STEP.get(8..).unwrap_or_default() } else { STEP.as_slice() };
        if written(slave, master, step, b' ')? < 8 {
            hold.column = (8 * round).saturating_sub(first);
            break;
        }
    }
    hold.column = before_echoes(hold);
    hold.cursor = 1;
    Ok(())
}

/// The column from which the echoes lead to the one that was read, as do_output_char counts. Of one before a return nothing is to be seen but that
/// ONOCR has let the return pass, and of one before a tab that is left as it is nothing at all.
fn before_echoes(hold: &Hold) -> u32 {
    let Settings { iflag, oflag, .. } = hold.settings;
    let echo = hold.echo.get(..hold.echo_len as usize).unwrap_or_default();
    if oflag & OPOST == 0 {
        return hold.column;
    }
    let mut column = hold.column;
    for byte in echo.iter().rev() {
        let width = match *byte {
            b'\r' => return u32::from(oflag & ONOCR != 0),
            b'\n' if oflag & ONLRET != 0 => return u32::from(oflag & ONOCR != 0),
            b'\t' => 8,
            BACKSPACE => {
                column += 1;
                continue;
            }
            0..0x20 | 0x7f => 0,
            0x80..0xc0 if iflag & IUTF8 != 0 => 0,
            _ => 1,
        };
        // One that is too small is that of a column which is not told whole.
        column = column.checked_sub(width).unwrap_or(column + 8 - width);
    }
    if column > MOST { MOST - 8 + column % 8 } else { column }
}

/// Reads where the unfinished line begins and whether it is being erased, once all input is out.
pub fn read_line(hold: &mut Hold, slave: i32, master: i32) -> Io<()> {
    if !io::ready(master, POLLOUT) {
        return Ok(());
    }
    let settings = quiet(hold);
    io::set_settings(slave, &settings)?;
    typed(slave, master, b"\t")?;
    io::set_settings(slave, &Settings { lflag: settings.lflag | ECHO | ECHOE, ..settings })?;
    typed(slave, master, &[ERASE])?;
    let mut back = 0;
    taken(master, |byte| match byte {
        BACKSPACE => back += 1,
        SLASH => hold.erasing = 1,
        _ => {}
    })?;
    hold.canon_column = 8u32.saturating_sub(back) % 8;
    Ok(())
}

/// Makes the cursor what it was; before there is any output, and where a line is being erased before there is any input.
pub fn put(hold: &Hold, slave: i32, master: i32) -> Io<()> {
    if hold.cursor == 0 {
        return Ok(());
    }
    let settings = quiet(hold);
    if hold.erasing == 1 {
        io::set_settings(slave, &Settings { lflag: settings.lflag | ECHO | ECHOPRT, ..settings })?;
        typed(slave, master, &[b'x', b'x', ERASE])?;
        // The line is empty again without its being told.
        io::set_settings(slave, &settings)?;
        typed(slave, master, &[ERASE])?;
    }
    io::set_settings(slave, &Settings { oflag: OPOST, ..settings })?;
    let mut text = [b'x'; 2 + MOST as usize];
    let (column, line) = (hold.column.min(MOST) as usize, hold.canon_column as usize % 8);
    // A newline alone makes the column that of the line.
    let len = 2 + line + column.abs_diff(line);
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = match at {
            0 => b'\r',
            at if at == 1 + line => b'\n',
            at if at > line && column < line => BACKSPACE,
            _ => b'x',
        };
    }
    written(slave, master, text.get(..len).unwrap_or_default(), b' ').map(drop)
}

/// Writes, and counts one character of what comes out.
fn written(slave: i32, master: i32, bytes: &[u8], counted: u8) -> Io<u32> {
    io::write(slave, bytes)?;
    let mut count = 0;
    taken(master, |byte| count += u32::from(byte == counted))?;
    Ok(count)
}

/// Types, and lets the kernel process it: with no line to read, asking does.
fn typed(slave: i32, master: i32, bytes: &[u8]) -> Io<()> {
    io::write(master, bytes)?;
    io::poll(slave, POLLIN, 0);
    Ok(())
}

/// Takes all that has come out.
fn taken(master: i32, mut each: impl FnMut(u8)) -> Io<()> {
    let mut bytes = [0u8; 256];
    while io::ready(master, POLLIN) {
        let count = io::read(master, &mut bytes)?;
        bytes.iter().take(count).for_each(|byte| each(*byte));
    }
    Ok(())
}
