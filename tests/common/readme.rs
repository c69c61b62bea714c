//! The documents and the configuration files of the project.

use std::path::Path;

pub const README: &str = include_str!("../../README.md");

/// Reads a file of the project, by its path from the root.
#[track_caller]
pub fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Reads a file of `scripts/deploy`, with its comments.
#[track_caller]
pub fn deploy_file(name: &str) -> String {
    read(&format!("scripts/deploy/{name}"))
}

/// Reads a configuration file of `scripts/deploy`, without lines that are comments.
#[track_caller]
pub fn configuration(name: &str) -> String {
    let text = deploy_file(name);
    text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with('#')).collect()
}
