//! simple_logger, made safe for a server.
//!
//! It writes with `eprintln!`, which panics when stderr cannot be written (a closed pipe, a full disk) and blocks
//! while a pipe is full. A log is not worth a server: such lines are lost instead.

use std::cell::Cell;
use std::fmt::Arguments;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};

use log::{LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use simple_logger::SimpleLogger;

use crate::limits::LOG_LINES_AT_ONCE;

thread_local! {
    static WRITING: Cell<bool> = const { Cell::new(false) };
    /// How many lines stderr takes before it is to be asked again.
    static LINES: Cell<u32> = const { Cell::new(0) };
}

struct Careful(SimpleLogger);

/// Logs to stderr from now on.
///
/// # Panics
/// If a logger is there already.
pub fn init(level: LevelFilter) {
    // These trace whole messages, SDPs and candidates included.
    let quiet = level.min(LevelFilter::Warn);
    let logger = SimpleLogger::new().with_level(level);
    let logger = logger.with_module_level("tungstenite", quiet).with_module_level("mio", quiet);
    log::set_boxed_logger(Box::new(Careful(logger))).expect("this is the only logger");
    log::set_max_level(level);
    // The panic of a failed line is caught below, and nobody wants to read of it.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !WRITING.get() {
            report(panic);
        }
    }));
}

/// Writes a line to stderr, whatever the level.
pub fn say(line: Arguments) {
    if is_writable() {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

impl Log for Careful {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) && is_writable() {
            WRITING.set(true);
            let _ = panic::catch_unwind(AssertUnwindSafe(|| self.0.log(record)));
            WRITING.set(false);
        }
    }

    fn flush(&self) {}
}

/// Whether stderr takes a line at once. It is asked only now and then, see [`LOG_LINES_AT_ONCE`].
fn is_writable() -> bool {
    if let Some(lines) = LINES.get().checked_sub(1) {
        LINES.set(lines);
        return true;
    }
    let stderr = io::stderr();
    let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let is_writable =
        poll(&mut stderr, PollTimeout::ZERO).is_ok() && stderr[0].revents() == Some(PollFlags::POLLOUT);
    LINES.set(if is_writable { LOG_LINES_AT_ONCE - 1 } else { 0 });
    is_writable
}
