//! One bash session, dumped and restored a hundred times in a row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Holder, PATIENCE, TempDir, assert_same_lines, dump, ps_line, restore, serial, shown, with_timeout};

const LIMIT: Duration = Duration::from_secs(300);
const ROUNDS: usize = 100;

#[test]
fn a_hundred_rounds_of_one_session() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::bash();
        holder.type_keys("count=0; cd /usr\r");
        holder.wait_for_text("count=0; cd /usr\n$");
        let pids = [holder.pid(), holder.leader()];
        let (ps, mut sizes) = (ps_line(&pids), Vec::new());
        let start = Instant::now();
        for round in 1..=ROUNDS {
            let images = dir.join("images");
            dump(holder.pid(), &images);
            restore(&images);
            sizes.push(fs::read_dir(&images).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>());
            fs::remove_dir_all(&images).unwrap();
            let seen = holder.output().len();
            holder.type_keys("((++count)); echo \"<$count>\"\r");
            let answer = format!("<{round}>\r\n");
            holder.wait_for_new_output(seen, &answer);
            assert_eq!(ps_line(&pids), ps, "in round {round}");
            if round == 1 {
                holder.type_keys("clear\r");
            }
        }
        let took = start.elapsed();
        println!("{ROUNDS} rounds in {took:?}, images of {} to {} bytes", sizes[0], sizes[ROUNDS - 1]);
        holder.type_keys("clear; echo $count in $PWD\r");
        holder.wait_for_text("100 in /usr");
        holder.type_keys("exit $count\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(100));
    });
}

/// The session's maps, descriptors and signals after many rounds are those after one.
#[test]
fn rounds_leave_nothing_behind() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::bash();
        let pids = [holder.pid(), holder.leader()];
        let before = pids.map(shown);
        for round in 1..=20 {
            dump(holder.pid(), &dir.join("images"));
            restore(&dir.join("images"));
            fs::remove_dir_all(dir.join("images")).unwrap();
            for (pid, before) in pids.iter().zip(&before) {
                assert_same_lines(before, &shown(*pid), &format!("process {pid} after {round} rounds"));
            }
        }
    });
}
