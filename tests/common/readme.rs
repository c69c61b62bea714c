//! The documents and the configuration files of the project.

use super::files::project_root;

/// Reads a file of the project, by its path from the root.
#[track_caller]
pub fn read(path: &str) -> String {
    let file = project_root().join(path);
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

/// The documents whose links are checked, by their paths from the root.
pub const DOCUMENTS: [&str; 12] = [
    "README.md",
    "scripts/CHANGELOG.md",
    "scripts/README.md",
    "scripts/deploy/README.md",
    "scripts/deploy/camera/README.md",
    "src/README.md",
    "src/protocols/README.md",
    "src/protocols/noroshi/PROTOCOL.md",
    "src/web/README.md",
    "tests/README.md",
    "tests/fuzz/README.md",
    "tests/transcripts/README.md",
];

/// Returns the text of a section, from its heading to the next heading of the same level or above.
#[track_caller]
pub fn section(document: &str, heading: &str) -> String {
    let text = read(document);
    let level = heading.split(' ').next().unwrap().len();
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "{document} has no heading {heading:?}");
    let is_end = |line: &&str| {
        let marks = line.len() - line.trim_start_matches('#').len();
        (1..=level).contains(&marks) && line[marks..].starts_with(' ')
    };
    lines.take_while(|line| !is_end(line)).map(|line| format!("{line}\n")).collect()
}
