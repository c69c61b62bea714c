//! The command line: the only file that knows lexopt.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::{Config, GIB, ICE_SERVER_BYTES_MAX, ICE_SERVERS_MAX, ID_BYTES_MAX, KIB, MIB, Size, environment};
use crate::address::Network;
use crate::origin::Allowed;

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
    /// The room, or rooms, that it is for; any, if missing.
    pub room: Option<String>,
    /// The id that it is for; any, if missing.
    pub id: Option<String>,
    /// How long it is good for.
    pub ttl: Duration,
}

/// The server that is asked whether it is well.
#[derive(Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its host and port.
    pub authority: String,
    /// What is asked for there.
    pub path: String,
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
        let mut all = if serves { environment::flags(variables, &args)? } else { Vec::new() };
        all.extend(args);
        Self::parse_flags(all).map_err(|error| error.to_string().replace(char::is_control, "?"))
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
                Short('l') | Long("listen") => config.listen.push(value(&mut parser, "--listen", address)?),
                Long("allow-origin") => {
                    config.allow_origins.push(value(&mut parser, "--allow-origin", Allowed::parse)?);
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
                Long("log") => config.log = value(&mut parser, "--log", level)?,
                Short('h') | Long("help") => return Ok(Command::Help),
                Short('V') | Long("version") => return Ok(Command::Version),
                _ => return Err(arg.unexpected()),
            }
        }
        if config.ayame.is_some() && config.ayame == config.matchbox {
            return Err("--ayame and --matchbox: at the same path".into());
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
       noroshi token --secret-file FILE [--room ROOM] [--id ID] [--ttl 1h]
       noroshi health [http://HOST:PORT/PATH]

  -l, --listen ADDR          address and port to listen on; repeatable; port 0 picks a free one
                             [default: [::]:8080, or 0.0.0.0:8080 without IPv6]
      --allow-origin ORIGIN  let pages of this origin connect too; repeatable; * allows all
                             [default: same host only]
      --max-connections N    WebSocket connections at a time [default: {connections}]
      --max-connections-per-ip N
                             connections from one IPv4 address or IPv6 /64; 0 = no limit [default: {per_ip}]
      --trust-proxy CIDR     believe X-Forwarded-For and X-Real-IP from there; repeatable [default: nobody]
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
      --metrics ADDR         serve GET /metrics there, for Prometheus [default: off]
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

    let (mut secret_file, mut room, mut id, mut ttl) = (None, None, None, Duration::from_secs(3600));
    while let Some(arg) = parser.next()? {
        match arg {
            Long("secret-file") => secret_file = Some(parser.value()?.into()),
            Long("room") => room = Some(parser.value()?.string()?),
            Long("id") => id = Some(value(parser, "--id", peer_id)?),
            Long("ttl") => ttl = value(parser, "--ttl", time)?,
            Short('h') | Long("help") => return Ok(Command::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    let secret_file = secret_file.ok_or("token: --secret-file is missing")?;
    Ok(Command::Token(Mint { secret_file, room, id, ttl }))
}

/// What comes after `health`.
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
    Ok(Command::Health(named("health", url.as_deref().unwrap_or("http://127.0.0.1:8080"), probe)?))
}

fn probe(url: &str) -> Result<Probe, &'static str> {
    let read = || {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.rsplit_once(':')?;
        let is_fine =
            !host.is_empty() && port.parse::<u16>().is_ok() && url.bytes().all(|b| b.is_ascii_graphic());
        let path = if path.is_empty() { "/healthz" } else { path };
        is_fine.then(|| Probe { authority: authority.to_owned(), path: path.to_owned() })
    };
    read().ok_or("not a URL such as http://127.0.0.1:8080/healthz")
}

fn peer_id(text: &str) -> Result<String, String> {
    let is_one = (1..=ID_BYTES_MAX).contains(&text.len());
    is_one.then(|| text.to_owned()).ok_or_else(|| format!("an id has 1 to {ID_BYTES_MAX} bytes"))
}

/// `90s`, `5m`, `1h` or `7d`.
fn time(text: &str) -> Result<Duration, &'static str> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let read = |(letter, unit)| Some(text.strip_suffix(letter)?.parse::<u32>().ok()? as u64 * unit);
    let seconds = units.into_iter().find_map(read).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or("not a time such as 90s, 5m, 1h or 7d")
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
    read(value).map_err(|error| format!("{flag} {value}: {error}").into())
}

/// A path at which nothing of our own is.
fn mount(path: &str) -> Result<String, &'static str> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~-".contains(&byte);
    let is_ours = path == "/healthz" || path == "/ws" || path.starts_with("/ws/");
    let is_one = path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && path.bytes().all(is_fine);
    (is_one && !is_ours).then(|| path.to_owned()).ok_or("not a path such as /signaling that is free")
}

fn prefix_of_rooms(prefix: &str) -> Result<String, &'static str> {
    if prefix == "/" { Ok(String::new()) } else { mount(prefix) }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "not an address and port, such as 127.0.0.1:8080 or [::]:8080")
}

fn network(text: &str) -> Result<Network, &'static str> {
    Network::parse(text).ok_or("not an address or a network, such as 127.0.0.1 or 10.0.0.0/8")
}

/// A URL of RFC 7064 or RFC 7065. Browsers refuse to connect at all when one of them is wrong.
fn ice_server(text: &str) -> Result<String, &'static str> {
    let is_one = || {
        let (scheme, rest) = text.split_once(':')?;
        let rest = match scheme {
            "stun" | "stuns" => rest,
            "turn" | "turns" => ["?transport=udp", "?transport=tcp"]
                .iter()
                .find_map(|transport| rest.strip_suffix(transport))
                .unwrap_or(rest),
            _ => return None,
        };
        let (host, port) =
            rest.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((rest, "3478"));
        let is_port =
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
        let is_host = match host.strip_prefix('[') {
            Some(ip) => ip.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            }
        };
        (is_port && is_host && text.len() <= ICE_SERVER_BYTES_MAX).then(|| text.to_owned())
    };
    is_one().ok_or("not stun:HOST, stuns:HOST, turn:HOST or turns:HOST with, perhaps, :PORT, and ?transport=tcp for TURN")
}

fn within<N>(text: &str, min: N, max: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(number) if (&min..=&max).contains(&&number) => Ok(number),
        _ => Err(format!("not a whole number from {min} to {max}")),
    }
}

fn size(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let units = [(['K', 'k'], KIB), (['M', 'm'], MIB), (['G', 'g'], GIB)];
    let unit = units.iter().find_map(|(letters, unit)| Some((text.strip_suffix(letters)?, *unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    bytes
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| format!("not a size from {} to {}", Size(min as u64), Size(max as u64)))
}

fn level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "not one of off, error, warn, info, debug, trace")
}

#[cfg(test)]
mod tests;
