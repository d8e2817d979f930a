//! POSIX timers of a process: timer_create(2).
//!
//! /proc/PID/timers lists them; the time that is left and the interval are asked inside by timer_gettime(2). On the way back each is made
//! inside with its number (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15; before that the kernel counts up, and numbers are used up until it is
//! reached) and started last, with the time that was left, whatever clock it was set by.
//!
//! A timer may outlive the thread that it was made to signal. Then it signals nobody, and the kernel makes no such one: it comes back as one
//! without a signal (SIGEV_NONE), of which timer_gettime(2) tells the same.
//!
//! The count of overruns that timer_getoverrun(2) tells starts anew: the kernel lets nobody set it.

use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::pb;
use crate::inject::batch::{Answers, Ask, Batch, Buffer, CallId};
use crate::procfs::attributes::PosixTimer;

/// struct itimerspec: interval and value, seconds and nanoseconds each.
const ITIMERSPEC: usize = 32;
/// struct sigevent.
const SIGEVENT: usize = 64;
const SIGEV_THREAD_ID: u32 = 4;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const RESTORE_IDS_OFF: u64 = 0;
const RESTORE_IDS_ON: u64 = 1;
/// Numbers that one batch uses up.
const NUMBERS: u32 = 500;
/// A number above this one is not counted up to.
const HIGHEST_COUNTED: u32 = 100_000;

/// What was asked in a batch, with what was known before.
#[derive(Debug)]
pub struct Asked {
    timers: Vec<(PosixTimer, CallId, Buffer, CallId)>,
    threads: Vec<Tid>,
}

/// Adds the questions to the batch of a task with these threads.
pub fn ask(batch: &mut Batch, timers: &[PosixTimer], threads: Vec<Tid>) -> Asked {
    let question = |timer: &PosixTimer| {
        let left = batch.output(ITIMERSPEC);
        let asked = batch.call(libc::SYS_timer_gettime, [timer.id.into(), left.into()]);
        let overrun = batch.call(libc::SYS_timer_getoverrun, [timer.id.into()]);
        (timer.clone(), asked, left, overrun)
    };
    Asked { timers: timers.iter().map(question).collect(), threads }
}

impl Asked {
    /// The timers as CRIU's entries, by their numbers.
    pub fn answers(&self, answers: &Answers) -> Result<Vec<pb::PosixTimerEntry>> {
        let mut entries = Vec::new();
        for (timer, asked, left, overrun) in &self.timers {
            answers.result(*asked).during("asking for the time that a timer has left", Subject::None)?;
            let (kind, target) = timer.notify.split_once('/').unwrap_or_default();
            let kind = match kind {
                "none" => libc::SIGEV_NONE,
                "thread" => libc::SIGEV_THREAD,
                _ => libc::SIGEV_SIGNAL,
            };
            let thread = target.strip_prefix("tid.").and_then(|tid| tid.parse::<i32>().ok());
            let (kind, thread) = match thread {
                Some(tid) if !self.threads.contains(&Tid(tid)) => (libc::SIGEV_NONE, None),
                thread => (kind, thread),
            };
            entries.push(pb::PosixTimerEntry {
                it_id: timer.id as u32,
                clock_id: timer.clock as u32,
                si_signo: timer.signal as u32,
                it_sigev_notify: kind as u32 | if thread.is_some() { SIGEV_THREAD_ID } else { 0 },
                sival_ptr: timer.value,
                overrun: answers.result(*overrun).unwrap_or(0) as u32,
                isec: answers.u64(*left, 0),
                insec: answers.u64(*left, 8),
                vsec: answers.u64(*left, 16),
                vnsec: answers.u64(*left, 24),
                notify_thread_id: thread,
            });
        }
        entries.sort_by_key(|entry| entry.it_id);
        Ok(entries)
    }
}

/// Makes the timers of a process and starts those that ran. The threads that they signal have to be there.
pub fn restore(tracee: &mut impl Ask, pid: Pid, core: &pb::CoreEntry) -> Result<()> {
    let timers = core.tc.as_ref().and_then(|task| task.timers.as_ref());
    let Some(timers) = timers.map(|timers| &timers.posix).filter(|timers| !timers.is_empty()) else { return Ok(()) };
    match choose_numbers(tracee, RESTORE_IDS_ON)? {
        Numbering::Chosen => {
            let mut batch = Batch::new();
            for timer in timers {
                create(&mut batch, timer);
            }
            tracee.ask(batch)?.all_done("making the POSIX timers", Subject::Pid(pid))?;
            choose_numbers(tracee, RESTORE_IDS_OFF)?;
        }
        Numbering::Counted => count_up(tracee, pid, timers)?,
    }
    let mut batch = Batch::new();
    for timer in timers.iter().filter(|timer| timer.vsec != 0 || timer.vnsec != 0) {
        let words = [timer.isec, timer.insec, timer.vsec, timer.vnsec];
        let new = batch.input(&words.map(u64::to_ne_bytes).concat());
        batch.must(libc::SYS_timer_settime, [u64::from(timer.it_id).into(), 0u64.into(), new.into(), 0u64.into()]);
    }
    if batch.is_empty() {
        return Ok(());
    }
    tracee.ask(batch)?.all_done("starting the POSIX timers", Subject::Pid(pid))
}

