//! One boot of a kernel in qemu: from an archive to the archive that the guest leaves on its disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

use crate::archive::{self, Entry};

const MEMORY_MIB: u32 = 2048;
const DISK_MIB: u64 = 256;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Kvm,
    /// qemu's translation: some ten times slower.
    Tcg,
}

/// One boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// A bzImage.
    pub kernel: &'a Path,
    /// Added to the kernel's command line.
    pub options: &'a str,
    /// What all boots have.
    pub base: &'a Path,
    pub entries: Vec<Entry>,
    pub limit: Duration,
    /// Where console, disk and archive are; kept.
    pub dir: &'a Path,
}

impl Engine {
    /// How many times longer things take than on this machine.
    pub fn patience(self) -> u32 {
        match self {
            Engine::Kvm => 2,
            Engine::Tcg => 10,
        }
    }
}

/// What the guest left, and what went wrong with the machine, with the console's place.
pub fn boot(engine: Engine, boot: &Boot) -> (Vec<Entry>, Option<String>) {
    fs::create_dir_all(boot.dir).unwrap();
    let (initrd, disk, console) = (boot.dir.join("initrd"), boot.dir.join("disk"), boot.dir.join("console"));
    fs::copy(boot.base, &initrd).unwrap();
    archive::write(&mut File::options().append(true).open(&initrd).unwrap(), &boot.entries).unwrap();
    File::create(&disk).unwrap().set_len(DISK_MIB << 20).unwrap();
    let mut machine = start(engine, boot, &initrd, &disk, &console);
    let outcome = wait(&mut machine, boot.limit);
    drop(machine);
    let left = read_disk(&disk).unwrap();
    // They are large, and can be made again.
    fs::remove_file(&initrd).unwrap();
    fs::remove_file(&disk).unwrap();
    let _ = fs::remove_file(boot.dir.join("line"));
    let place = console.display();
    match (outcome, left) {
        (Ok(()), Some(entries)) => (entries, None),
        (Ok(()), None) => (Vec::new(), Some(format!("it left no results; its console is in {place}"))),
        (Err(error), left) => (left.unwrap_or_default(), Some(format!("{error}; its console is in {place}"))),
    }
}

/// Kills the machine in the end.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(engine: Engine, boot: &Boot, initrd: &Path, disk: &Path, console: &Path) -> Machine {
    let (accel, cpu) = match engine {
        Engine::Kvm => ("kvm", "host"),
        // In emulation a kernel that has them copies byte by byte, and walks a level more of page tables.
        Engine::Tcg => ("tcg", "max,erms=off,fsrm=off,la57=off"),
    };
    // The machine ends with us, however we end.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-machine", "q35", "-accel", accel, "-cpu", cpu, "-m", &MEMORY_MIB.to_string()]);
    command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(initrd);
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {}", boot.options)]);
    command.arg("-serial").arg(file_option("file:", console));
    // The second and the third serial port are the ends of one line. The path of a socket may be no longer than 107 bytes.
    command.args(["-chardev", "socket,id=one,path=line,server=on,wait=off", "-serial", "chardev:one"]);
    command.args(["-chardev", "socket,id=other,path=line", "-serial", "chardev:other"]).current_dir(boot.dir);
    command.args(["-device", "nvme,drive=disk,serial=disk", "-drive"]);
    command.arg(file_option("if=none,id=disk,format=raw,cache=unsafe,file=", disk));
    let log = File::create(boot.dir.join("qemu")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Machine(command.spawn().unwrap())
}

/// A comma in a path is written twice in qemu's options.
fn file_option(before: &str, path: &Path) -> String {
    format!("{before}{}", path.to_str().unwrap().replace(',', ",,"))
}

fn wait(machine: &mut Machine, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        match machine.0.try_wait().unwrap() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("qemu ended with {status}")),
            None if Instant::now() > deadline => return Err(format!("it still runs after {} s", limit.as_secs())),
            None => {
                poll(&mut [], PollTimeout::from(50_u8)).unwrap();
            }
        }
    }
}

fn read_disk(path: &PathBuf) -> io::Result<Option<Vec<Entry>>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(archive::parse(&bytes))
}
