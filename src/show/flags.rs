//! Flag words by name. The numbers are Linux's on x86-64 (asm-generic/termbits.h, fcntl.h); the names of terminal flags are
//! those of stty(1). A bit without a name is shown as a number, so that nothing is hidden.

pub type Table = [(u32, &'static str)];

pub const IFLAG: &Table = &[
    (0o1, "ignbrk"),
    (0o2, "brkint"),
    (0o4, "ignpar"),
    (0o10, "parmrk"),
    (0o20, "inpck"),
    (0o40, "istrip"),
    (0o100, "inlcr"),
    (0o200, "igncr"),
    (0o400, "icrnl"),
    (0o1000, "iuclc"),
    (0o2000, "ixon"),
    (0o4000, "ixany"),
    (0o10000, "ixoff"),
    (0o20000, "imaxbel"),
    (0o40000, "iutf8"),
];

pub const OFLAG: &Table = &[
    (0o1, "opost"),
    (0o2, "olcuc"),
    (0o4, "onlcr"),
    (0o10, "ocrnl"),
    (0o20, "onocr"),
    (0o40, "onlret"),
    (0o100, "ofill"),
    (0o200, "ofdel"),
];

/// Delays: a mask, the place of its lowest bit, and the letters that stty puts before the value.
pub const DELAYS: &[(u32, u32, &str)] = &[
    (0o400, 8, "nl"),
    (0o3000, 9, "cr"),
    (0o14000, 11, "tab"),
    (0o20000, 13, "bs"),
    (0o40000, 14, "vt"),
    (0o100000, 15, "ff"),
];

pub const CFLAG: &Table = &[
    (0o100, "cstopb"),
    (0o200, "cread"),
    (0o400, "parenb"),
    (0o1000, "parodd"),
    (0o2000, "hupcl"),
    (0o4000, "clocal"),
    (0o4000000000, "addrb"),
    (0o10000000000, "cmspar"),
    (0o20000000000, "crtscts"),
];

/// Of c_cflag: the character size, and both speeds, which are shown as numbers.
pub const CSIZE: u32 = 0o60;
pub const CBAUD: u32 = 0o10017;
pub const CIBAUD: u32 = CBAUD << 16;

pub const LFLAG: &Table = &[
    (0o1, "isig"),
    (0o2, "icanon"),
    (0o4, "xcase"),
    (0o10, "echo"),
    (0o20, "echoe"),
    (0o40, "echok"),
    (0o100, "echonl"),
    (0o200, "noflsh"),
    (0o400, "tostop"),
    (0o1000, "echoctl"),
    (0o2000, "echoprt"),
    (0o4000, "echoke"),
    (0o10000, "flusho"),
    (0o40000, "pendin"),
    (0o100000, "iexten"),
    (0o200000, "extproc"),
];

/// Status bits of packet mode.
pub const PACKET: &Table = &[
    (1, "flushread"),
    (2, "flushwrite"),
    (4, "stop"),
    (8, "start"),
    (0x10, "nostop"),
    (0x20, "dostop"),
    (0x40, "ioctl"),
];

/// F_GETFL without the access mode.
const OPEN: &Table = &[
    (0o2000, "append"),
    (0o4000, "nonblock"),
    (0o20000, "async"),
    (0o40000, "direct"),
    (0o200000, "directory"),
    (0o400000, "nofollow"),
    (0o1000000, "noatime"),
    (0o4010000, "sync"),
    (0o10000, "dsync"),
    (0o10000000, "path"),
    (0o20200000, "tmpfile"),
];

/// O_LARGEFILE says nothing on a 64-bit machine.
const O_LARGEFILE: u32 = 0o100000;

/// The names of c_cc, in order; min and time are numbers.
pub const CONTROL: [&str; 19] = [
    "intr", "quit", "erase", "kill", "eof", "time", "min", "swtch", "start", "stop", "susp", "eol", "rprnt", "discard",
    "werase", "lnext", "eol2", "cc17", "cc18",
];

/// The names of the bits that are set, then the rest as one number.
pub fn names(table: &Table, mut word: u32) -> Vec<String> {
    let mut names = Vec::new();
    for &(bits, name) in table {
        if word & bits == bits {
            names.push(name.to_owned());
            word &= !bits;
        }
    }
    if word != 0 {
        names.push(format!("{word:#x}"));
    }
    names
}

/// "r", "w", "rw" or "-", then the names of the flags.
pub fn open(flags: u32) -> (&'static str, Vec<String>) {
    let access = ["r", "w", "rw", "-"][(flags & 3) as usize];
    (access, names(OPEN, flags & !3 & !O_LARGEFILE))
}

/// A control character as stty shows it: ^C, ^?, M-^A; 0 is undef.
pub fn control(byte: u8) -> String {
    match byte {
        0 => "undef".to_owned(),
        0x80.. => format!("M-{}", if byte == 0x80 { "^@".to_owned() } else { control(byte & 0x7f) }),
        0x7f => "^?".to_owned(),
        1..0x20 => format!("^{}", char::from(byte + 0x40)),
        _ => char::from(byte).to_string(),
    }
}

/// The speed in bits per second of a CBAUD code; None for the code that says "see c_ospeed".
pub fn speed(code: u32) -> Option<u32> {
    const LOW: [u32; 16] = [0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400];
    const HIGH: [u32; 15] = [
        57_600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000, 2_000_000,
        2_500_000, 3_000_000, 3_500_000, 4_000_000,
    ];
    match code & CBAUD {
        code @ 0..=0o17 => LOW.get(code as usize).copied(),
        code => HIGH.get((code & 0o17).checked_sub(1)? as usize).copied(),
    }
}

/// A signal by name, or by number where it has none.
pub fn signal(number: u32) -> String {
    let known = i32::try_from(number).ok().and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
    known.map_or(format!("signal {number}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_shown() {
        assert_eq!(names(LFLAG, 0o11 | 1 << 30), ["isig", "echo", "0x40000000"]);
        assert_eq!(open(0o104402), ("rw", vec!["nonblock".into(), "0x100".into()]));
        assert_eq!(open(0o4010001).1, ["sync"]);
    }

    #[test]
    fn control_characters_and_speeds() {
        assert_eq!(
            [0, 3, 0x7f, b'a', 0x80, 0x83, 0xff].map(control),
            ["undef", "^C", "^?", "a", "M-^@", "M-^C", "M-^?"]
        );
        assert_eq!([0o15, 0o17, 0o10001, 0o10002].map(speed), [Some(9600), Some(38400), Some(57600), Some(115200)]);
        assert_eq!(speed(0o10000), None);
    }
}
