//! The command line. This is the only file that uses lexopt.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::values::{
    client_ip_header, duration, health_check, host_name, ice_server, listen_address, log_level, network,
    number_within, peer_id, size_within, socket_address, unix_health_check,
};
use super::{Config, Endpoint, ListenAddress, environment};
use crate::http::origin::AllowedOrigin;
use crate::http::paths;
use crate::limits::{GIB, ICE_SERVERS_MAX, KIB, MIB};

/// The command that the command line selects.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the program has one value of this type")]
pub enum Command {
    /// Run the server.
    Run(Config),
    /// Print a token and exit.
    Token(TokenRequest),
    /// Check the health of a server and exit.
    Health(HealthCheck),
    /// Print the help and exit.
    Help,
    /// Print the version and exit.
    Version,
}

/// The arguments of `noroshi token`.
#[derive(Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The file with the secrets; the first one signs.
    pub secret_file: PathBuf,
    /// The only room that the token allows. `None`: not limited to one.
    pub room: Option<String>,
    /// The prefix of all rooms that the token allows. `None`: no prefix.
    pub room_prefix: Option<String>,
    /// The only id that the token allows. `None`: any.
    pub id: Option<String>,
    /// Time until the token expires.
    pub ttl: Duration,
}

/// A health check: the server to connect to, and the path to request.
#[derive(Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path of its Unix domain socket. `None`: it has an IP address.
    pub socket: Option<PathBuf>,
    /// Host and port, also for the `Host` header.
    pub authority: String,
    /// The path of the request.
    pub path: String,
}

impl Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.socket {
            Some(socket) => write!(f, "unix:{}", socket.display()),
            None => write!(f, "http://{}{}", self.authority, self.path),
        }
    }
}

