//! Progress on a terminal: one line on stderr, which is overwritten.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use crate::test::Test;

/// The shortest time between two updates.
const UPDATE_EVERY: Duration = Duration::from_millis(200);

pub struct Progress {
    is_terminal: bool,
    shown_at: Option<Instant>,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { is_terminal: stderr().is_terminal(), shown_at: None }
    }

    /// Shows how many connections are registered before the measurement.
    pub fn show_registered(&mut self, registered: u64, total: usize) {
        self.show(|| format!("{registered} of {total} connections"));
    }

    /// Shows the time, the rate so far, and the errors of each server.
    pub fn show_tests(&mut self, tests: &mut [Test], unit: &str, seconds: f64) {
        self.show(|| {
            let done = tests[0].active.as_secs_f64().min(seconds);
            let servers = tests.iter_mut().map(|test| {
                let rate = test.mode.units() as f64 / test.active.as_secs_f64().max(1e-9);
                format!("{rate:.0} {unit}/s, {} errors", test.mode.results().failures())
            });
            format!("{done:.1} of {seconds:.1} s: {}", servers.collect::<Vec<_>>().join("; "))
        });
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        if self.is_terminal && self.shown_at.is_none_or(|at| at.elapsed() >= UPDATE_EVERY) {
            self.shown_at = Some(Instant::now());
            eprint!("\r{}\x1b[K", line());
        }
    }

    /// Removes the line.
    pub fn clear(&self) {
        if self.shown_at.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
