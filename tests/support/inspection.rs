//! What `ptyagent inspect --json` says of a live tree, to compare before and after.

use serde_json::Value;

use super::{patiently, report};

/// The whole report, one value to a line behind its path. Nothing in it may change by a restore.
pub fn inspection(root: i32) -> Vec<String> {
    let output = patiently(&["inspect", "--json", &root.to_string()]);
    assert!(output.status.success(), "inspect: {}", report(&output));
    let mut lines = Vec::new();
    flatten("", &serde_json::from_slice(&output.stdout).unwrap(), &mut lines);
    lines
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, lines);
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{at}]"), value, lines);
            }
        }
        value => lines.push(format!("inspect {path} {value}")),
    }
}
