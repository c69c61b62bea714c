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
mod plot;
mod progress;
mod relay;
mod report;
mod room_calls;
mod target;
mod test;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use flags::{Flags, ModeKind, USAGE};
use progress::Progress;
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
    let mut progress = Progress::new();
    let mut tests = Vec::new();
    for target in targets {
        tests.push(Test::new(target, flags, &mut progress)?);
    }
    let end = Duration::from_secs_f64(flags.seconds);
    if flags.mode != ModeKind::Idle {
        let slice = SLICE.min(end / if tests.len() == 1 { 10 } else { 1 });
        while tests[0].active < end {
            for test in &mut tests {
                // A single server is measured without interruption.
                test.run_slice(slice, flags.versus.is_some())?;
            }
            progress.show_tests(&mut tests, flags.mode.unit(), flags.seconds);
        }
        for test in tests.iter_mut().filter(|test| test.is_running) {
            test.run_slice(Duration::ZERO, true)?;
        }
    }
    progress.clear();
    let reports = tests.into_iter().map(|test| test.finish(flags)).collect::<io::Result<Vec<_>>>()?;
    if let Some(path) = &flags.plot {
        plot::draw(path, &reports, flags)?;
    }
    let all_ok = reports.iter().all(Report::is_ok);
    if flags.json {
        println!("{}", json(&reports, flags));
    } else {
        table(&reports, flags);
    }
    Ok(all_ok)
}
