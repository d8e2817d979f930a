//! The first process of a guest: makes a system of a bare kernel, runs the job's tasks one after another, leaves the results on the disk, ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use crate::archive::{self, Entry};
use crate::job::{Ending, JOB, Job, OUT, Task, VERDICTS, Verdict};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DISK: &str = "/dev/nvme0n1";

/// Ends with a reboot, at which the machine stops. A panic ends the machine too, and is on the console.
pub fn main() {
    prepare();
    let job: Job = serde_json::from_slice(&fs::read(JOB).unwrap()).unwrap();
    for module in &job.modules {
        let loaded = File::open(module)
            .map_err(|error| error.to_string())
            .and_then(|file| finit_module(&file, c"", ModuleInitFlags::empty()).map_err(|errno| errno.to_string()));
        if let Err(error) = loaded {
            println!("cannot load {}: {error}", module.display());
        }
    }
    for (name, value) in &job.settings {
        if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
            println!("cannot set {name}: {error}");
        }
    }
    let mut verdicts = Vec::new();
    for task in &job.tasks {
        println!("{}: starts", task.name);
        let (begin, idle_before) = (Instant::now(), idle_seconds());
        let ending = run(task);
        let (seconds, idle) = (begin.elapsed().as_secs_f64(), idle_seconds() - idle_before);
        println!("{}: {ending:?} after {seconds:.1} s, {idle:.1} s of them idle", task.name);
        verdicts.push(Verdict { name: task.name.clone(), ending, seconds });
        fs::write(VERDICTS, serde_json::to_vec(&verdicts).unwrap()).unwrap();
        // After each, so that the host has them if a later one takes the machine down.
        save(job.keep.as_deref()).unwrap();
    }
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    println!("cannot reboot: {errno}");
}

fn prepare() {
    let none = MsFlags::empty();
    for (kind, at, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", ""),
        ("cgroup2", "/sys/fs/cgroup", ""),
    ] {
        // Some of them the kernel has made itself.
        let _ = fs::create_dir_all(at);
        if let Err(errno) = mount(Some(kind), at, Some(kind), none, Some(options)) {
            println!("cannot mount {at}: {errno}");
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")] {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(name));
    }
    let _ = setsid();
    raise_loopback();
}

/// RTM_NEWLINK for the interface of index 1, IFF_UP: rtnetlink(7).
fn raise_loopback() {
    let mut request = Vec::new();
    request.extend(32u32.to_ne_bytes());
    request.extend(16u16.to_ne_bytes());
    request.extend(1u16.to_ne_bytes());
    request.extend([0; 12]);
    request.extend(1i32.to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    let route =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).unwrap();
    send(std::os::fd::AsRawFd::as_raw_fd(&route), &request, MsgFlags::empty()).unwrap();
}

fn run(task: &Task) -> Ending {
    if let Some(pid) = task.above_pid {
        fs::write("/proc/sys/kernel/ns_last_pid", pid.to_string()).unwrap();
    }
    let log = File::create(Path::new(OUT).join(format!("{}.log", task.name))).unwrap();
    let mut command = Command::new(&task.argv[0]);
    command.args(&task.argv[1..]).env_clear().env("PATH", PATH).envs([("HOME", "/root"), ("LANG", "C.UTF-8")]);
    command.envs(task.env.iter().map(|(name, value)| (name, value))).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    let child = match command.spawn() {
        Ok(child) => Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Err(error) => {
            println!("{}: {error}", task.argv[0]);
            return Ending::Missing;
        }
    };
    let deadline = Instant::now() + Duration::from_secs(task.seconds);
    loop {
        // Orphans become ours, and a zombie keeps its number busy.
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return settle(Ending::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return settle(Ending::Killed(signal as i32)),
            Ok(WaitStatus::StillAlive) => {
                poll(&mut [], PollTimeout::from(5_u8)).unwrap();
            }
            _ => {}
        }
        if Instant::now() > deadline {
            for (pid, line) in processes() {
                println!("    {pid} {line}");
            }
            return settle(Ending::TimedOut);
        }
    }
}

/// Ends whatever a task has left.
fn settle(ending: Ending) -> Ending {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while !matches!(waitpid(None::<Pid>, None), Err(nix::errno::Errno::ECHILD)) {}
    ending
}

/// The command lines of all processes that have one.
fn processes() -> BTreeMap<i32, String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let line = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|words| !words.is_empty())?;
        let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        Some((pid, format!("[{wchan}] {}", String::from_utf8_lossy(&words).replace('\0', " "))))
    };
    pids.filter_map(line).collect()
}

/// How long the processor has had nothing to do since the boot: proc_uptime(5).
fn idle_seconds() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn save(keep: Option<&Path>) -> std::io::Result<()> {
    let mut entries = Entry::tree(Path::new(OUT))?;
    if let Some((dir, prefix)) = keep.and_then(|keep| Some((keep.parent()?, keep.file_name()?.to_str()?))) {
        for entry in fs::read_dir(dir)?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
                entries.extend(Entry::tree(&entry.path())?);
            }
        }
    }
    let mut disk = BufWriter::new(File::options().write(true).open(DISK)?);
    archive::write(&mut disk, &entries)?;
    disk.into_inner()?.sync_all()
}
