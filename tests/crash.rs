//! The controller is killed at random moments of its work, and no process of the session is worse off.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use support::{Holder, PATIENCE, Quiet, TempDir, Victim, asleep, ptyagent, report, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(580);
const KILLS: u32 = 100;

/// Random numbers from a seed, which is printed so that a failure can be run again (xorshift64*).
struct Random(u64);

impl Random {
    fn new(name: &str) -> Random {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("PTYAGENT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock) | 1;
        println!("{name}: PTYAGENT_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit.max(1)
    }
}

/// What the controller is killed at.
#[derive(Debug, Clone, Copy)]
enum Work {
    Inspect,
    DumpRunning,
    DumpAndEnd,
}

fn command(work: Work, root: i32, dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptyagent"));
    match work {
        Work::Inspect => command.arg("inspect").arg(root.to_string()),
        Work::DumpRunning => command.args(["dump", "--leave-running", "--inject", &root.to_string(), "-D"]).arg(dir),
        Work::DumpAndEnd => command.args(["dump", "--inject", &root.to_string(), "-D"]).arg(dir),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts the work and kills the controller after `delay`; whether the work was complete by then.
fn killed_at(work: Work, root: i32, dir: &Path, delay: Duration) -> bool {
    let mut controller = command(work, root, dir).spawn().unwrap();
    let end = Instant::now() + delay;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
    let _ = controller.kill();
    controller.wait().unwrap().success()
}

/// How long the work takes when nobody kills it, and that it can be done.
fn duration(work: Work, root: i32, dir: &Path) -> Duration {
    let start = Instant::now();
    let output = command(work, root, dir).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", report(&output));
    start.elapsed()
}

/// Kills the controller again and again over the tree of `root`, checks after each time, and dumps it in the end.
fn survive(name: &str, root: i32, pids: &[i32], mut check: impl FnMut(u32)) {
    let mut random = Random::new(name);
    let place = TempDir::new();
    let before = Quiet::of(pids);
    let longest = [Work::Inspect, Work::DumpRunning].map(|work| duration(work, root, &place.join("whole")));
    let _ = std::fs::remove_dir_all(place.join("whole"));
    before.assert_untouched();
    let mut complete = 0;
    for turn in 0..KILLS {
        let work = [Work::Inspect, Work::DumpRunning][turn as usize % 2];
        let micros = random.below(longest[turn as usize % 2].as_micros() as u64);
        let dir = place.join(&format!("images-{turn}"));
        complete += u32::from(killed_at(work, root, &dir, Duration::from_micros(micros)));
        before.assert_untouched();
        check(turn);
    }
    println!("{name}: {KILLS} kills within {longest:?}, of which {complete} came too late");
    let output = ptyagent(&[
        "dump",
        "--leave-running",
        "--inject",
        &root.to_string(),
        "-D",
        place.join("last").to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", report(&output));
    before.assert_untouched();
    check(KILLS);
}

fn victim(mode: &'static str) {
    victim_of("blocked", mode);
}

fn victim_of(program: &'static str, mode: &'static str) {
    with_timeout(LIMIT, move || {
        let victim = Victim::run(program, mode);
        survive(mode, victim.pid(), &[victim.pid()], |turn| {
            let counters = victim.counters();
            assert!(counters.eintr + counters.early + counters.wrong == 0, "turn {turn}: {counters:?}");
            victim.wait_for_rounds(counters.rounds + 1);
        });
        victim.counters().assert_unharmed();
    });
}

#[test]
fn spin() {
    victim("spin");
}

#[test]
fn nanosleep() {
    victim("nanosleep");
}

#[test]
fn several_threads() {
    victim_of("threads", "busy");
}

#[test]
fn a_call_with_a_timeout() {
    victim("poll_timed");
}

#[test]
fn a_blocked_read() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("pipe");
        survive("pipe", victim.pid(), &[victim.pid()], |_| {
            victim.counters().assert_unharmed();
            victim.wake();
        });
    });
}

/// A controller finds the parasite of the one before it still there, and waits until it has left.
#[test]
fn one_kill_after_the_other() {
    with_timeout(LIMIT, || {
        let mut random = Random::new("again");
        let victim = Victim::start("nanosleep");
        let before = Quiet::of(&[victim.pid()]);
        let longest = duration(Work::Inspect, victim.pid(), Path::new("")).as_micros() as u64;
        for _ in 0..KILLS {
            killed_at(Work::Inspect, victim.pid(), Path::new(""), Duration::from_micros(random.below(longest)));
        }
        let output = ptyagent(&["inspect", &victim.pid().to_string()]);
        assert!(output.status.success(), "{}", report(&output));
        before.assert_untouched();
        victim.wait_for_rounds(victim.counters().rounds + 1);
        victim.counters().assert_unharmed();
    });
}

/// Starts a shell with a job and a half-typed line; yields it with the job's PID.
fn shell_with_job() -> (Holder, i32) {
    let holder = Holder::bash();
    holder.type_keys("sleep 1000 & echo job=$!=\r");
    let job = || {
        let text = holder.screen_text();
        text.lines().find_map(|line| line.strip_prefix("job=")?.strip_suffix('=')?.parse().ok())
    };
    let job = until("job", PATIENCE, job, || holder.screen_text());
    let sleeps =
        || std::fs::read_to_string(format!("/proc/{job}/wchan")).is_ok_and(|wchan| wchan.contains("nanosleep"));
    until("sleeping job", PATIENCE, || sleeps().then_some(()), || holder.screen_text());
    (holder, job)
}

#[test]
fn a_shell_with_a_job() {
    with_timeout(LIMIT, || {
        let (holder, job) = shell_with_job();
        holder.type_keys("echo par");
        holder.wait_for_text("$ echo par");
        survive("shell", holder.pid(), &[holder.pid(), holder.leader(), job], |turn| {
            let seen = holder.output().len();
            holder.type_keys(format!("tial{}\recho par", turn * 3));
            holder.wait_for_new_output(seen, &format!("\rpartial{}\r\n", turn * 3));
            holder.wait_for_new_output(seen, "$ echo par");
        });
    });
}

/// The line discipline holds what is typed until the line is complete, and a dump takes it out for a moment.
#[test]
fn a_half_typed_line_in_the_terminal() {
    with_timeout(LIMIT, || {
        let holder = Holder::spawn(&["cat"]);
        asleep(holder.leader());
        holder.type_keys("line ");
        holder.wait_for_text("line ");
        survive("cat", holder.pid(), &[holder.pid(), holder.leader()], |turn| {
            let seen = holder.output().len();
            holder.type_keys(format!("{turn}\rline "));
            holder.wait_for_new_output(seen, &format!("line {turn}\r\n"));
        });
    });
}

/// A dump that is to end the session has not touched it until its images are complete.
#[test]
fn a_dump_that_would_have_ended_the_session() {
    with_timeout(LIMIT, || {
        let mut random = Random::new("end");
        let place = TempDir::new();
        let longest = {
            let (holder, _) = shell_with_job();
            duration(Work::DumpAndEnd, holder.pid(), &place.join("whole"))
        };
        let (mut complete, mut turn) = (0, 0);
        while turn < KILLS {
            let (holder, job) = shell_with_job();
            let before = Quiet::of(&[holder.pid(), holder.leader(), job]);
            while turn < KILLS {
                turn += 1;
                let dir = place.join(&format!("images-{turn}"));
                let micros = random.below(longest.as_micros() as u64 * 3 / 2);
                killed_at(Work::DumpAndEnd, holder.pid(), &dir, Duration::from_micros(micros));
                if dir.exists() {
                    complete += 1;
                    break;
                }
                before.assert_untouched();
                let seen = holder.output().len();
                holder.type_keys(format!("echo $(({turn}*3))\r"));
                holder.wait_for_new_output(seen, &format!("\r{}\r\n", turn * 3));
            }
        }
        println!("end: {KILLS} kills within {longest:?}, of which {complete} came after the images were complete");
        assert!(complete < KILLS);
    });
}
