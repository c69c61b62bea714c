//! A load generator for signaling servers that speak the article's protocol: noroshi or any other.
//!
//! One thread over mio, with framing of its own: frames are masked with the key 0, which leaves the payload as it
//! is, and replies are searched instead of parsed. So it costs less than the server it measures. It uses only
//! what the article's program knows too, and rooms in `call` unless told not to.

mod calls;
mod connect;
mod flags;
mod modes;
mod net;
mod relay;
mod report;
mod target;
mod test;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use flags::{Flags, Kind, USAGE};
use report::{Report, json, table};
use target::Target;
use test::Test;

/// With `--versus` the servers take turns of this length.
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
    let mut servers = vec![Target::new(flags.url.as_deref(), flags.pid)?];
    if let Some(url) = &flags.versus {
        servers.push(Target::new(Some(url), flags.pid2)?);
    }
    let mut tests = Vec::new();
    for server in servers {
        tests.push(Test::new(server, flags)?);
    }
    let progress = io::stderr().is_terminal();
    let end = Duration::from_secs_f64(flags.seconds);
    if flags.mode != Kind::Idle {
        let slice = if tests.len() == 1 { end / 10 } else { SLICE.min(end) };
        while tests[0].active < end {
            for test in &mut tests {
                // A single server is not interrupted.
                test.slice(slice, flags.versus.is_some())?;
            }
            if progress {
                let done = tests[0].active.as_secs_f64().min(flags.seconds);
                eprint!(
                    "\r{done:.1} of {:.1} s, {} {} ",
                    flags.seconds,
                    tests[0].mode.units(),
                    flags.mode.names().1
                );
            }
        }
        for test in tests.iter_mut().filter(|test| test.running) {
            test.slice(Duration::ZERO, true)?;
        }
        if progress {
            eprint!("\r\x1b[K");
        }
    }
    let reports = tests.into_iter().map(|test| test.finish(flags)).collect::<io::Result<Vec<_>>>()?;
    let fine = reports.iter().all(Report::is_fine);
    if flags.json {
        println!("{}", json(&reports, flags));
    } else {
        table(&reports, flags);
    }
    Ok(fine)
}
