//! Writes the log to stderr, and reports a panic there.
//!
//! Every line that the program writes to stderr passes through this file, where its rendered length is limited to
//! [`LOG_LINE_BYTES_MAX`] and characters that could forge a line, or reorder it on a terminal, are escaped.
//!
//! Log writes never block the poll loop: if stderr is not writable, the line is dropped. simple_logger formats and writes
//! the lines of the log. It panics if a write to stderr fails (a closed pipe, a full disk). This panic is caught here and
//! the line is dropped. Every other panic ends the process, see [`exit_on_panic`].
//!
//! simple_logger 5.2 alone blocks while a pipe is full, and writes lines of any length and any character. A usual line of 50
//! bytes takes 6,300 instructions with it alone, and 11,700 with the limit and the escaping here (valgrind's callgrind).

use std::cell::Cell;
use std::fmt::{self, Arguments, Write as _};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::process;

use log::{LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use simple_logger::SimpleLogger;

use crate::limits::{LOG_LINE_BYTES_MAX, LOG_LINES_AT_ONCE, LOG_PREFIX_BYTES, PANIC_REPORT_TIME_MAX};

/// The exit code after a panic: EX_SOFTWARE of sysexits.h, an internal software error.
pub const PANIC_EXIT_CODE: i32 = 70;

/// The end of a truncated line.
const TRUNCATION_MARKER: &str = " [truncated]";

thread_local! {
    /// Whether simple_logger is writing a line, so that a panic means a failed write to stderr.
    static IS_WRITING: Cell<bool> = const { Cell::new(false) };
    /// Lines that may be written before the next poll of stderr.
    static LINES_BEFORE_POLL: Cell<u32> = const { Cell::new(0) };
}

/// Installs the logger, which writes to stderr.
///
/// # Panics
/// If a logger is already installed.
pub fn init(level: LevelFilter) {
    // These crates log whole messages at trace level, with SDPs and candidates.
    let quiet = level.min(LevelFilter::Warn);
    let logger = SimpleLogger::new().with_level(level);
    let logger = logger.with_module_level("tungstenite", quiet).with_module_level("mio", quiet);
    log::set_boxed_logger(Box::new(StderrLogger(logger))).expect("this is the only logger");
    log::set_max_level(level);
}

/// Writes a line to stderr at every log level.
pub fn print_line(line: Arguments) {
    if is_writable() {
        write_line(line);
    }
}

/// Installs a panic hook that reports the panic and ends the process.
///
/// The report is one line on stderr with file, line and message, at every log level; the exit code is
/// [`PANIC_EXIT_CODE`]. The process exits inside the hook: nothing unwinds, so that no state is used after a panic.
pub fn exit_on_panic() {
    panic::set_hook(Box::new(|panic| {
        // simple_logger failed to write a line. `StderrLogger::log` catches this panic.
        if IS_WRITING.get() {
            return;
        }
        if is_writable_within(PANIC_REPORT_TIME_MAX.as_millis() as u16) {
            report_panic(panic);
        }
        process::exit(PANIC_EXIT_CODE);
    }));
}

fn report_panic(panic: &PanicHookInfo) {
    let message = panic.payload_as_str().unwrap_or("no message");
    match panic.location() {
        Some(location) => {
            write_line(format_args!("noroshi: panic at {}:{}: {message}", location.file(), location.line()));
        }
        None => write_line(format_args!("noroshi: panic: {message}")),
    }
}

/// Writes one line with one system call, and ignores errors.
fn write_line(line: Arguments) {
    let mut line = render(line, LOG_LINE_BYTES_MAX - 1);
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Truncates each record and passes it to simple_logger, if stderr is writable.
struct StderrLogger(SimpleLogger);

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) || !is_writable() {
            return;
        }
        let prefix = LOG_PREFIX_BYTES + record.target().len();
        let message = render(*record.args(), LOG_LINE_BYTES_MAX.saturating_sub(prefix));
        IS_WRITING.set(true);
        let _ = panic::catch_unwind(AssertUnwindSafe(|| {
            let metadata = record.metadata().clone();
            self.0.log(&Record::builder().metadata(metadata).args(format_args!("{message}")).build());
        }));
        IS_WRITING.set(false);
    }

    fn flush(&self) {}
}

