//! The command line: the only file that knows lexopt.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::values::{
    address, client_ip_header, host_name, ice_server, level, listen, mount, network, peer_id,
    prefix_of_rooms, probe, size, time, unix_probe, within,
};
use super::{Config, GIB, ICE_SERVERS_MAX, KIB, Listen, MIB, environment};
use crate::origin::AllowedOrigin;
use crate::paths;

/// What the command line asks for.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum Command {
    /// Serve.
    Run(Config),
    /// Print a token and exit.
    Token(Mint),
    /// Ask a server whether it is well, and exit.
    Health(Probe),
    /// Print the help and exit.
    Help,
    /// Print the version and exit.
    Version,
}

/// The token that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Mint {
    /// Where the secret is.
    pub secret_file: PathBuf,
    /// The room that it is for; any, if missing.
    pub room: Option<String>,
    /// The prefix of the rooms that it is for; any, if missing.
    pub room_prefix: Option<String>,
    /// The id that it is for; any, if missing.
    pub id: Option<String>,
    /// How long it is good for.
    pub ttl: Duration,
}

/// The server that is asked whether it is well.
#[derive(Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its socket, if that is a file.
    pub socket: Option<PathBuf>,
    /// Its host and port.
    pub authority: String,
    /// What is asked for there.
    pub path: String,
}

impl Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.socket {
            Some(socket) => write!(f, "unix:{}", socket.display()),
            None => write!(f, "http://{}{}", self.authority, self.path),
        }
    }
}

