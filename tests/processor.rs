//! Images of another processor: instruction sets and extended state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ptyagent::image::{Images, pb};
use support::{
    PATIENCE, TempDir, compile, copy_images, dump, kill_session, ptyagent, report, restore, serial, subreaper, until,
    with_timeout,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Where XSAVE's header has the bits of the components that are not in their initial state.
const XSTATE_BV: usize = 512;

/// Copies images; `change` makes them those of another machine.
fn changed(from: &Path, to: &Path, change: impl Fn(&mut pb::PtyagentEntry)) {
    copy_images(from, to, |images| change(images.own.as_mut().unwrap()), |_, _, _| ());
}

/// A process that waits for a byte in `go`; killed at the end.
struct Waiting {
    dir: TempDir,
    pid: i32,
}

impl Waiting {
    fn start(program: &str, arguments: &[&str]) -> Waiting {
        let dir = TempDir::new();
        nix::unistd::mkfifo(&dir.join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut command = Command::new("setsid");
        command.arg("--fork").arg(compile(program)).arg(dir.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let ready = || fs::read_to_string(dir.join("ready")).ok()?.parse().ok();
        let pid = until("ready victim", PATIENCE, ready, String::new);
        Waiting { dir, pid }
    }

    fn result(&self, end: &str) -> String {
        File::options().read(true).write(true).open(self.dir.join("go")).unwrap().write_all(b"g").unwrap();
        let result = || fs::read_to_string(self.dir.join("result")).ok().filter(|text| text.ends_with(end));
        until("verdict", PATIENCE, result, || format!("{:?}", support::stat(self.pid)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        kill_session(self.pid);
    }
}

fn refused(dir: &Path, word: &str) {
    let output = ptyagent(&["restore", "--detach", "-D", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", report(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{}", report(&output));
}

#[test]
fn an_instruction_set_that_is_missing_here_is_refused_unless_allowed() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let _subreaper = subreaper();
        let victim = Waiting::start("vdso", &["calls"]);
        let [here, there] = ["here", "there"].map(|name| victim.dir.join(name));
        dump(victim.pid, &here);
        changed(&here, &there, |own| {
            own.kernel.as_mut().unwrap().instruction_sets.push("avx4096".into());
        });
        refused(&there, "avx4096");
        let allowed = ptyagent(&["restore", "--detach", "--allow-cpu-mismatch", "-D", there.to_str().unwrap()]);
        assert!(allowed.status.success(), "{}", report(&allowed));
        assert_eq!(victim.result("done\n"), "done\n");
    });
}

#[test]
fn extended_state_that_this_processor_lacks_is_refused_where_it_is_in_use() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let _subreaper = subreaper();
        let victim = Waiting::start("vdso", &["calls"]);
        let [here, used, unused] = ["here", "used", "unused"].map(|name| victim.dir.join(name));
        dump(victim.pid, &here);
        // A processor with bound registers, which are first of all, so that everything else lies 64 bytes further on.
        let with_bounds = |own: &mut pb::PtyagentEntry, header: u8| {
            let kernel = own.kernel.as_mut().unwrap();
            *kernel.xfeatures.as_mut().unwrap() |= 1 << 3;
            for component in &mut kernel.xstate_components {
                *component.offset.as_mut().unwrap() += 64;
            }
            let bounds = pb::PtyagentXstateComponent { number: Some(3), offset: Some(576), size: Some(64) };
            kernel.xstate_components.push(bounds);
            for thread in &mut own.threads {
                let xstate = thread.xstate.as_mut().unwrap();
                xstate.splice(576..576, [0x55; 64]);
                xstate[XSTATE_BV] |= header;
            }
        };
        changed(&here, &used, |own| with_bounds(own, 1 << 3));
        refused(&used, "MPX bounds");
        changed(&here, &unused, |own| with_bounds(own, 0));
        restore(&unused);
        let again = victim.dir.join("again");
        dump(victim.pid, &again);
        let state = |dir: &Path| Images::read(dir).unwrap().own.unwrap().threads[0].xstate.clone().unwrap();
        assert_eq!(state(&again), state(&here));
        restore(&again);
        assert_eq!(victim.result("done\n"), "done\n");
    });
}

#[test]
fn amx_tiles_and_the_permission_to_use_them() {
    with_timeout(LIMIT, || {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        if !cpuinfo.contains(" amx_tile") {
            support::skip("this processor has no AMX");
            return;
        }
        let _serial = serial();
        let _subreaper = subreaper();
        let victim = Waiting::start("amx", &[]);
        for round in 0..2 {
            let images = victim.dir.join(&format!("images{round}"));
            dump(victim.pid, &images);
            restore(&images);
        }
        assert_eq!(victim.result("e"), "same");
    });
}
