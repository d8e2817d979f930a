//! Programs that are dumped on one machine and restored on another: each half of their run is a run of this binary.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::{Holder, serial, with_timeout};
use crate::{LIMIT, Program, ROUNDS, Seen, all, dump_round, restore_round, start, work};

/// Not a test by itself: runs the programs with the text of `PROGRAMS` in their names. With `PROGRAMS_LEAVE=file` they are begun, dumped and left so; the file
/// gets their names and folders, which have to be on the other machine at the same paths. There `PROGRAMS_TAKE=file` restores them.
#[test]
#[ignore = "half of a run on two machines"]
fn half() {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let wanted = std::env::var("PROGRAMS").unwrap_or_default();
    let programs: Vec<Program> = all().into_iter().filter(|program| program.name.contains(&wanted)).collect();
    assert!(!programs.is_empty(), "no program is called {wanted}");
    for program in programs {
        let (leave, take) = (path("PROGRAMS_LEAVE"), path("PROGRAMS_TAKE"));
        let _serial = serial();
        with_timeout(LIMIT, move || match (leave, take) {
            (Some(list), None) => begin(&program, &list),
            (None, Some(list)) => go_on(&program, &list),
            _ => panic!("one of PROGRAMS_LEAVE and PROGRAMS_TAKE has to be set"),
        });
    }
}

fn begin(program: &Program, list: &Path) {
    let holder = start(program);
    if let Some(before) = dump_round(program, &holder, 1) {
        fs::write(holder.dir().join("places"), before.places).unwrap();
        fs::write(holder.dir().join("screen"), before.screen).unwrap();
    }
    let mut list = File::options().create(true).append(true).open(list).unwrap();
    writeln!(list, "{}\t{}", program.name, holder.dir().display()).unwrap();
    // Its folder stays.
    std::mem::forget(holder);
}

fn go_on(program: &Program, list: &Path) {
    let list = fs::read_to_string(list).unwrap();
    let left = list.lines().find_map(|line| line.strip_prefix(program.name)?.strip_prefix('\t'));
    let holder = Holder::left_in(Path::new(left.expect("it was not left")));
    let read = |name: &str| fs::read_to_string(holder.dir().join(name)).ok();
    let before = read("places").zip(read("screen")).map(|(places, screen)| Seen { places, screen });
    restore_round(program, &holder, 1, before);
    // What came from the other machine is carried on here as well.
    let before = dump_round(program, &holder, 2);
    restore_round(program, &holder, 2, before);
    for round in 3..=ROUNDS {
        (program.go_on)(&holder, &work(&holder), round);
    }
    (program.end)(&holder, &work(&holder));
}
