//! The entry point: reads the command line, runs the command, and returns its exit code.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{info, warn};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use noroshi::config::{Command, Config, HealthCheck, ListenAddress, Size, TokenRequest, read_token_secrets};
use noroshi::health;
use noroshi::http::ListenerKind;
use noroshi::http::token::Claims;
use noroshi::limits::DESCRIPTORS_SPARE;
use noroshi::logger::{self, print_line};
use noroshi::protocols;
use noroshi::server::Server;

fn main() -> ExitCode {
    logger::exit_on_panic();
    let endpoints = protocols::endpoints(protocols::ALL);
    let arguments = std::env::args_os().skip(1);
    let command = Config::parse_with_environment(&endpoints, std::env::vars_os(), arguments);
    let mut config = match command {
        Ok(Command::Run(config)) => config,
        Ok(Command::Help) => return print(&Config::help(&endpoints)),
        Ok(Command::Token(request)) => return print_token(request),
        Ok(Command::Health(check)) => return check_health(&check),
        Ok(Command::Version) => return print(concat!("noroshi ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            print_line(format_args!("noroshi: {error}; see --help"));
            return ExitCode::from(2);
        }
    };
    if let Err(error) = config.read_secret_files() {
        print_line(format_args!("noroshi: {error}"));
        return ExitCode::from(2);
    }
    logger::init(config.log);
    config.connections_max = raise_descriptor_limit(config.connections_max, config.listen.len());
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_line(format_args!("noroshi: {error}"));
            ExitCode::from(1)
        }
    }
}

fn serve(config: Config) -> io::Result<()> {
    let worst_case = Size(config.worst_case_bytes());
    let connections_max = config.connections_max;
    let memory_max = config.memory_bytes_max.map(|bytes| Size(bytes as u64));
    let has_page = config.page;
    let mut server = Server::bind(config)?;
    // This precedes the messages about listeners, after which a supervisor may stop the server.
    server.install_signal_handlers()?;
    for listener in server.listen_addresses(ListenerKind::Main) {
        let ListenAddress::Tcp(address) = listener else {
            print_line(format_args!("listening on {listener}"));
            continue;
        };
        for (endpoint, path) in server.dispatcher().endpoints() {
            if endpoint.is_always_on {
                print_line(format_args!("listening on ws://{address}{path}"));
                continue;
            }
            let title = endpoint.title;
            let room = if endpoint.has_rooms_below { "/ROOM" } else { "" };
            print_line(format_args!("{title} clients connect to ws://{address}{path}{room}"));
        }
    }
    if has_page && let Some(address) = server.addresses(ListenerKind::Main).next() {
        let is_local = address.ip().is_unspecified() || address.ip().is_loopback();
        // Browsers permit camera and microphone without TLS only for the name `localhost`.
        let host = if is_local { format!("localhost:{}", address.port()) } else { address.to_string() };
        print_line(format_args!("try it at http://{host}/"));
    }
    for address in server.addresses(ListenerKind::Operator) {
        print_line(format_args!("metrics on http://{address}/metrics"));
    }
    match memory_max {
        None => info!(
            "worst case: {connections_max} connections use {worst_case} of memory; --max-memory sets a limit"
        ),
        Some(max) => {
            info!("connections use at most {max} of memory; without the limit, at most {worst_case}")
        }
    }
    server.run()
}

/// Raises the limit of open files for the connections, and returns how many fit.
fn raise_descriptor_limit(connections: usize, listeners: usize) -> usize {
    let spare = DESCRIPTORS_SPARE + listeners;
    let needed = (connections + spare) as rlim_t;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    // The hard limit is not raised, even as root: the operator has set it.
    let allowed = needed.min(hard).max(soft);
    let limit = setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).map_or(soft, |()| allowed);
    if limit >= needed {
        return connections;
    }
    let possible = (limit as usize).saturating_sub(spare).max(1);
    warn!(
        "the limit of open files is {limit}: --max-connections is reduced from {connections} to {possible}"
    );
    possible
}

/// Prints a new token to stdout.
fn print_token(request: TokenRequest) -> ExitCode {
    let secrets = match read_token_secrets(&request.secret_file) {
        Ok(secrets) => secrets,
        Err(error) => {
            print_line(format_args!("noroshi: --secret-file {:?}: {error}", request.secret_file));
            return ExitCode::from(2);
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = Claims {
        expires_at: now + request.ttl,
        room: request.room.map(Box::from),
        room_prefix: request.room_prefix.map(Box::from),
        id: request.id.map(Box::from),
    };
    print(&format!("{}\n", secrets.sign(&claims)))
}

/// Checks the health endpoint of a server.
fn check_health(check: &HealthCheck) -> ExitCode {
    match health::check(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_line(format_args!("noroshi: {check}: {error}"));
            ExitCode::from(1)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // An error means that the reader has closed the pipe, and needs no more.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
