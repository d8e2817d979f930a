//! A [`View`] as lines of text.

use std::fmt::Write;

use super::flags::{self, Table};
use super::terminal::{Queue, Terminal, Termios};
use super::view::{Descriptor, Task, View};

/// The width that lists of flags are wrapped to, in columns.
const WIDTH: usize = 100;

pub fn print(view: &View) -> String {
    let mut lines = vec![summary(view)];
    for task in &view.tasks {
        lines.extend(task_lines(view, task));
    }
    for terminal in &view.terminals {
        lines.push(String::new());
        lines.extend(terminal_lines(terminal));
    }
    if !view.losses.is_empty() {
        lines.push(String::new());
    }
    for loss in &view.losses {
        let mut line = "lost".to_owned();
        // Writing to a String cannot fail, here and below.
        _ = loss.pid.map(|pid| write!(line, ", process {pid}"));
        _ = loss.fd.map(|fd| write!(line, ", descriptor {fd}"));
        lines.push(format!("{line}: {}", loss.text));
    }
    if !view.unknown.is_empty() {
        lines.push(format!("\nnot looked at: {}", view.unknown.join(" ")));
    }
    lines.iter().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

fn summary(view: &View) -> String {
    let threads: usize = view.tasks.iter().map(|task| task.threads.len()).sum();
    let mut line = format!(
        "{}, {}, {}, {} of pages",
        count(view.tasks.len(), "process", "processes"),
        count(threads, "thread", "threads"),
        count(view.terminals.len(), "terminal", "terminals"),
        size(view.stored_bytes)
    );
    _ = view.kernel.as_ref().map(|kernel| write!(line, "; Linux {kernel}"));
    match &view.writer {
        Some(writer) => line + "; written by " + writer,
        None => line,
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn task_lines(view: &View, task: &Task) -> Vec<String> {
    let indent = "  ".repeat(task.depth);
    let mark = |leads: bool| if leads { "*" } else { "" };
    let mut line = format!("{indent}{} {}  {}", task.pid, task.comm, task.state);
    _ = write!(line, "  sid {}{}", task.sid, mark(task.sid == task.pid));
    _ = write!(line, "  pgid {}{}", task.pgid, mark(task.pgid == task.pid));
    line += if task.foreground { "  foreground" } else { "" };
    let terminal = view.terminals.iter().find(|terminal| Some(terminal.id) == task.controlling_terminal);
    _ = terminal.map(|terminal| write!(line, "  on {}", terminal.title()));
    if task.threads.len() > 1 {
        let threads: Vec<String> = task.threads.iter().map(u32::to_string).collect();
        _ = write!(line, "  threads {}", threads.join(" "));
    }
    _ = write!(line, "  {} mapped, {} stored", size(task.mapped_bytes), size(task.stored_bytes));
    let mut lines = vec![line];
    for (name, path) in [("exe", &task.exe), ("cwd", &task.cwd)] {
        lines.extend(path.as_ref().map(|path| format!("{indent}    {name} {path}")));
    }
    lines.extend(task.cgroups.iter().map(|group| format!("{indent}    cgroup {group}")));
    match task.descriptors_shared_with {
        Some(pid) => lines.push(format!("{indent}    descriptors shared with {pid}")),
        None => lines.extend(task.descriptors.iter().map(|fd| format!("{indent}    {}", descriptor_line(fd)))),
    }
    lines
}

fn descriptor_line(fd: &Descriptor) -> String {
    let mut line = format!("fd {:<3} {:<2} {}", fd.number, fd.access.unwrap_or("?"), fd.kind);
    _ = fd.target.as_ref().map(|target| write!(line, " {target}"));
    _ = fd.position.map(|position| write!(line, " at {position}"));
    let flags = fd.flags.iter().map(String::as_str).chain(fd.close_on_exec.then_some("cloexec"));
    let flags: Vec<&str> = flags.collect();
    if !flags.is_empty() {
        _ = write!(line, " ({})", flags.join(", "));
    }
    format!("{line} #{}", fd.file)
}

fn terminal_lines(terminal: &Terminal) -> Vec<String> {
    let mut line = terminal.title();
    _ = terminal.path.as_ref().map(|path| write!(line, "  {path}"));
    if let (Some(rows), Some(columns)) = (terminal.rows, terminal.columns) {
        _ = write!(line, "  {rows} rows, {columns} columns");
    }
    _ = terminal.session.map(|session| write!(line, "  session {session}"));
    _ = terminal.foreground.map(|group| write!(line, "  foreground group {group}"));
    let mut lines = vec![line];
    if !terminal.state.is_empty() {
        lines.push(terminal.state.join(", "));
    }
    if let (Some(mode), Some(uid), Some(gid)) = (terminal.mode, terminal.uid, terminal.gid) {
        lines.push(format!("node mode {:o}, user {uid}, group {gid}", mode & 0o7777));
    }
    if let Some(discipline) = terminal.line_discipline.filter(|&discipline| discipline != 0) {
        lines.push(format!("line discipline {discipline}"));
    }
    if let Some(termios) = &terminal.termios {
        lines.extend(termios_lines(termios));
    }
    let locked = terminal.termios_locked.iter().flat_map(|locked| locked.raw.into_iter().zip(TABLES));
    let locked: Vec<String> = locked.flat_map(|(word, (table, _))| flags::names(table, word)).collect();
    if !locked.is_empty() {
        lines.push(format!("may not be changed: {}", locked.join(" ")));
    }
    if let Some(queue) = &terminal.queue {
        lines.extend(queue_lines(queue));
    }
    let indented =
        lines.iter().enumerate().map(|(index, line)| if index == 0 { line.clone() } else { format!("    {line}") });
    indented.collect()
}

/// The four flag words in the order of struct termios2, each with the bits that are shown in another way.
const TABLES: [(&Table, u32); 4] = [
    (flags::IFLAG, 0),
    (flags::OFLAG, 0o177400),
    (flags::CFLAG, flags::CSIZE | flags::CBAUD | flags::CIBAUD),
    (flags::LFLAG, 0),
];

fn termios_lines(termios: &Termios) -> Vec<String> {
    let mut lines = Vec::new();
    let speed = |speed: Option<u32>| speed.map_or("unknown".to_owned(), |speed| speed.to_string());
    let (input, output) = (speed(termios.input_speed), speed(termios.output_speed));
    lines.push(match input == output {
        true => format!("speed {output} baud"),
        false => format!("speed {input} baud in, {output} baud out"),
    });
    let [_, c_oflag, c_cflag, _] = termios.raw;
    for (index, (word, (table, elsewhere))) in termios.raw.into_iter().zip(TABLES).enumerate() {
        let mut words: Vec<String> = match index {
            2 => vec![Termios::size(c_cflag)],
            _ => vec![],
        };
        words.extend(table.iter().map(|&(bits, name)| format!("{}{name}", if word & bits == 0 { "-" } else { "" })));
        let known = table.iter().fold(elsewhere, |all, &(bits, _)| all | bits);
        words.extend(flags::names(&[], word & !known));
        if index == 1 {
            words.extend(Termios::delays(c_oflag));
        }
        lines.extend(wrapped(&words));
    }
    let characters =
        flags::CONTROL.iter().zip(&termios.control).filter(|(name, byte)| !name.starts_with("cc") || **byte != 0);
    let characters =
        characters.map(|(name, _)| format!("{name}={}", termios.c_cc.get(name).map_or("", String::as_str)));
    lines.extend(wrapped(&characters.collect::<Vec<_>>()));
    lines
}

fn wrapped(words: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => *line = format!("{line} {word}"),
            _ => lines.push(word.clone()),
        }
    }
    lines
}

fn queue_lines(queue: &Queue) -> Vec<String> {
    let mut lines = Vec::new();
    for line in &queue.lines {
        lines.push(match line.terminator {
            "eof" if line.data.is_empty() => "input: end of file".to_owned(),
            "eof" => format!("input line, ended by the eof character: \"{}\"", line.data),
            _ => format!("input line: \"{}\"", line.data),
        });
    }
    lines.extend(queue.partial.as_ref().map(|text| format!("input, unfinished: \"{text}\"")));
    if queue.literal_next {
        lines.push("input: the next character will be taken literally".to_owned());
    }
    lines.extend(queue.unprocessed.as_ref().map(|text| format!("input, not processed: \"{text}\"")));
    lines.extend(queue.output.as_ref().map(|text| format!("unread output: \"{text}\"")));
    lines
}