impl Config {
    /// Parses a command line, without the name of the program. `endpoints` are those of all protocols.
    ///
    /// # Errors
    /// One line that names the flag and what was expected.
    pub fn parse(
        endpoints: &[&'static Endpoint],
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Command, String> {
        Self::parse_with_environment(endpoints, [], args)
    }

    /// Parses environment variables and a command line, see `environment`. `endpoints` are those of all protocols.
    ///
    /// # Errors
    /// One line that names the flag or the variable, and what was expected.
    pub fn parse_with_environment(
        endpoints: &[&'static Endpoint],
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Command, String> {
        let args: Vec<OsString> = args.into_iter().collect();
        if args.as_slice() == ["health"] {
            return parse_health_check_of_environment(endpoints, variables);
        }
        // The environment holds flags of the server. `token` and `health` have their own.
        let is_server = args.first().is_none_or(|first| first.as_encoded_bytes().starts_with(b"-"));
        let mut flags = if is_server { environment::flags(endpoints, variables, &args)? } else { Vec::new() };
        flags.extend(args);
        parse_flags(endpoints, flags).map_err(one_line)
    }

    /// Checks that flags which depend on each other are consistent.
    fn check_combinations(&self) -> Result<(), String> {
        for (index, (endpoint, path)) in self.mounts.iter().enumerate() {
            let earlier = &self.mounts[..index];
            if let Some((other, _)) = earlier.iter().find(|(_, other_path)| other_path == path) {
                let (other, name) = (other.name, endpoint.name);
                return Err(format!(
                    "--{other} and --{name}: expected different paths, got the same for both"
                ));
            }
        }
        if self.metrics.is_none() && !self.metrics_hosts.is_empty() {
            return Err("--metrics-host: expected --metrics too, got none".to_owned());
        }
        let turn_server = self.ice_servers.iter().find(|url| url.starts_with("turn"));
        match (turn_server, &self.turn_secret_file) {
            (Some(url), None) => {
                Err(format!("--ice-server {url:?}: expected --turn-secret-file too, got none"))
            }
            (None, Some(_)) => {
                Err("--turn-secret-file: expected --ice-server turn:… too, got none".to_owned())
            }
            (Some(_), Some(_)) | (None, None) => Ok(()),
        }
    }

    /// Returns the text of `--help`. It shows the defaults of [`Config`].
    pub fn help(endpoints: &[&'static Endpoint]) -> String {
        let defaults = Config::default();
        let mountable = endpoints.iter().filter(|endpoint| !endpoint.is_always_on);
        let protocols: String = mountable.map(|endpoint| endpoint.help()).collect();
        format!(
            "\
noroshi {version}: a WebRTC signaling server

usage: noroshi [flags]
       noroshi token --secret-file FILE [--room ROOM] [--room-prefix PREFIX] [--id ID] [--ttl 1h]
       noroshi health [http://HOST:PORT/PATH | unix:PATH]
                      [default: the address that NOROSHI_LISTEN and PORT give the server]

  -l, --listen ADDR          address and port to listen on, where port 0 picks a free port, or unix:PATH for a Unix
                             domain socket behind a proxy; repeatable
                             [default: [::]:8080, or 0.0.0.0:8080 without IPv6]
      --allow-origin ORIGIN  also allow pages of this origin to connect; repeatable; * allows all
                             [default: same host only]
      --max-connections N    concurrent WebSocket connections [default: {connections}]
      --max-connections-per-ip N
                             connections from one IPv4 address or IPv6 /64; 0 = no limit [default: {per_ip}]
      --trust-proxy CIDR     trust X-Forwarded-For and X-Real-IP from these addresses; repeatable [default: none]
      --client-ip-header NAME
                             the only header in which proxies of --trust-proxy report the client's address
                             [default: X-Forwarded-For, then X-Real-IP]
      --max-memory SIZE      memory limit; requests that exceed it are refused; suffix K, M or G
                             [default: no limit]
      --max-mesh-peers N     joined peers in one room [default: {mesh}]
      --max-message SIZE     bytes of one message; suffix K or M [default: {message}K]
      --max-rate N           messages a second from one connection; 0 = no limit [default: {rate}]
      --ping-interval SECONDS
                             time without input until a ping; after two, the peer is disconnected [default: {ping}]
      --ice-server URL       STUN or TURN server that clients use: stun:HOST[:PORT] or turn:HOST[:PORT]; also stuns:,
                             turns: and ?transport=tcp; repeatable [default: none]
      --turn-secret-file FILE
                             file with the secret that the TURN servers share, from which passwords are derived
                             [default: none]
      --token-secret-file FILE
                             require tokens that are signed with a secret in this file [default: none]
{protocols}      --drain SECONDS        on SIGTERM, keep serving existing rooms for this long [default: 0]
      --no-page              do not serve /, /check, /noroshi.js and /noroshi/ [default: serve them]
      --metrics ADDR         address and port that serve GET /metrics, for Prometheus, and GET /rooms [default: off]
      --metrics-host NAME    also accept this name with dots as Host at the metrics listener; repeatable
                             [default: only IP addresses and names without dots]
      --log LEVEL            off, error, warn, info, debug or trace [default: {log}]
  -h, --help                 print this help
  -V, --version              print the version

An environment variable can set each flag: NOROSHI_MAX_RATE=5 sets --max-rate 5, NOROSHI_NO_PAGE=yes sets --no-page,
and PORT=80 sets the port of the default address. Commas or spaces separate the elements of a list. Flags take
precedence over variables.
",
            version = env!("CARGO_PKG_VERSION"),
            connections = defaults.connections_max,
            per_ip = defaults.connections_per_ip_max,
            mesh = defaults.mesh_peers_max,
            message = defaults.message_bytes_max / KIB,
            rate = defaults.rate_max,
            ping = defaults.ping_interval.as_secs(),
            log = defaults.log.as_str().to_ascii_lowercase(),
        )
    }
}

fn parse_flags(
    endpoints: &[&'static Endpoint],
    args: impl IntoIterator<Item = OsString>,
) -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;

    let mut config = Config::default();
    let mut parser = lexopt::Parser::from_args(args);
    if next_is(&mut parser, "token") {
        return parse_token_request(&mut parser);
    }
    if next_is(&mut parser, "health") {
        return parse_health_check(&mut parser);
    }
    while let Some(arg) = parser.next()? {
        match arg {
            Short('l') | Long("listen") => {
                let address = parse_value(&mut parser, "--listen", listen_address)?;
                config.listen.push(address);
            }
            Long("allow-origin") => {
                let origin = parse_value(&mut parser, "--allow-origin", AllowedOrigin::parse)?;
                config.allow_origins.push(origin);
            }
            Long("max-connections") => {
                let parse = |text: &str| number_within(text, 1, 1_000_000);
                config.connections_max = parse_value(&mut parser, "--max-connections", parse)?;
            }
            Long("max-connections-per-ip") => {
                let parse = |text: &str| number_within(text, 0, 1_000_000);
                config.connections_per_ip_max = parse_value(&mut parser, "--max-connections-per-ip", parse)?;
            }
            Long("trust-proxy") => {
                let proxies = parse_value(&mut parser, "--trust-proxy", network)?;
                config.trusted_proxies.push(proxies);
            }
            Long("client-ip-header") => {
                let name = parse_value(&mut parser, "--client-ip-header", client_ip_header)?;
                config.client_ip_header = Some(name);
            }
            Long("max-memory") => {
                let parse = |text: &str| size_within(text, 8 * MIB, GIB.saturating_mul(1024));
                let bytes = parse_value(&mut parser, "--max-memory", parse)?;
                config.memory_bytes_max = Some(bytes);
            }
            Long("max-mesh-peers") => {
                let parse = |text: &str| number_within(text, 1, 1000);
                config.mesh_peers_max = parse_value(&mut parser, "--max-mesh-peers", parse)?;
            }
            Long("max-message") => {
                let parse = |text: &str| size_within(text, KIB, 16 * MIB);
                config.message_bytes_max = parse_value(&mut parser, "--max-message", parse)?;
            }
            Long("max-rate") => {
                let parse = |text: &str| number_within(text, 0, 1_000_000);
                config.rate_max = parse_value(&mut parser, "--max-rate", parse)?;
            }
            Long("ping-interval") => {
                let parse = |text: &str| number_within(text, 1, 3600);
                let seconds = parse_value(&mut parser, "--ping-interval", parse)?;
                config.ping_interval = Duration::from_secs(seconds);
            }
            Long("ice-server") => {
                let url = parse_value(&mut parser, "--ice-server", ice_server)?;
                config.ice_servers.push(url);
                if config.ice_servers.len() > ICE_SERVERS_MAX {
                    let error = format!("--ice-server: expected at most {ICE_SERVERS_MAX} of them, got more");
                    return Err(error.into());
                }
            }
            Long("turn-secret-file") => {
                let file = parser.value()?;
                config.turn_secret_file = Some(file.into());
            }
            Long("token-secret-file") => {
                let file = parser.value()?;
                config.token_secret_file = Some(file.into());
            }
            // `environment` makes this flag of the variable PORT. It is not in the help.
            Long("port") => {
                let parse = |text: &str| number_within(text, 1, 65_535);
                config.port = parse_value(&mut parser, "PORT", parse)?;
            }
            Long("drain") => {
                let parse = |text: &str| number_within(text, 0, 86_400);
                let seconds = parse_value(&mut parser, "--drain", parse)?;
                config.drain = Duration::from_secs(seconds);
            }
            Long("no-page") => config.page = false,
            Long("metrics") => {
                let address = parse_value(&mut parser, "--metrics", socket_address)?;
                config.metrics = Some(address);
            }
            Long("metrics-host") => {
                let name = parse_value(&mut parser, "--metrics-host", host_name)?;
                config.metrics_hosts.push(name);
            }
            Long("log") => config.log = parse_value(&mut parser, "--log", log_level)?,
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Long(name) => {
                let mut mountable = endpoints.iter().filter(|endpoint| !endpoint.is_always_on);
                let Some(endpoint) = mountable.find(|endpoint| endpoint.name == name) else {
                    return Err(arg.unexpected());
                };
                let path = match parser.optional_value() {
                    Some(path) => path.string()?,
                    None => endpoint.default_path.to_owned(),
                };
                let flag = format!("--{}", endpoint.name);
                let path = parse_text(&flag, &path, |path| endpoint.parse_path(path, endpoints))?;
                config.mount(endpoint, path);
            }
            _ => return Err(arg.unexpected()),
        }
    }
    config.check_combinations()?;
    Ok(Command::Run(config))
}

/// Consumes the next argument if it is this command.
fn next_is(parser: &mut lexopt::Parser, command: &str) -> bool {
    let Some(mut args) = parser.try_raw_args() else { return false };
    args.next_if(|arg| arg == command).is_some()
}

/// Parses the arguments of `token`.
fn parse_token_request(parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;

    let mut secret_file = None;
    let mut room = None;
    let mut room_prefix = None;
    let mut id = None;
    let mut ttl = Duration::from_secs(3600);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("secret-file") => secret_file = Some(parser.value()?.into()),
            Long("room") => room = Some(parser.value()?.string()?),
            Long("room-prefix") => room_prefix = Some(parser.value()?.string()?),
            Long("id") => id = Some(parse_value(parser, "--id", peer_id)?),
            Long("ttl") => ttl = parse_value(parser, "--ttl", duration)?,
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    let secret_file = secret_file.ok_or("token: expected --secret-file, got none")?;
    Ok(Command::Token(TokenRequest { secret_file, room, room_prefix, id, ttl }))
}

/// Parses the arguments of `health`.
fn parse_health_check(parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;

    let mut url = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Value(text) if url.is_none() => url = Some(text.string()?),
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    let url = url.ok_or("health: expected a URL, got none")?;
    let check = parse_text("health", &url, health_check)?;
    Ok(Command::Health(check))
}

/// Returns the health check of the server that this environment configures.
///
/// Only the variables of the addresses are read, so that an error in another one does not change the result.
fn parse_health_check_of_environment(
    endpoints: &[&'static Endpoint],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, String> {
    let is_address = |name: &OsString| name == "PORT" || name == "NOROSHI_LISTEN";
    let variables = variables.into_iter().filter(|(name, _)| is_address(name));
    let flags = environment::flags(endpoints, variables, &[])?;
    match parse_flags(endpoints, flags).map_err(one_line)? {
        Command::Run(config) => Ok(Command::Health(health_check_of(&config)?)),
        other => Ok(other),
    }
}

/// Returns the health check of the first address of a configuration.
///
/// An unspecified address becomes the IPv4 loopback address. `[::]` accepts IPv4 too, and a container without IPv6 can
/// bind `[::]` but not connect to `[::1]`.
///
/// # Errors
/// The port is 0, so the kernel chooses it.
fn health_check_of(config: &Config) -> Result<HealthCheck, String> {
    let address = match config.listen.first() {
        Some(ListenAddress::Unix(path)) => return Ok(unix_health_check(path.clone())),
        Some(ListenAddress::Tcp(address)) => *address,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, config.port)),
    };
    if address.port() == 0 {
        let error = "health: expected a URL, because port 0 in NOROSHI_LISTEN means any free port";
        return Err(error.to_owned());
    }
    let ip = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
    let authority = SocketAddr::new(ip, address.port()).to_string();
    Ok(HealthCheck { socket: None, authority, path: paths::HEALTH.to_owned() })
}

/// Parses the value of a flag. The error names the flag.
fn parse_value<T, E: Display>(
    parser: &mut lexopt::Parser,
    flag: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, lexopt::Error> {
    let value = parser.value()?;
    let text = lexopt::ValueExt::string(value)?;
    parse_text(flag, &text, parse)
}

/// Parses a text. The error names the flag, what was expected, and the text.
fn parse_text<T, E: Display>(
    flag: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, lexopt::Error> {
    parse(text).map_err(|expected| format!("{flag}: expected {expected}, got {text:?}").into())
}

/// Renders an error of the command line as one line.
fn one_line(error: lexopt::Error) -> String {
    error.to_string().replace(char::is_control, "?")
}

#[cfg(test)]
mod tests;
