//! timerfd(2): the clock, the time that is left, the interval, and the expiries that nobody has read.
//!
//! A timer keeps the time that was left. Only one that was set to a point in CLOCK_REALTIME (TFD_TIMER_ABSTIME) keeps the point: an alarm at
//! noon goes off at noon. An interval timer that has expired stands still until it is read; timerfd_gettime(2) counts on for it first, which
//! its reader cannot tell from counting at the read.
//!
//! Refused: a timer whose clock was set while TFD_TIMER_CANCEL_ON_SET was in force, until the program has read that.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::Description;
use crate::files::restore::set_status_flags;
use crate::image::{Images, pb};
use crate::procfs::FdInfo;
use crate::sys::event::{self, Time};

const SECOND: i64 = 1_000_000_000;

/// The entry of a timerfd as it is now, and our own part of it.
pub fn record(description: &Description<'_>, own: &mut pb::PtyagentOfd) -> Result<pb::FileEntry> {
    let read = || -> Result<pb::TimerfdEntry> {
        let info = FdInfo::read(description.table.seen, description.descriptor.fd)?;
        let unexpected = || Error::unexpected("the fdinfo of a timerfd", format!("{:?}", info.extra));
        parse(&info).ok_or_else(unexpected)
    };
    let mut timer = read()?;
    let stands = |timer: &pb::TimerfdEntry| timer.ticks > 0 && (timer.vsec, timer.vnsec) == (0, 0);
    if stands(&timer) && (timer.isec, timer.insec) != (0, 0) {
        event::timerfd_advance(description.copy).during("asking a timer", Subject::None)?;
        timer = read()?;
    }
    let cancels = timer.settime_flags & libc::TFD_TIMER_CANCEL_ON_SET as u32 != 0;
    if cancels && timer.ticks > 0 && !stands(&timer) && (timer.isec, timer.insec) == (0, 0) {
        let kind = "a timerfd that has been cancelled by a change of the clock";
        return Err(description.refuse(kind, "let the program read it, then dump again"));
    }
    if let Some(clock) = keeps_point(&timer) {
        let now = now(clock)?;
        own.timerfd_expiry_ns = Some(now + timer.vsec as i64 * SECOND + timer.vnsec as i64);
    }
    timer.id = description.id.0;
    timer.flags = description.flags;
    timer.fown = description.fown;
    Ok(pb::FileEntry { tfd: Some(timer), ..description.entry(pb::FdTypes::Timerfd) })
}

/// The clock whose point of time an armed timer keeps.
fn keeps_point(timer: &pb::TimerfdEntry) -> Option<i32> {
    let clock = timer.clockid as i32;
    let armed = (timer.vsec, timer.vnsec) != (0, 0);
    let absolute = timer.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
    let realtime = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    (armed && absolute && realtime).then_some(clock)
}

fn parse(info: &FdInfo) -> Option<pb::TimerfdEntry> {
    let (vsec, vnsec) = pair(info.value("it_value")?)?;
    let (isec, insec) = pair(info.value("it_interval")?)?;
    Some(pb::TimerfdEntry {
        clockid: info.value("clockid")?.parse().ok()?,
        ticks: info.value("ticks")?.parse().ok()?,
        settime_flags: u32::from_str_radix(info.value("settime flags")?, 8).ok()?,
        vsec,
        vnsec,
        isec,
        insec,
        ..Default::default()
    })
}

/// "(SECONDS, NANOSECONDS)".
fn pair(text: &str) -> Option<(u64, u64)> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
    Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
}

/// A new one, which runs from now on.
pub fn open(images: &Images, entry: &pb::TimerfdEntry) -> Result<OwnedFd> {
    let fd = event::timerfd(entry.clockid as i32, libc::TFD_CLOEXEC).during("making a timerfd", Subject::None)?;
    let flags = entry.settime_flags as i32;
    let point = images.own_ofd(entry.id).and_then(|own| own.timerfd_expiry_ns);
    let left = (entry.vsec as i64, entry.vnsec as i64);
    let value = match point {
        Some(point) => split(point),
        None if flags & libc::TFD_TIMER_ABSTIME != 0 && left != (0, 0) => {
            let now = now(entry.clockid as i32)?;
            split(now.saturating_add(left.0.saturating_mul(SECOND)).saturating_add(left.1))
        }
        None => left,
    };
    let interval = (entry.isec as i64, entry.insec as i64);
    event::timerfd_set(fd.as_fd(), flags, value, interval).during("setting a timer", Subject::None)?;
    if entry.ticks != 0 {
        event::timerfd_set_ticks(fd.as_fd(), entry.ticks).during("setting the expiries of a timer", Subject::None)?;
    }
    set_status_flags(fd.as_fd(), entry.flags)?;
    Ok(fd)
}

/// The time of a timer's clock. The clocks of alarms show what those beside them show, and cannot be read where the machine has none that wakes it.
fn now(clock: i32) -> Result<i64> {
    let beside = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        clock => clock,
    };
    event::clock_ns(beside).during("reading a clock", Subject::None)
}

fn split(ns: i64) -> Time {
    (ns / SECOND, ns % SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_parsed() {
        let text = b"pos:\t0\nflags:\t02\nmnt_id:\t1\nclockid: 7\nticks: 3\nsettime flags: 01\n\
            it_value: (12, 49406829)\nit_interval: (1, 5)\n";
        let timer = parse(&FdInfo::parse(text).unwrap()).unwrap();
        assert_eq!((timer.clockid, timer.ticks, timer.settime_flags), (7, 3, 1));
        assert_eq!((timer.vsec, timer.vnsec, timer.isec, timer.insec), (12, 49_406_829, 1, 5));
        assert_eq!(pair("(1 2)"), None);
    }
}
