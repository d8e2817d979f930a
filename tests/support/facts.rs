//! Comparing facts, one to a line.

/// What differs between two lists, one text for each line; short enough to read.
pub fn differences(what: &str, before: &[String], after: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    if before.len() != after.len() {
        found.push(format!("  {what}: {} lines became {}", before.len(), after.len()));
    }
    let differ = before.iter().zip(after).filter(|(before, after)| before != after);
    found.extend(differ.map(|(before, after)| {
        format!("  {what}:\n    {}\n    {}", shortened(before, after), shortened(after, before))
    }));
    found
}

/// The words of a line that the other has not, with the first three to say where; of a long one what surrounds the first difference.
fn shortened(line: &str, other: &str) -> String {
    const MOST: usize = 300;
    let words: Vec<&str> = line.split(' ').collect();
    let text = if words.len() < 6 || words.len() != other.split(' ').count() {
        line.to_owned()
    } else {
        let differ = words.iter().zip(other.split(' ')).enumerate().filter(|(at, (a, b))| *at < 3 || **a != *b);
        differ.map(|(_, (word, _))| *word).collect::<Vec<_>>().join(" ")
    };
    if text.len() <= MOST {
        return text;
    }
    let same = line.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let (start, around): (String, String) =
        (line.chars().take(60).collect(), line.chars().skip(same.saturating_sub(40)).take(MOST).collect());
    format!("{start} ... [{same} of {}] {around}", line.len())
}