/// Who gives a new timer its number.
enum Numbering {
    Chosen,
    Counted,
}

fn choose_numbers(tracee: &mut impl Ask, mode: u64) -> Result<Numbering> {
    let mut batch = Batch::new();
    let call = batch.call(
        libc::SYS_prctl,
        [PR_TIMER_CREATE_RESTORE_IDS.into(), mode.into(), 0u64.into(), 0u64.into(), 0u64.into()],
    );
    Ok(if tracee.ask(batch)?.result(call).is_ok() { Numbering::Chosen } else { Numbering::Counted })
}

/// Adds the call that makes one timer; yields where its number will be.
fn create(batch: &mut Batch, timer: &pb::PosixTimerEntry) -> Buffer {
    let mut event = [0u8; SIGEVENT];
    event[..8].copy_from_slice(&timer.sival_ptr.to_ne_bytes());
    event[8..12].copy_from_slice(&timer.si_signo.to_ne_bytes());
    event[12..16].copy_from_slice(&timer.it_sigev_notify.to_ne_bytes());
    event[16..20].copy_from_slice(&timer.notify_thread_id.unwrap_or(0).to_ne_bytes());
    let event = batch.input(&event);
    let mut number = [0u8; 8];
    number[..4].copy_from_slice(&timer.it_id.to_ne_bytes());
    let number = batch.input(&number);
    let clock = timer.clock_id as i32;
    batch.must(libc::SYS_timer_create, [clock.into(), event.into(), number.into()]);
    number
}

/// A process that has made no timer yet gets 0, then 1 and so on, also where the one before is gone.
fn count_up(tracee: &mut impl Ask, pid: Pid, timers: &[pb::PosixTimerEntry]) -> Result<()> {
    let mut next = 0;
    for timer in timers {
        if timer.it_id > HIGHEST_COUNTED {
            return Err(Error::failed(format!(
                "timer {} of process {pid} has a number that only Linux 6.15 or newer can give; restore there",
                timer.it_id
            )));
        }
        while next < timer.it_id {
            let mut batch = Batch::new();
            let end = timer.it_id.min(next + NUMBERS);
            for number in next..end {
                create(&mut batch, timer);
                batch.must(libc::SYS_timer_delete, [u64::from(number).into()]);
            }
            next = end;
            tracee.ask(batch)?.all_done("counting up to the number of a POSIX timer", Subject::Pid(pid))?;
        }
        let mut batch = Batch::new();
        let number = create(&mut batch, timer);
        let answers = tracee.ask(batch)?;
        let given = answers.u32(number, 0);
        answers.all_done("making a POSIX timer", Subject::Pid(pid))?;
        if given != timer.it_id {
            return Err(Error::failed(format!(
                "timer {} of process {pid} got the number {given}; restore it on Linux 6.15 or newer",
                timer.it_id
            )));
        }
        next = given + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(notify: &str) -> PosixTimer {
        PosixTimer { id: 7, signal: 34, value: 9, notify: notify.to_owned(), clock: -6 }
    }

    #[test]
    fn the_kinds_of_notification_are_told_apart() {
        let kinds = ["signal/pid.5", "none/pid.5", "signal/tid.6", "signal/tid.7"];
        let timers = kinds.map(listed);
        let mut batch = Batch::new();
        let asked = ask(&mut batch, &timers, vec![Tid(5), Tid(6)]);
        let mut bytes = batch.encode(0, 0);
        // The calls were not made: every result is to be 0.
        for call in 0..batch.len() {
            let at = (call + 1) * size_of::<crate::wire::Call>() - 8;
            bytes[at..at + 8].fill(0);
        }
        let entries = asked.answers(&batch.answers(bytes)).unwrap();
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.it_sigev_notify, entry.notify_thread_id)).collect();
        assert_eq!(kinds, [(0, None), (1, None), (4, Some(6)), (1, None)]);
        assert_eq!((entries[0].clock_id as i32, entries[0].si_signo, entries[0].sival_ptr), (-6, 34, 9));
    }
}
