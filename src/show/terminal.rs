//! One terminal peer: our own record where there is one, CRIU's where not.

use std::collections::BTreeMap;

use serde::Serialize;

use super::flags;
use crate::image::pb;
use crate::image::text::escape;

/// One peer of one terminal.
#[derive(Debug, Serialize)]
pub struct Terminal {
    /// The id in tty-info.img.
    pub id: u32,
    /// pty, console, vt, ctty, external or serial.
    pub kind: String,
    /// The N of /dev/pts/N.
    pub index: Option<u32>,
    /// Of a pty: "master" or "slave".
    pub side: Option<&'static str>,
    pub path: Option<String>,
    pub session: Option<u32>,
    pub foreground: Option<u32>,
    pub rows: Option<u32>,
    pub columns: Option<u32>,
    pub termios: Option<Termios>,
    /// Flags that may not be changed without CAP_SYS_ADMIN.
    pub termios_locked: Option<Termios>,
    pub line_discipline: Option<i32>,
    /// exclusive, locked, packet, hung up, external, stopped ...: in words.
    pub state: Vec<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub queue: Option<Queue>,
}

/// struct termios2 by name.
#[derive(Debug, Serialize)]
pub struct Termios {
    /// In bits per second.
    pub input_speed: Option<u32>,
    pub output_speed: Option<u32>,
    pub c_iflag: Vec<String>,
    pub c_oflag: Vec<String>,
    pub c_cflag: Vec<String>,
    pub c_lflag: Vec<String>,
    pub c_cc: BTreeMap<&'static str, String>,
    /// The words and bytes themselves.
    #[serde(skip)]
    pub raw: [u32; 4],
    #[serde(skip)]
    pub control: Vec<u8>,
}

/// The bytes that wait, as text with C escapes.
#[derive(Debug, Serialize)]
pub struct Queue {
    pub lines: Vec<Line>,
    pub partial: Option<String>,
    pub literal_next: bool,
    pub unprocessed: Option<String>,
    pub output: Option<String>,
    /// Of all of them.
    pub bytes: usize,
}

#[derive(Debug, Serialize)]
pub struct Line {
    pub data: String,
    /// newline, veol, eof or none.
    pub terminator: &'static str,
}

impl Terminal {
    pub fn new(info: &pb::TtyInfoEntry, own: Option<&pb::PtyagentTty>, data: Option<&pb::TtyDataEntry>) -> Terminal {
        let winsize = info.winsize.as_ref();
        let termios = own.and_then(|own| own.termios.as_ref()).map(Termios::from_own);
        let locked = own.and_then(|own| own.termios_locked.as_ref()).map(Termios::from_own);
        let queue = own.and_then(|own| own.queue.as_ref()).map(Queue::from_own);
        Terminal {
            id: info.id,
            kind: kind(info).to_owned(),
            index: info.pty.as_ref().map(|pty| pty.index),
            side: side(info, own),
            path: own.and_then(|own| own.path.as_deref()).map(escape),
            session: own.and_then(|own| own.session).or(Some(info.sid).filter(|&sid| sid != 0)),
            foreground: own.and_then(|own| own.foreground_pgrp).or(Some(info.pgrp).filter(|&pgrp| pgrp != 0)),
            rows: winsize.map(|size| size.ws_row).or(own.and_then(|own| own.ws_row)),
            columns: winsize.map(|size| size.ws_col).or(own.and_then(|own| own.ws_col)),
            termios: termios.or_else(|| info.termios.as_ref().map(Termios::from_criu)),
            termios_locked: locked.or_else(|| info.termios_locked.as_ref().map(Termios::from_criu)),
            line_discipline: own.and_then(|own| own.line_discipline),
            state: state(info, own),
            mode: own.and_then(|own| own.mode),
            uid: own.and_then(|own| own.uid).or(info.uid),
            gid: own.and_then(|own| own.gid).or(info.gid),
            queue: queue.or_else(|| data.map(|data| Queue::from_criu(&data.data))),
        }
    }

    /// "pty 3 slave", "vt", ...
    pub fn title(&self) -> String {
        let index = self.index.map_or(String::new(), |index| format!(" {index}"));
        let side = self.side.map_or(String::new(), |side| format!(" {side}"));
        format!("{}{index}{side}", self.kind)
    }
}

fn kind(info: &pb::TtyInfoEntry) -> &'static str {
    match info.r#type() {
        pb::TtyType::Unknown => "terminal",
        pb::TtyType::Pty => "pty",
        pb::TtyType::Console => "console",
        pb::TtyType::Vt => "vt",
        pb::TtyType::Ctty => "ctty",
        pb::TtyType::ExtTty => "external terminal",
        pb::TtyType::Serial => "serial line",
    }
}

/// CRIU tells the sides of a pty by the parity of the id alone.
fn side(info: &pb::TtyInfoEntry, own: Option<&pb::PtyagentTty>) -> Option<&'static str> {
    info.pty.as_ref()?;
    let master = own.and_then(|own| own.master).unwrap_or(info.id % 2 == 1);
    Some(if master { "master" } else { "slave" })
}

