//! Names for the raw settings words of a terminal: for display only, unknown bits are shown as numbers and never dropped.
//!
//! Names are those of stty(1): a set bit by its name, a cleared one is not listed. Source: termios(3), include/uapi/asm-generic/termbits.h.

use bitflags::bitflags;

use crate::sys::tty::{NCCS, Termios2};

bitflags! {
    /// c_iflag.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Input: u32 {
        const IGNBRK = 0o1;
        const BRKINT = 0o2;
        const IGNPAR = 0o4;
        const PARMRK = 0o10;
        const INPCK = 0o20;
        const ISTRIP = 0o40;
        const INLCR = 0o100;
        const IGNCR = 0o200;
        const ICRNL = 0o400;
        const IUCLC = 0o1000;
        const IXON = 0o2000;
        const IXANY = 0o4000;
        const IXOFF = 0o10000;
        const IMAXBEL = 0o20000;
        const IUTF8 = 0o40000;
        const _ = !0;
    }

    /// c_oflag, without the delay fields.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Output: u32 {
        const OPOST = 0o1;
        const OLCUC = 0o2;
        const ONLCR = 0o4;
        const OCRNL = 0o10;
        const ONOCR = 0o20;
        const ONLRET = 0o40;
        const OFILL = 0o100;
        const OFDEL = 0o200;
        const _ = !0;
    }

    /// c_cflag, without the character size and the speeds.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Control: u32 {
        const CSTOPB = 0o100;
        const CREAD = 0o200;
        const PARENB = 0o400;
        const PARODD = 0o1000;
        const HUPCL = 0o2000;
        const CLOCAL = 0o4000;
        const CMSPAR = 0o10_000_000_000;
        const CRTSCTS = 0o20_000_000_000;
        const _ = !0;
    }

    /// c_lflag.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Local: u32 {
        const ISIG = 0o1;
        const ICANON = 0o2;
        const XCASE = 0o4;
        const ECHO = 0o10;
        const ECHOE = 0o20;
        const ECHOK = 0o40;
        const ECHONL = 0o100;
        const NOFLSH = 0o200;
        const TOSTOP = 0o400;
        const ECHOCTL = 0o1000;
        const ECHOPRT = 0o2000;
        const ECHOKE = 0o4000;
        const FLUSHO = 0o10000;
        const PENDIN = 0o40000;
        const IEXTEN = 0o100_000;
        const EXTPROC = 0o200_000;
        const _ = !0;
    }
}

/// Names of the slots of `c_cc` in order, as stty(1) has them; `None` where Linux has no use for the slot.
pub const CONTROL_CHARACTERS: [Option<&str>; NCCS] = [
    Some("intr"),
    Some("quit"),
    Some("erase"),
    Some("kill"),
    Some("eof"),
    Some("time"),
    Some("min"),
    Some("swtc"),
    Some("start"),
    Some("stop"),
    Some("susp"),
    Some("eol"),
    Some("rprnt"),
    Some("discard"),
    Some("werase"),
    Some("lnext"),
    Some("eol2"),
    None,
    None,
];

/// Multi-bit fields: c_oflag delays, then c_cflag's character size.
const OUTPUT_FIELDS: [(u32, &str); 6] =
    [(0o400, "nl"), (0o3000, "cr"), (0o14000, "tab"), (0o20000, "bs"), (0o40000, "vt"), (0o100_000, "ff")];
const CSIZE: u32 = 0o60;
const CBAUD: u32 = 0o10017;
const ADDRB: u32 = 0o4_000_000_000;
const CIBAUD: u32 = CBAUD << 16;

/// The bit/s of the codes 0 to 15 and then of those with CBAUDEX (0 is BOTHER: the number is in the speed fields).
const RATES: [u32; 15] = [50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400];
const HIGH_RATES: [u32; 15] = [
    57600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000, 2_000_000, 2_500_000,
    3_000_000, 3_500_000, 4_000_000,
];