impl Config {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// One line that names the flag and what it wants.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
        Self::parse_with([], args)
    }

    /// The same after what variables of the environment say, see `environment`.
    ///
    /// # Errors
    /// The same, or the variable is named.
    pub fn parse_with(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Command, String> {
        let args: Vec<OsString> = args.into_iter().collect();
        // Another command than to serve has flags of its own.
        let serves = args.first().is_none_or(|first| first.as_encoded_bytes().starts_with(b"-"));
        if args.as_slice() == ["health"] {
            let where_to_listen =
                |(name, _): &(OsString, OsString)| name == "PORT" || name == "NOROSHI_LISTEN";
            let flags = environment::flags(variables.into_iter().filter(where_to_listen), &[])?;
            return match one_line(Self::parse_flags(flags))? {
                Command::Run(config) => Ok(Command::Health(probe_of(&config)?)),
                other => Ok(other),
            };
        }
        let mut all = if serves { environment::flags(variables, &args)? } else { Vec::new() };
        all.extend(args);
        one_line(Self::parse_flags(all))
    }

    fn parse_flags(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
        use lexopt::prelude::*;

        let mut config = Config::default();
        let mut parser = lexopt::Parser::from_args(args);
        let mut is_command =
            |name| parser.try_raw_args().is_some_and(|mut args| args.next_if(|arg| arg == name).is_some());
        if is_command("token") {
            return mint(&mut parser);
        }
        if is_command("health") {
            return health(&mut parser);
        }
        while let Some(arg) = parser.next()? {
            match arg {
                Short('l') | Long("listen") => config.listen.push(value(&mut parser, "--listen", listen)?),
                Long("allow-origin") => {
                    config.allow_origins.push(value(&mut parser, "--allow-origin", AllowedOrigin::parse)?);
                }
                Long("max-connections") => {
                    let read = |text: &str| within(text, 1, 1_000_000);
                    config.connections_max = value(&mut parser, "--max-connections", read)?;
                }
                Long("max-connections-per-ip") => {
                    let read = |text: &str| within(text, 0, 1_000_000);
                    config.connections_per_ip_max = value(&mut parser, "--max-connections-per-ip", read)?;
                }
                Long("trust-proxy") => {
                    config.trusted_proxies.push(value(&mut parser, "--trust-proxy", network)?);
                }
                Long("client-ip-header") => {
                    let name = value(&mut parser, "--client-ip-header", client_ip_header)?;
                    config.client_ip_header = Some(name);
                }
                Long("max-memory") => {
                    let read = |text: &str| size(text, 8 * MIB, GIB.saturating_mul(1024));
                    config.memory_bytes_max = Some(value(&mut parser, "--max-memory", read)?);
                }
                Long("max-mesh-peers") => {
                    let read = |text: &str| within(text, 1, 1000);
                    config.mesh_peers_max = value(&mut parser, "--max-mesh-peers", read)?;
                }
                Long("max-message") => {
                    let read = |text: &str| size(text, KIB, 16 * MIB);
                    config.message_bytes_max = value(&mut parser, "--max-message", read)?;
                }
                Long("max-rate") => {
                    config.rate_max = value(&mut parser, "--max-rate", |text| within(text, 0, 1_000_000))?;
                }
                Long("ping-interval") => {
                    let seconds = value(&mut parser, "--ping-interval", |text| within(text, 1, 3600))?;
                    config.ping_interval = Duration::from_secs(seconds);
                }
                Long("ice-server") => {
                    config.ice_servers.push(value(&mut parser, "--ice-server", ice_server)?);
                    if config.ice_servers.len() > ICE_SERVERS_MAX {
                        return Err(format!("--ice-server: at most {ICE_SERVERS_MAX}").into());
                    }
                }
                Long("turn-secret-file") => config.turn_secret_file = Some(parser.value()?.into()),
                Long("token-secret-file") => config.token_secret_file = Some(parser.value()?.into()),
                Long("ayame") => {
                    let path = parser.optional_value().unwrap_or_else(|| "/signaling".into()).string()?;
                    config.ayame = Some(named("--ayame", &path, mount)?);
                }
                Long("matchbox") => {
                    let prefix = parser.optional_value().unwrap_or_else(|| "/".into()).string()?;
                    config.matchbox = Some(named("--matchbox", &prefix, prefix_of_rooms)?);
                }
                // Only the environment says this.
                Long("port") => config.port = value(&mut parser, "PORT", |text| within(text, 1, 65_535))?,
                Long("drain") => {
                    let seconds = value(&mut parser, "--drain", |text| within(text, 0, 86_400))?;
                    config.drain = Duration::from_secs(seconds);
                }
                Long("no-page") => config.page = false,
                Long("metrics") => config.metrics = Some(value(&mut parser, "--metrics", address)?),
                Long("metrics-host") => {
                    config.metrics_hosts.push(value(&mut parser, "--metrics-host", host_name)?);
                }
                Long("log") => config.log = value(&mut parser, "--log", level)?,
                Short('h') | Long("help") => return Ok(Command::Help),
                Short('V') | Long("version") => return Ok(Command::Version),
                _ => return Err(arg.unexpected()),
            }
        }
        if config.ayame.is_some() && config.ayame == config.matchbox {
            return Err("--ayame and --matchbox: at the same path".into());
        }
        if config.metrics.is_none() && !config.metrics_hosts.is_empty() {
            return Err("--metrics-host: expected --metrics beside it".into());
        }
        let turn = config.ice_servers.iter().find(|url| url.starts_with("turn"));
        match (turn, &config.turn_secret_file) {
            (Some(url), None) => Err(format!("--ice-server {url}: needs --turn-secret-file").into()),
            (None, Some(_)) => {
                Err("--turn-secret-file: there is no --ice-server turn:… that it is for".into())
            }
            _ => Ok(Command::Run(config)),
        }
    }

    /// What `--help` prints. The defaults in it are the program's own.
    pub fn help() -> String {
        let d = Config::default();
        format!(
            "\
noroshi {version}: a WebRTC signaling server

usage: noroshi [flags]
       noroshi token --secret-file FILE [--room ROOM] [--room-prefix PREFIX] [--id ID] [--ttl 1h]
       noroshi health [http://HOST:PORT/PATH | unix:PATH]
                      (without an argument, where PORT and NOROSHI_LISTEN say that the server listens)

  -l, --listen ADDR          address and port to listen on, where port 0 picks a free one, or unix:PATH, where a
                             proxy connects; repeatable [default: [::]:8080, or 0.0.0.0:8080 without IPv6]
      --allow-origin ORIGIN  let pages of this origin connect too; repeatable; * allows all
                             [default: same host only]
      --max-connections N    WebSocket connections at a time [default: {connections}]
      --max-connections-per-ip N
                             connections from one IPv4 address or IPv6 /64; 0 = no limit [default: {per_ip}]
      --trust-proxy CIDR     believe X-Forwarded-For and X-Real-IP from there; repeatable [default: nobody]
      --client-ip-header NAME
                             the only header in which proxies of --trust-proxy report the client's address
                             [default: X-Forwarded-For, then X-Real-IP]
      --max-memory SIZE      refuse what would take more memory; takes K, M and G [default: no limit]
      --max-mesh-peers N     joined peers in one room [default: {mesh}]
      --max-message SIZE     bytes of one message; takes K and M [default: {message}K]
      --max-rate N           messages a second from one connection; 0 = no limit [default: {rate}]
      --ping-interval SECONDS
                             silence before a ping; after two, the peer is closed [default: {ping}]
      --ice-server URL       stun:HOST[:PORT] or turn:HOST[:PORT] that peers are told to use; also stuns:, turns:
                             and ?transport=tcp; repeatable [default: none]
      --turn-secret-file FILE
                             the secret shared with the TURN servers, from which passwords are made [default: none]
      --token-secret-file FILE
                             let in only who has a token, signed with a secret in this file [default: none]
      --ayame[=PATH]         speak Ayame's protocol too, at PATH or else at /signaling [default: off]
      --matchbox[=PREFIX]    speak matchbox's protocol too, at PREFIX/ROOM or else at /ROOM [default: off]
      --drain SECONDS        told to stop, serve the rooms that there are for so long [default: 0]
      --no-page              serve neither / nor /check nor /noroshi.js [default: serve them]
      --metrics ADDR         serve GET /metrics there, for Prometheus, and GET /rooms [default: off]
      --metrics-host NAME    a name with dots by which the metrics listener may be asked; repeatable
                             [default: only IP addresses and names without dots]
      --log LEVEL            off, error, warn, info, debug or trace [default: {log}]
  -h, --help                 print this
  -V, --version              print the version

Each may be said by the environment too: NOROSHI_MAX_RATE=5 is --max-rate 5, NOROSHI_NO_PAGE=yes is --no-page, lists
are separated by commas or spaces, and PORT=80 is the port of the default address. Flags win.
",
            version = env!("CARGO_PKG_VERSION"),
            connections = d.connections_max,
            per_ip = d.connections_per_ip_max,
            mesh = d.mesh_peers_max,
            message = d.message_bytes_max / KIB,
            rate = d.rate_max,
            ping = d.ping_interval.as_secs(),
            log = d.log.as_str().to_ascii_lowercase(),
        )
    }
}

/// What comes after `token`.
fn mint(parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;

    let (mut secret_file, mut room, mut room_prefix, mut id) = (None, None, None, None);
    let mut ttl = Duration::from_secs(3600);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("secret-file") => secret_file = Some(parser.value()?.into()),
            Long("room") => room = Some(parser.value()?.string()?),
            Long("room-prefix") => room_prefix = Some(parser.value()?.string()?),
            Long("id") => id = Some(value(parser, "--id", peer_id)?),
            Long("ttl") => ttl = value(parser, "--ttl", time)?,
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    let secret_file = secret_file.ok_or("token: --secret-file is missing")?;
    Ok(Command::Token(Mint { secret_file, room, room_prefix, id, ttl }))
}

/// Returns the error of a command line as one line.
fn one_line(command: Result<Command, lexopt::Error>) -> Result<Command, String> {
    command.map_err(|error| error.to_string().replace(char::is_control, "?"))
}

/// Returns the health check of the first address at which a server of this configuration listens.
///
/// An unspecified address means IPv4 loopback. `[::]` takes IPv4, too, and a container whose IPv6 is switched off can
/// bind `[::]` but not connect to `[::1]`.
///
/// # Errors
/// The server picks its port itself.
fn probe_of(config: &Config) -> Result<Probe, String> {
    let address = match config.listen.first() {
        Some(Listen::Unix(path)) => return Ok(unix_probe(path.clone())),
        Some(Listen::Tcp(address)) => *address,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, config.port)),
    };
    if address.port() == 0 {
        return Err("health: expected a URL, because the port 0 of NOROSHI_LISTEN stands for any".to_owned());
    }
    let ip = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
    let authority = SocketAddr::new(ip, address.port()).to_string();
    Ok(Probe { socket: None, authority, path: paths::HEALTH.to_owned() })
}

/// Reads the arguments of `health`.
fn health(parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;

    let mut url = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Value(text) if url.is_none() => url = Some(text.string()?),
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    let url = url.ok_or("health: expected a URL")?;
    Ok(Command::Health(named("health", &url, probe)?))
}

/// The value of a flag, or an error that names the flag.
fn value<T, E: Display>(
    parser: &mut lexopt::Parser,
    flag: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, lexopt::Error> {
    let value = lexopt::ValueExt::string(parser.value()?)?;
    named(flag, &value, read)
}

fn named<T, E: Display>(
    flag: &str,
    value: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, lexopt::Error> {
    read(value).map_err(|expected| format!("{flag}: expected {expected}, got {value:?}").into())
}

#[cfg(test)]
mod tests;
