//! The program: the command line in, exit codes out.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{info, warn};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use noroshi::config::{
    Command, Config, DESCRIPTORS_SPARE, HealthCheck, ListenAddress, Size, TokenRequest, read_token_secrets,
};
use noroshi::health;
use noroshi::http::ListenerKind;
use noroshi::logger::{self, say};
use noroshi::server::Server;
use noroshi::token::Claims;

fn main() -> ExitCode {
    logger::exit_on_panic();
    let mut config = match Config::parse_with_environment(std::env::vars_os(), std::env::args_os().skip(1)) {
        Ok(Command::Run(config)) => config,
        Ok(Command::Help) => return print(&Config::help()),
        Ok(Command::Token(mint)) => return token(mint),
        Ok(Command::Health(probe)) => return health(&probe),
        Ok(Command::Version) => return print(concat!("noroshi ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            say(format_args!("noroshi: {error}; see --help"));
            return ExitCode::from(2);
        }
    };
    if let Err(error) = config.read_secret_files() {
        say(format_args!("noroshi: {error}"));
        return ExitCode::from(2);
    }
    logger::init(config.log);
    config.connections_max = raise_descriptor_limit(config.connections_max, config.listen.len());
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("noroshi: {error}"));
            ExitCode::from(1)
        }
    }
}

fn serve(config: Config) -> io::Result<()> {
    let memory = (
        Size(config.worst_case_bytes()),
        config.connections_max,
        config.memory_bytes_max.map(|bytes| Size(bytes as u64)),
    );
    let has_page = config.page;
    let ayame = config.ayame.as_ref().map(|path| ("Ayame", path.clone()));
    let matchbox = config.matchbox.as_ref().map(|prefix| ("matchbox", format!("{prefix}/ROOM")));
    let mut server = Server::bind(config)?;
    // Before anybody is told that it listens, and may want it to stop.
    server.install_signal_handlers()?;
    for place in server.places(ListenerKind::Main) {
        let ListenAddress::Tcp(address) = place else {
            say(format_args!("listening on {place}"));
            continue;
        };
        say(format_args!("listening on ws://{address}/ws"));
        for (name, path) in [&ayame, &matchbox].into_iter().flatten() {
            say(format_args!("{name} clients connect to ws://{address}{path}"));
        }
    }
    if let Some(address) = server.addresses(ListenerKind::Main).next().filter(|_| has_page) {
        let is_local = address.ip().is_unspecified() || address.ip().is_loopback();
        // The name, because browsers allow camera and microphone there.
        let host = if is_local { format!("localhost:{}", address.port()) } else { address.to_string() };
        say(format_args!("try it at http://{host}/"));
    }
    for address in server.addresses(ListenerKind::Metrics) {
        say(format_args!("metrics on http://{address}/metrics"));
    }
    // Last, because it is the least that a newcomer wants to know.
    match memory {
        (worst, connections, None) => info!(
            "if each of {connections} connections used all that it may, they would take {worst} of memory; \
            --max-memory sets a limit"
        ),
        (worst, _, Some(max)) => {
            info!("connections take at most {max} of memory, instead of {worst} if each used all that it may")
        }
    }
    server.run()
}

/// Raises the limit of open files to what so many connections need, and returns how many it suffices for.
fn raise_descriptor_limit(connections: usize, listeners: usize) -> usize {
    let spare = DESCRIPTORS_SPARE + listeners;
    let needed = (connections + spare) as rlim_t;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    // The hard limit is the operator's word, even to root.
    let allowed = needed.min(hard).max(soft);
    let limit = setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).map_or(soft, |()| allowed);
    if limit >= needed {
        return connections;
    }
    let possible = (limit as usize).saturating_sub(spare).max(1);
    warn!("the limit of open files is {limit}: --max-connections is {possible} instead of {connections}");
    possible
}

/// Prints a token.
fn token(mint: TokenRequest) -> ExitCode {
    let secrets = match read_token_secrets(&mint.secret_file) {
        Ok(secrets) => secrets,
        Err(error) => {
            say(format_args!("noroshi: --secret-file {:?}: {error}", mint.secret_file));
            return ExitCode::from(2);
        }
    };
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + mint.ttl;
    let claims = Claims {
        until,
        room: mint.room.map(Box::from),
        room_prefix: mint.room_prefix.map(Box::from),
        id: mint.id.map(Box::from),
    };
    print(&format!("{}\n", secrets.sign(&claims)))
}

/// Asks a server whether it is well.
fn health(probe: &HealthCheck) -> ExitCode {
    match health::ask(probe) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("noroshi: {probe}: {error}"));
            ExitCode::from(1)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // Whoever closes the pipe has read enough.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