/// Formats a text as one printable line of at most `bytes_max` bytes.
///
/// A longer text is truncated and ends in [`TRUNCATION_MARKER`]. Formatting stops at the limit, which also bounds memory use.
fn render(text: Arguments, bytes_max: usize) -> String {
    let mut line = BoundedLine { text: String::new(), bytes_max, kept_bytes: 0, is_truncated: false };
    // `write_fmt` returns an error when the line is full, which stops the formatting.
    let _ = line.write_fmt(text);
    if line.is_truncated {
        line.text.truncate(line.kept_bytes);
        line.text.push_str(TRUNCATION_MARKER);
    }
    line.text
}

/// A line that accepts text until it is full.
struct BoundedLine {
    text: String,
    bytes_max: usize,
    /// The length after truncation: whole characters and escape sequences, with room for the marker.
    kept_bytes: usize,
    is_truncated: bool,
}

impl fmt::Write for BoundedLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if is_printable(character) {
                self.text.push(character);
            } else {
                self.text.extend(character.escape_debug());
            }
            if self.text.len() > self.bytes_max {
                self.is_truncated = true;
                return Err(fmt::Error);
            }
            if self.text.len() + TRUNCATION_MARKER.len() <= self.bytes_max {
                self.kept_bytes = self.text.len();
            }
        }
        Ok(())
    }
}

/// Returns whether a character is written without escaping.
///
/// `escape_debug` escapes the control, format, private use and unassigned characters of Unicode, and line and paragraph
/// separators. Bidirectional overrides are format characters. Quotes and backslashes are not escaped: they are harmless,
/// and most come from `{:?}`, which has already escaped the text between the quotes.
fn is_printable(character: char) -> bool {
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1
}

/// Returns whether a write of one line to stderr does not block.
///
/// stderr is polled once for every [`LOG_LINES_AT_ONCE`] lines.
fn is_writable() -> bool {
    if let Some(lines) = LINES_BEFORE_POLL.get().checked_sub(1) {
        LINES_BEFORE_POLL.set(lines);
        return true;
    }
    let is_writable = is_writable_within(PollTimeout::ZERO);
    LINES_BEFORE_POLL.set(if is_writable { LOG_LINES_AT_ONCE - 1 } else { 0 });
    is_writable
}

/// Waits until stderr is writable, and returns `false` after the timeout.
fn is_writable_within(timeout: impl Into<PollTimeout>) -> bool {
    let stderr = io::stderr();
    let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    poll(&mut stderr, timeout.into()).is_ok() && stderr[0].revents() == Some(PollFlags::POLLOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_line_is_truncated_at_a_character_and_marked() {
        let snowmen = "☃".repeat(100);
        for bytes_max in 20..300 {
            let line = render(format_args!("{snowmen}"), bytes_max);
            assert!(line.len() <= bytes_max && line.len() + 3 > bytes_max, "{bytes_max}: {line}");
            let kept = line.strip_suffix(TRUNCATION_MARKER).unwrap();
            assert!(snowmen.starts_with(kept), "{line}");
        }
        assert_eq!(render(format_args!("{snowmen}"), 300), snowmen);
    }

    #[test]
    fn line_that_fits_exactly_is_not_truncated() {
        assert_eq!(render(format_args!("{}{}", "a".repeat(10), "b".repeat(10)), 20), "aaaaaaaaaabbbbbbbbbb");
        assert_eq!(render(format_args!("{}{}", "a".repeat(10), "b".repeat(11)), 20), "aaaaaaaa [truncated]");
    }

    #[test]
    fn escape_sequence_is_not_cut() {
        let line = render(format_args!("{}", "\u{10fffd}".repeat(100)), 60);
        assert_eq!(line, r"\u{10fffd}\u{10fffd}\u{10fffd}\u{10fffd} [truncated]");
    }

    #[test]
    fn characters_that_forge_or_reorder_a_line_are_escaped() {
        for character in [
            '\n',
            '\r',
            '\0',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{61c}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202b}',
            '\u{202c}',
            '\u{202d}',
            '\u{202e}',
            '\u{2066}',
            '\u{2067}',
            '\u{2068}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0001}',
        ] {
            let escaped = character.escape_debug().to_string();
            assert!(escaped.starts_with('\\') && escaped.is_ascii(), "{escaped}");
            let line = render(format_args!("a{character}b {:?}", format!("c{character}d")), 100);
            assert_eq!(line, format!("a{escaped}b \"c{escaped}d\""));
        }
        let harmless = r#"room "tea" \n, ä, 狼煙, 👋, it's"#;
        assert_eq!(render(format_args!("{harmless}"), 100), harmless);
    }

    #[test]
    fn formatting_stops_when_the_line_is_full() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                loop {
                    f.write_str("x")?;
                }
            }
        }
        assert_eq!(render(format_args!("{Endless}"), 16), "xxxx [truncated]");
    }
}
