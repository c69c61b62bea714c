//! The README's code blocks.

pub const README: &str = include_str!("../../README.md");

/// Returns the only indented block that contains this line, without its indentation.
#[track_caller]
pub fn block(line: &str) -> String {
    let mut blocks = Vec::new();
    let mut block = String::new();
    for text in README.lines().chain(["end"]) {
        match text.strip_prefix("    ") {
            Some(code) => block += &format!("{code}\n"),
            None if text.is_empty() && !block.is_empty() => block.push('\n'),
            None => blocks.push(std::mem::take(&mut block)),
        }
    }
    let mut found = blocks.into_iter().filter(|block| block.lines().any(|it| it.trim() == line));
    let block = found.next().unwrap_or_else(|| panic!("no block of the README has {line}"));
    assert!(found.next().is_none(), "{line} stands in two blocks");
    block
}
