//! A load generator for signaling servers that speak the article's protocol, Ayame's or matchbox's.
//!
//! It runs on one thread over mio and implements WebSocket framing itself. Frames are masked with the key 0, which leaves
//! the payload unchanged, and replies are searched instead of parsed, so that it needs less CPU than the server that it
//! measures. In the article's protocol it uses only messages that the article's server knows too, and rooms in mode `call`
//! unless `--one-room` is given.

mod calls;
mod connect;
mod dialects;
mod flags;
mod modes;
mod net;
mod relay;
mod report;
mod room_calls;
mod target;
mod test;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use flags::{Flags, ModeKind, USAGE};
use report::{Report, json, table};
use target::Target;
use test::Test;

/// Time for which one of two servers is measured before the other one (`--versus`).
const SLICE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let flags = match Flags::parse() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("load: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(&flags) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> io::Result<bool> {
    let mut targets = vec![Target::new(flags.url.as_deref(), flags.pid, flags.dialect)?];
    if let Some(url) = &flags.versus {
        targets.push(Target::new(Some(url), flags.pid2, flags.dialect)?);
    }
    let mut tests = Vec::new();
    for target in targets {
        tests.push(Test::new(target, flags)?);
    }
    let shows_progress = io::stderr().is_terminal();
    let end = Duration::from_secs_f64(flags.seconds);
    if flags.mode != ModeKind::Idle {
        let slice = if tests.len() == 1 { end / 10 } else { SLICE.min(end) };
        while tests[0].active < end {
            for test in &mut tests {
                // A single server is measured without interruption.
                test.run_slice(slice, flags.versus.is_some())?;
            }
            if shows_progress {
                let done = tests[0].active.as_secs_f64().min(flags.seconds);
                eprint!(
                    "\r{done:.1} of {:.1} s, {} {} ",
                    flags.seconds,
                    tests[0].mode.units(),
                    flags.mode.unit()
                );
            }
        }
        for test in tests.iter_mut().filter(|test| test.is_running) {
            test.run_slice(Duration::ZERO, true)?;
        }
        if shows_progress {
            eprint!("\r\x1b[K");
        }
    }
    let reports = tests.into_iter().map(|test| test.finish(flags)).collect::<io::Result<Vec<_>>>()?;
    let all_ok = reports.iter().all(Report::is_ok);
    if flags.json {
        println!("{}", json(&reports, flags));
    } else {
        table(&reports, flags);
    }
    Ok(all_ok)
}
