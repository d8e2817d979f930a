//! The guests' system: programs of this machine with what they need, at the same paths as here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::archive::{self, Entry};
use crate::support;

/// Programs of the tests, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 36] = [
    ("bash", "bash"),
    ("sh", "dash"),
    ("dash", "dash"),
    ("vim", "vim"),
    ("python3", "python3"),
    ("tmux", "tmux"),
    ("less", "less"),
    ("sqlite3", "sqlite3"),
    ("ps", "procps"),
    ("top", "procps"),
    ("setsid", "util-linux"),
    ("setpriv", "util-linux"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("ssh-agent", "openssh-client"),
    ("ssh-add", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("grep", "grep"),
    ("sed", "sed"),
    ("cat", "coreutils"),
    ("sleep", "coreutils"),
    ("env", "coreutils"),
    ("seq", "coreutils"),
    ("head", "coreutils"),
    ("tail", "coreutils"),
    ("wc", "coreutils"),
    ("yes", "coreutils"),
    ("true", "coreutils"),
    ("sha256sum", "coreutils"),
    ("stty", "coreutils"),
    ("tty", "coreutils"),
    ("rm", "coreutils"),
    ("ls", "coreutils"),
    ("mkdir", "coreutils"),
    ("touch", "coreutils"),
    ("clear", "ncurses-bin"),
];
/// What they need beside their libraries; what is not there is left out.
const DATA: [&str; 14] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/lib/terminfo/x",
    "/lib/terminfo/l",
    "/lib/terminfo/s",
    "/lib/terminfo/t",
    "/usr/share/terminfo",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/python3.11",
    "/usr/share/vim/vim90",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "/usr/share/zoneinfo/UTC",
];
/// Parts of that which nothing needs.
const LEFT_OUT: [&str; 9] = [
    "/usr/share/vim/vim90/doc",
    "/usr/share/vim/vim90/spell",
    "/usr/share/vim/vim90/tutor",
    "/usr/share/vim/vim90/lang",
    "/usr/lib/python3.11/test",
    "/usr/lib/python3.11/config-3.11-x86_64-linux-gnu",
    "/usr/lib/python3.11/pydoc_data",
    "/usr/lib/python3.11/lib2to3",
    "/usr/lib/python3.11/ensurepip",
];
/// Where programs are looked for: tests with the same names as Debian's programs take those.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// A system that is being put together.
#[derive(Debug, Default)]
pub struct System {
    /// Parents sort before what is in them.
    entries: BTreeMap<PathBuf, Entry>,
}

impl System {
    /// The programs of the tests, with folders for what is mounted and written.
    pub fn new() -> System {
        let mut system = System::default();
        for dir in ["/proc", "/sys", "/dev", "/run", "/root", "/mnt", "/out"] {
            system.put(Entry::dir(dir, 0o755));
        }
        system.put(Entry::dir("/tmp", 0o1777));
        system.put(Entry::device("/dev/console", 5, 1));
        system.put(Entry::device("/dev/null", 1, 3));
        // Some of them are links here.
        for folder in FOLDERS {
            system.file(Path::new(folder));
        }
        for (program, package) in PROGRAMS {
            support::require_from(program, package);
            let path = FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
            system.program(&path.unwrap_or_else(|| panic!("{program} is in none of {FOLDERS:?}")));
        }
        for path in DATA {
            system.tree(Path::new(path));
        }
        system
    }

    pub fn put(&mut self, entry: Entry) {
        self.entries.insert(entry.path.clone(), entry);
    }

    /// A file as it is here, with the folders and links that lead to it.
    pub fn file(&mut self, path: &Path) {
        let mut at = PathBuf::from("/");
        let mut rest: Vec<PathBuf> = path.components().rev().map(|part| part.as_os_str().into()).collect();
        while let Some(part) = rest.pop() {
            match part.components().next() {
                Some(Component::Normal(_)) => {}
                Some(Component::ParentDir) => {
                    at.pop();
                    continue;
                }
                Some(Component::RootDir) => {
                    at = "/".into();
                    continue;
                }
                _ => continue,
            }
            at.push(&part);
            if self.entries.get(&at).is_none_or(|entry| entry.mode & libc::S_IFMT == libc::S_IFLNK) {
                let Ok(entry) = Entry::read(&at) else { return };
                let link = (entry.mode & libc::S_IFMT == libc::S_IFLNK).then(|| PathBuf::from(entry.text()));
                self.put(entry);
                if let Some(target) = link {
                    at.pop();
                    rest.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
                }
            }
        }
    }

    /// A file with the libraries that it is linked with.
    pub fn program(&mut self, path: &Path) {
        self.file(path);
        self.libraries(path);
    }

    /// A program of ours, without what only a debugger needs.
    pub fn built(&mut self, path: &Path, scratch: &Path) {
        self.file(path);
        let stripped = scratch.join("stripped");
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(path).status().unwrap();
        assert!(status.success(), "strip fails for {}", path.display());
        self.entries.get_mut(path).unwrap().bytes = fs::read(&stripped).unwrap();
        self.libraries(path);
    }

    /// A folder with all that is in it, and the libraries of its libraries.
    pub fn tree(&mut self, path: &Path) {
        if LEFT_OUT.iter().any(|out| path == Path::new(out)) || path.ends_with("dist-packages") {
            return;
        }
        self.file(path);
        if !path.is_dir() {
            if path.extension().is_some_and(|extension| extension == "so") {
                self.libraries(path);
            }
            return;
        }
        for entry in fs::read_dir(path).unwrap().flatten() {
            self.tree(&entry.path());
        }
    }

    fn libraries(&mut self, path: &Path) {
        // Fails for what is not dynamic.
        let output = Command::new("ldd").arg(path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for library in text.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with('/')) {
            self.file(Path::new(library));
        }
    }

    /// Writes it as an archive.
    pub fn write(&self, path: &Path) {
        let mut out = BufWriter::new(File::create(path).unwrap());
        archive::write(&mut out, self.entries.values()).unwrap();
        out.into_inner().unwrap();
    }
}
