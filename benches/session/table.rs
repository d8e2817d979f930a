//! Samples, and how they are shown.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::tool::Sample;

/// Subject, place of the images, step, tool.
pub type Key = (&'static str, &'static str, &'static str, &'static str);

#[derive(Default)]
pub struct Results(Vec<(Key, Vec<Sample>)>);

/// Milliseconds.
#[derive(Debug, Clone, Copy)]
struct Spread {
    least: f64,
    median: f64,
}

impl Spread {
    fn of(times: impl Iterator<Item = Duration>) -> Option<Spread> {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Some(Spread { least: *times.first()?, median: *times.get(times.len() / 2)? })
    }

    /// Ours to that of the other.
    fn over(self, other: Spread) -> Spread {
        Spread { least: self.least / other.least, median: self.median / other.median }
    }

    fn to_json(self) -> Value {
        json!({ "min": self.least, "median": self.median })
    }
}

fn wall(samples: &[Sample]) -> Option<Spread> {
    Spread::of(samples.iter().map(|sample| sample.wall))
}

fn frozen(samples: &[Sample]) -> Option<Spread> {
    Spread::of(samples.iter().filter_map(|sample| sample.frozen))
}

fn peak_kib(samples: &[Sample]) -> Option<u64> {
    samples.iter().filter_map(|sample| sample.peak_kib).max()
}

/// Ours over theirs, of wall and frozen time.
struct Ratio {
    wall: Option<Spread>,
    frozen: Option<Spread>,
}

impl Results {
    pub fn add(&mut self, key: Key, sample: Sample) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((key, vec![sample])),
        }
    }

    fn samples(&self, key: Key) -> Option<&[Sample]> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, samples)| samples.as_slice())
    }

    /// For a row of ours that has a peer.
    fn ratio(&self, (subject, place, step, tool): Key) -> Option<Ratio> {
        if tool != "ptyagent" {
            return None;
        }
        let ours = self.samples((subject, place, step, tool))?;
        let theirs = self.samples((subject, place, step, "criu"))?;
        let over = |ours: Option<Spread>, theirs: Option<Spread>| Some(ours?.over(theirs?));
        Some(Ratio { wall: over(wall(ours), wall(theirs)), frozen: over(frozen(ours), frozen(theirs)) })
    }

    /// Rows of one step together, in the order in which they came.
    fn rows(&self) -> Vec<&(Key, Vec<Sample>)> {
        let place = |(subject, place, step, _): Key| {
            self.0.iter().position(|((one, two, three, _), _)| (*one, *two, *three) == (subject, place, step))
        };
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|(key, _)| place(*key));
        rows
    }

    pub fn to_json(&self) -> Value {
        let spread = |spread: Option<Spread>| spread.map(Spread::to_json);
        let row = |(key, samples): &(Key, Vec<Sample>)| {
            let (subject, place, step, tool) = *key;
            let ratio = self.ratio(*key);
            json!({
                "subject": subject, "place": place, "step": step, "tool": tool, "rounds": samples.len(),
                "wall_ms": spread(wall(samples)), "frozen_ms": spread(frozen(samples)),
                "controller_peak_kib": peak_kib(samples),
                "wall_ratio": spread(ratio.as_ref().and_then(|ratio| ratio.wall)),
                "frozen_ratio": spread(ratio.as_ref().and_then(|ratio| ratio.frozen)),
            })
        };
        Value::Array(self.rows().into_iter().map(row).collect())
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<9} {:<20} {:<9} {:>6} {:>17} {:>17} {:>9}",
            "subject", "images in", "step", "program", "rounds", "wall ms min/med", "frozen ms min/med", "peak MiB"
        )?;
        let text = |spread: Option<Spread>| match spread {
            Some(spread) => format!("{:.2} / {:.2}", spread.least, spread.median),
            None => "-".into(),
        };
        let mut ratios = None;
        for (key, samples) in self.rows() {
            let (subject, place, step, tool) = *key;
            let peak = peak_kib(samples).map_or("-".into(), |kib| format!("{:.1}", kib as f64 / 1024.0));
            let (wall, frozen) = (text(wall(samples)), text(frozen(samples)));
            let rounds = samples.len();
            writeln!(f, "{subject:<14} {place:<9} {step:<20} {tool:<9} {rounds:>6} {wall:>17} {frozen:>17} {peak:>9}")?;
            ratios = self.ratio(*key).or(ratios);
            if let Some(Ratio { wall, frozen }) = ratios.take_if(|_| tool == "criu") {
                let (wall, frozen) = (text(wall), text(frozen));
                writeln!(f, "{:<45} {:<9} {:>6} {wall:>17} {frozen:>17}", "", "ratio", "")?;
            }
        }
        Ok(())
    }
}