/// The names of all set flags, stty-like and in the order of the words; multi-bit fields as `cs8`, `tab3` (zero delays are left
/// out), bits without a name as `iflag+0x80000000`. Speeds are left out: see [`output_rate`].
pub fn names(iflag: u32, oflag: u32, cflag: u32, lflag: u32) -> Vec<String> {
    let mut names = Vec::new();
    push(
        &mut names,
        "iflag",
        iflag,
        Input::from_bits_retain(iflag).iter_names().map(|(name, flag)| (name, flag.bits())),
    );
    let mut rest = oflag;
    for (mask, name) in OUTPUT_FIELDS {
        rest &= !mask;
        let value = (oflag & mask) >> mask.trailing_zeros();
        if value != 0 {
            names.push(format!("{name}{value}"));
        }
    }
    push(
        &mut names,
        "oflag",
        rest,
        Output::from_bits_retain(rest).iter_names().map(|(name, flag)| (name, flag.bits())),
    );
    names.push(format!("cs{}", 5 + ((cflag & CSIZE) >> 4)));
    let rest = cflag & !(CSIZE | CBAUD | CIBAUD | ADDRB);
    push(
        &mut names,
        "cflag",
        rest,
        Control::from_bits_retain(rest).iter_names().map(|(name, flag)| (name, flag.bits())),
    );
    if cflag & ADDRB != 0 {
        names.push("addrb".to_owned());
    }
    push(
        &mut names,
        "lflag",
        lflag,
        Local::from_bits_retain(lflag).iter_names().map(|(name, flag)| (name, flag.bits())),
    );
    names
}

fn push(names: &mut Vec<String>, word: &str, bits: u32, known: impl Iterator<Item = (&'static str, u32)>) {
    let mut rest = bits;
    for (name, bit) in known {
        rest &= !bit;
        names.push(name.to_lowercase());
    }
    if rest != 0 {
        names.push(format!("{word}+{rest:#x}"));
    }
}

/// The output rate in bit/s: of the code in `c_cflag`, or with BOTHER the number beside it. 0 means hang up.
pub fn output_rate(termios: &Termios2) -> u32 {
    rate(termios.c_cflag & CBAUD, termios.c_ospeed).unwrap_or(0)
}

/// The input rate in bit/s; where it has no code of its own it is the output rate.
pub fn input_rate(termios: &Termios2) -> u32 {
    match (termios.c_cflag & CIBAUD) >> 16 {
        0 => output_rate(termios),
        code => rate(code, termios.c_ispeed).unwrap_or(0),
    }
}

fn rate(code: u32, number: u32) -> Option<u32> {
    let low = (code & 0o17) as usize;
    match (code & 0o10000 != 0, low.checked_sub(1)) {
        (true, None) => Some(number),
        (true, Some(index)) => HIGH_RATES.get(index).copied(),
        (false, None) => None,
        (false, Some(index)) => RATES.get(index).copied(),
    }
}

/// A control character as stty(1) writes it: `^C`, `M-^A`, `<undef>` for 0.
pub fn character(byte: u8) -> String {
    match byte {
        0 => "<undef>".to_owned(),
        1..=31 => format!("^{}", char::from(byte + 64)),
        127 => "^?".to_owned(),
        128.. if byte == 128 => "M-^@".to_owned(),
        128.. => format!("M-{}", character(byte - 128)),
        _ => char::from(byte).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_terminal() {
        let got = names(0o2400, 0o5, 0o277, 0o105_073).join(" ");
        assert_eq!(got, "icrnl ixon opost onlcr cs8 cread isig icanon echo echoe echok echoctl echoke iexten");
    }

    #[test]
    fn unknown_bits_are_shown() {
        assert!(names(1 << 31, 0, 0, 0).contains(&"iflag+0x80000000".to_owned()));
        assert!(names(0, 0o14000, 0, 0).contains(&"tab3".to_owned()));
    }

    #[test]
    fn rates() {
        let termios =
            |cflag, speed| Termios2 { c_cflag: cflag, c_ispeed: speed, c_ospeed: speed, ..Termios2::default() };
        assert_eq!(output_rate(&termios(0o17, 38400)), 38400);
        assert_eq!(output_rate(&termios(0o10000, 12345)), 12345);
        assert_eq!(input_rate(&termios(0o10002, 0)), 115_200);
        assert_eq!(output_rate(&termios(0, 0)), 0);
    }

    #[test]
    fn characters() {
        assert_eq!([3, 127, 0, 131, b'x'].map(character), ["^C", "^?", "<undef>", "M-^C", "x"]);
    }
}
