//! The output side: packet mode, what is unread, and what has stopped the output.

use super::drain::Work;
use super::io::{self, Io, POLLIN, POLLOUT, POLLPRI};
use super::*;

/// Switches packet mode off; its pending status is read first.
pub fn packet_off(hold: &mut Hold, work: &Work) -> Io<()> {
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
pub fn read_output(hold: &mut Hold, master: i32) -> Io<()> {
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

/// A master that was stopped by TCOOFF takes no sentinel; one that has no room goes on having none.
pub fn start_master(hold: &mut Hold, work: &Work) -> Io<()> {
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
pub fn read(hold: &mut Hold, work: &Work) -> Io<()> {
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
