//! The program: the command line in, exit codes out.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use log::warn;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use noroshi::config::{Command, Config, DESCRIPTORS_SPARE};
use noroshi::http::Door;
use noroshi::logger::{self, say};
use noroshi::server::Server;

fn main() -> ExitCode {
    let mut config = match Config::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(config)) => config,
        Ok(Command::Help) => return print(&Config::help()),
        Ok(Command::Version) => return print(concat!("noroshi ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            say(format_args!("noroshi: {error}; see --help"));
            return ExitCode::from(2);
        }
    };
    logger::init(config.log);
    config.connections_max = raise_descriptor_limit(config.connections_max);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("noroshi: {error}"));
            ExitCode::from(1)
        }
    }
}

fn serve(config: Config) -> io::Result<()> {
    let mut server = Server::bind(config)?;
    for address in server.addresses(Door::Main) {
        say(format_args!("listening on ws://{address}/ws"));
    }
    for address in server.addresses(Door::Metrics) {
        say(format_args!("metrics on http://{address}/metrics"));
    }
    server.run()
}

/// Raises the limit of open files to what so many connections need, and returns how many it suffices for.
fn raise_descriptor_limit(connections: usize) -> usize {
    let needed = (connections + DESCRIPTORS_SPARE) as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    if soft >= needed {
        return connections;
    }
    // Only root may raise the hard limit.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))
        .map(|()| needed)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard))
        .unwrap_or(soft);
    if raised >= needed {
        return connections;
    }
    let possible = (raised as usize).saturating_sub(DESCRIPTORS_SPARE).max(1);
    warn!(
        "the limit of open files is {raised}: --max-connections is {possible} instead of {connections}"
    );
    possible
}

fn print(text: &str) -> ExitCode {
    // Whoever closes the pipe has read enough.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