fn state(info: &pb::TtyInfoEntry, own: Option<&pb::PtyagentTty>) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = |set: bool, text: &str| {
        if set {
            words.push(text.to_owned());
        }
    };
    let asked = |ask: fn(&pb::PtyagentTty) -> Option<bool>| own.and_then(ask);
    word(asked(|own| own.hung_up) == Some(true), "hung up");
    word(asked(|own| own.external) == Some(true), "held outside the tree");
    word(asked(|own| own.exclusive).unwrap_or(info.exclusive), "exclusive");
    word(asked(|own| own.locked).unwrap_or(info.locked), "locked");
    word(asked(|own| own.packet).unwrap_or(info.packet_mode), "packet mode");
    match own.map(|own| own.flow()) {
        Some(pb::PtyagentFlow::Tcooff) => word(true, "stopped by TCOOFF"),
        Some(pb::PtyagentFlow::Xoff) => word(true, "stopped by the stop character"),
        Some(pb::PtyagentFlow::Unknown) => word(true, "stopped"),
        Some(pb::PtyagentFlow::Running) | None => {}
    }
    if let Some(status) = own.and_then(|own| own.packet_status).filter(|&status| status != 0) {
        words.push(format!("pending packet status {}", flags::names(flags::PACKET, status).join(" ")));
    }
    words
}

impl Termios {
    fn from_own(own: &pb::PtyagentTermios) -> Termios {
        let raw = [own.c_iflag(), own.c_oflag(), own.c_cflag(), own.c_lflag()];
        Termios::new(raw, own.c_cc().to_vec(), own.c_ispeed, own.c_ospeed)
    }

    /// CRIU keeps no speeds but those that c_cflag has a code for; no code for the input means that of the output.
    fn from_criu(entry: &pb::TermiosEntry) -> Termios {
        let raw = [entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag];
        let output = flags::speed(entry.c_cflag);
        let input = match entry.c_cflag >> 16 & flags::CBAUD {
            0 => output,
            code => flags::speed(code),
        };
        Termios::new(raw, entry.control_characters().to_vec(), input, output)
    }

    fn new(raw: [u32; 4], control: Vec<u8>, input_speed: Option<u32>, output_speed: Option<u32>) -> Termios {
        let [c_iflag, c_oflag, c_cflag, c_lflag] = raw;
        let delays = flags::DELAYS.iter().fold(0, |all, (mask, ..)| all | mask);
        let mut output = flags::names(flags::OFLAG, c_oflag & !delays);
        output.extend(Termios::delays(c_oflag));
        let mut hardware = vec![Termios::size(c_cflag)];
        hardware.extend(flags::names(flags::CFLAG, c_cflag & !(flags::CSIZE | flags::CBAUD | flags::CIBAUD)));
        let character = |(index, (&name, &byte)): (usize, (&&'static str, &u8))| {
            // VTIME and VMIN are numbers.
            let text = if matches!(index, 5 | 6) { byte.to_string() } else { flags::control(byte) };
            (name, text)
        };
        Termios {
            input_speed,
            output_speed,
            c_iflag: flags::names(flags::IFLAG, c_iflag),
            c_oflag: output,
            c_cflag: hardware,
            c_lflag: flags::names(flags::LFLAG, c_lflag),
            c_cc: flags::CONTROL.iter().zip(&control).enumerate().map(character).collect(),
            raw,
            control,
        }
    }

    /// cs5 to cs8.
    pub fn size(c_cflag: u32) -> String {
        format!("cs{}", 5 + ((c_cflag & flags::CSIZE) >> 4))
    }

    /// The delays that are not 0, as stty names them.
    pub fn delays(c_oflag: u32) -> Vec<String> {
        let delays = flags::DELAYS.iter().map(|&(mask, shift, name)| (name, (c_oflag & mask) >> shift));
        delays.filter(|&(_, value)| value != 0).map(|(name, value)| format!("{name}{value}")).collect()
    }
}

impl Queue {
    fn from_own(own: &pb::PtyagentQueue) -> Queue {
        let text = |bytes: &Option<Vec<u8>>| bytes.as_deref().filter(|bytes| !bytes.is_empty()).map(escape);
        let line =
            |line: &pb::PtyagentLine| Line { data: escape(line.data()), terminator: terminator(line.terminator()) };
        let lines = own.lines.iter().map(|line| line.data().len()).sum::<usize>();
        Queue {
            lines: own.lines.iter().map(line).collect(),
            partial: text(&own.partial),
            literal_next: own.lnext(),
            unprocessed: text(&own.unprocessed),
            output: text(&own.output),
            bytes: lines + own.partial().len() + own.unprocessed().len() + own.output().len(),
        }
    }

    /// Without boundaries: all of it is one partial line.
    fn from_criu(data: &[u8]) -> Queue {
        let partial = Some(escape(data)).filter(|text| !text.is_empty());
        Queue { lines: vec![], partial, literal_next: false, unprocessed: None, output: None, bytes: data.len() }
    }
}

fn terminator(terminator: pb::PtyagentTerminator) -> &'static str {
    match terminator {
        pb::PtyagentTerminator::None => "none",
        pb::PtyagentTerminator::Newline => "newline",
        pb::PtyagentTerminator::Veol => "veol",
        pb::PtyagentTerminator::Veol2 => "veol2",
        pb::PtyagentTerminator::Eof => "eof",
    }
}
