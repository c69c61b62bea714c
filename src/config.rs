//! What an operator may choose, and every limit of the program.
//!
//! This file knows no other of the crate but what a network is. Each limit is named with its unit and says why it
//! has the value it has. What has a flag stands in [`Config`]; the rest are constants.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::address::Network;
use crate::origin::Allowed;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

// ---- One connection, before it speaks WebSocket ----

/// The head of a request: what nginx lets through. Browsers send under 2 KiB, but two cookies of 4 KiB and a token are
/// nothing rare.
pub const HEAD_BYTES_MAX: usize = 32 * KIB;
/// The method that it begins with. The longest that is registered (RFC 9110 section 16.1) has 17 bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Headers in it. Browsers send twenty.
pub const HEADERS_MAX: usize = 100;
/// From accept to the end of the head, one deadline for all of it, so that a byte a second buys nothing.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

// ---- One connection, as a WebSocket ----

/// From the upgrade to the first well-formed message; then 1008.
pub const FIRST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);
/// For a peer's Close after ours, and then for it to close TCP.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// What is read and thrown away after our last byte, so that no reset overtakes it (RFC 9112 section 9.6).
pub const DRAIN_BYTES_MAX: usize = 256 * KIB;
/// What waits to be sent to one peer, at least; see [`Config::queue_bytes_max`].
pub const QUEUE_BYTES_MAX: usize = 256 * KIB;
/// Room beyond the queue for pongs, which must not fail when messages do. As many more wait in the codec.
pub const QUEUE_BYTES_SPARE: usize = KIB;
/// A peer whose queue is full and that takes no byte for this long is closed.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that one read takes from a socket, which is also what one session may do in one turn of the loop.
/// Three SDPs of a browser fit; two thousand of the smallest frames are a millisecond's work.
pub const READ_BYTES_MAX: usize = 16 * KIB;
/// The first read buffer of a WebSocket codec, which is for what does not come whole.
pub const CODEC_BYTES: usize = KIB;

/// Buffers that are kept for the next session that needs some: as many as are at work in one turn of a busy server.
pub const SPARE_WORKS_MAX: usize = 64;
/// The largest of them that are kept: an SDP with video fits.
pub const SPARE_BYTES_MAX: usize = 8 * KIB;

// ---- One peer ----

/// An id, in bytes of UTF-8: a UUID three times over.
pub const ID_BYTES_MAX: usize = 128;
/// The name of a room, in bytes: a SHA-256 in hexadecimal.
pub const ROOM_BYTES_MAX: usize = 64;
/// Candidates in one `candidates` array, and stored for one peer. A browser gathers ten or twenty.
pub const CANDIDATES_MAX: usize = 64;
/// Bytes of the candidates stored for one peer: a KiB each, five times what a browser writes.
pub const STORED_BYTES_MAX: usize = 64 * KIB;
/// What a claimant of an id sends while the holder is probed, beside its first message.
pub const KEPT_BYTES_MAX: usize = 64 * KIB;
/// The same in messages, because an empty one costs memory too. Well-formed ones fill the bytes before: the
/// shortest has 23.
pub const KEPT_MESSAGES_MAX: usize = KEPT_BYTES_MAX / 16;
/// How long the holder of a claimed id has to show life.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a room waits for an offer or an answer before it asks, or hands the offer to, the next in the line.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `--ice-server` flags. Browsers grow slow from the fifth server on.
pub const ICE_SERVERS_MAX: usize = 8;
/// One of them, in bytes: the longest name of a host, and what is around it.
pub const ICE_SERVER_BYTES_MAX: usize = 300;
/// How long credentials for TURN can be used: a day's work. Who has them longer is told new ones.
pub const TURN_CREDENTIALS_TTL: Duration = Duration::from_secs(12 * 60 * 60);

/// The burst of `--max-rate`, in seconds of it: a peer that has been quiet may send this much at once.
pub const RATE_BURST_SECONDS: u32 = 10;
/// A message counts once for every block of this size that it begins.
pub const RATE_BLOCK_BYTES: usize = 4 * KIB;
/// A sender is told `rate_limited` at most once in this time.
pub const RATE_TOLD_EVERY: Duration = Duration::from_secs(1);
/// A sender that is not over the limit for this long has ended its offence.
pub const RATE_PAUSE: Duration = Duration::from_secs(2);
/// A sender that is over the limit for this long, without such a pause, is closed.
pub const RATE_OFFENCE_MAX: Duration = Duration::from_secs(5);

// ---- The process ----

/// The listen backlog. mio's 128 makes a burst of a thousand connects wait for TCP's retransmission, a second.
/// The kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// The kernel's send buffer of a connection. Unset, Linux hides 4 MB behind a peer that does not read.
pub const SEND_BUFFER_BYTES: usize = 64 * KIB;
/// Connections accepted in one turn of the loop: about a millisecond.
pub const ACCEPTS_PER_TURN: usize = 256;
/// Sessions whose deadlines are looked at, and that are pinged where due, in one turn of the loop.
pub const SWEEP_PER_TURN: usize = 256;
/// How often all deadlines are looked at, and so their precision.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Connections over `--max-connections` that are taken in only to be told 503. Others wait in the backlog.
pub const REFUSED_AT_ONCE: usize = 16;
/// Connections over `--max-connections-per-ip` that are taken in from one place only to be told 429. Others are
/// closed at once.
pub const CROWD_REFUSED_AT_ONCE: usize = 4;
/// Connections of the `--metrics` listener, which has room even when the server is full.
pub const METRICS_AT_ONCE: usize = 4;
/// Descriptors beside the connections: standard streams, epoll, signals, listeners and what a library may open.
pub const DESCRIPTORS_SPARE: usize = REFUSED_AT_ONCE + METRICS_AT_ONCE + 12;
/// What `--max-memory` counts for the program itself, its tables and spare buffers.
pub const BASE_BYTES: usize = 4 * MIB;
/// What it counts for a connection: its peer with the longest names, a room of its own, and what it may always hold.
/// Most take 300 bytes.
pub const CONNECTION_BYTES: usize = 2 * KIB;
/// A head that comes in pieces, or what waits to be sent to a peer, may always be as long as this: a used-up budget
/// disturbs only those who use much of it.
pub const ALWAYS_HELD_BYTES: usize = KIB;
/// Refused upgrades that have a line each in the log in one second. The others are counted in one more.
pub const REFUSALS_LOGGED_MAX: usize = 10;
/// How long connections have to say goodbye when the server stops.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Empty: `[::]:8080`, or `0.0.0.0:8080` where the kernel has no IPv6.
    pub listen: Vec<SocketAddr>,
    /// Pages that may connect besides those of the server's own host.
    pub allow_origins: Vec<Allowed>,
    /// WebSocket connections at a time. Ten thousand idle ones are a few MB.
    pub connections_max: usize,
    /// Connections from one address of IPv4 or one /64 of IPv6; 0 is no limit.
    pub connections_per_ip_max: usize,
    /// Who is believed when it says where a request comes from.
    pub trusted_proxies: Vec<Network>,
    /// Bytes of memory, see [`crate::budget`]; `None` is no limit.
    pub memory_bytes_max: Option<usize>,
    /// Joined peers in one room. In a mesh everybody is connected to everybody: browsers give up before 64.
    pub mesh_peers_max: usize,
    /// Bytes of one incoming message. An offer with video is 5 to 10 KB.
    pub message_bytes_max: usize,
    /// Messages a second from one connection; 0 is no limit.
    pub rate_max: u32,
    /// Silence after which a peer is pinged; after two of them it is closed. Proxies cut idle connections at 55
    /// to 60 s.
    pub ping_interval: Duration,
    /// STUN and TURN servers that peers are told, as URLs of RFC 7064 and RFC 7065.
    pub ice_servers: Vec<String>,
    /// Where the secret is that is shared with the TURN servers.
    pub turn_secret_file: Option<PathBuf>,
    /// What is in that file, once it is read.
    pub turn_secret: Option<Secret>,
    /// Whether to serve the page and the client library.
    pub page: bool,
    /// Where to serve `GET /metrics`, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// How much to log.
    pub log: LevelFilter,
}

/// Something that is shown to nobody.
#[derive(Clone)]
pub struct Secret(pub String);

impl Secret {
    /// What is in a file, without the space around it: editors end the line.
    ///
    /// # Errors
    /// It cannot be read, or is empty.
    pub fn read(file: &Path) -> io::Result<Secret> {
        match std::fs::read_to_string(file)?.trim() {
            "" => Err(io::Error::other("there is nothing in it")),
            secret => Ok(Secret(secret.to_owned())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: Vec::new(),
            allow_origins: Vec::new(),
            connections_max: 10_000,
            connections_per_ip_max: 0,
            trusted_proxies: Vec::new(),
            memory_bytes_max: None,
            mesh_peers_max: 64,
            message_bytes_max: 64 * KIB,
            rate_max: 100,
            ping_interval: Duration::from_secs(25),
            ice_servers: Vec::new(),
            turn_secret_file: None,
            turn_secret: None,
            page: true,
            metrics: None,
            log: LevelFilter::Info,
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum Command {
    /// Serve.
    Run(Config),
    /// Print the help and exit.
    Help,
    /// Print the version and exit.
    Version,
}

impl Config {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// One line that names the flag and what it wants.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
        Self::parse_flags(args).map_err(|error| error.to_string().replace(char::is_control, "?"))
    }

    fn parse_flags(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
        use lexopt::prelude::*;

        let mut config = Config::default();
        let mut parser = lexopt::Parser::from_args(args);
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
                Long("no-page") => config.page = false,
                Long("metrics") => config.metrics = Some(value(&mut parser, "--metrics", address)?),
                Long("log") => config.log = value(&mut parser, "--log", level)?,
                Short('h') | Long("help") => return Ok(Command::Help),
                Short('V') | Long("version") => return Ok(Command::Version),
                _ => return Err(arg.unexpected()),
            }
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
      --no-page              serve neither the page nor /noroshi.js [default: serve them]
      --metrics ADDR         serve GET /metrics there, for Prometheus [default: off]
      --log LEVEL            off, error, warn, info, debug or trace [default: {log}]
  -h, --help                 print this
  -V, --version              print the version
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

    /// Whether this is one of the proxies that are believed.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(ip))
    }

    /// What all connections can use together at worst, in bytes, if there is no `--max-memory`: a full queue, a
    /// message that comes in slowly, an offer that stands, candidates that are stored; or a claim of an id.
    pub fn worst_case_bytes(&self) -> u64 {
        let incoming = 2 * self.message_bytes_max;
        let kept =
            (2 * self.message_bytes_max + STORED_BYTES_MAX).max(self.message_bytes_max + KEPT_BYTES_MAX);
        let each = CONNECTION_BYTES + 2 * self.queue_bytes_max() + incoming + kept;
        // More than a small machine can count to.
        BASE_BYTES as u64 + self.connections_max as u64 * each as u64
    }

    /// What may wait to be sent to one peer, in bytes. Whatever may come in must fit when it goes out: as a
    /// string inside JSON a text grows to twice its size at most, each of its candidates becomes a message that
    /// names the sender, and a `joined` names every peer of the mesh. An id takes less than a KiB.
    pub fn queue_bytes_max(&self) -> usize {
        QUEUE_BYTES_MAX.max(2 * self.message_bytes_max + CANDIDATES_MAX * KIB).max(self.mesh_peers_max * KIB)
    }
}

/// The value of a flag, or an error that names the flag.
fn value<T, E: Display>(
    parser: &mut lexopt::Parser,
    flag: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, lexopt::Error> {
    let value = lexopt::ValueExt::string(parser.value()?)?;
    read(&value).map_err(|error| format!("{flag} {value}: {error}").into())
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

/// A number of bytes for people, rounded up: `64K`, `6.1G`.
pub struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let units = [(GIB, "G"), (MIB, "M"), (KIB, "K")].map(|(unit, letter)| (unit as u64, letter));
        let (unit, letter) = units.into_iter().find(|(unit, _)| self.0 >= *unit).unwrap_or((1, ""));
        let tenths = (10 * self.0).div_ceil(unit);
        match tenths % 10 {
            0 => write!(f, "{}{letter}", tenths / 10),
            tenth => write!(f, "{}.{tenth}{letter}", tenths / 10),
        }
    }
}

fn level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "not one of off, error, warn, info, debug, trace")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Config::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_flag() {
        let line = "-l 127.0.0.1:1 --listen [::1]:2 --allow-origin https://a.example --allow-origin=* \
            --max-connections 3 --max-connections-per-ip 9 --trust-proxy 10.0.0.0/8 --trust-proxy ::1 \
            --max-memory 1G --max-mesh-peers 4 --max-message 5k --max-rate 0 --ping-interval 7 \
            --ice-server stun:a.example --ice-server=turn:b.example --turn-secret-file /etc/secret --no-page \
            --metrics 127.0.0.1:8 --log debug";
        let Ok(Command::Run(config)) = parse(line) else { panic!("{line}") };
        assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        assert_eq!(
            config.allow_origins,
            ["https://a.example", "*"].map(|text| Allowed::parse(text).unwrap())
        );
        assert_eq!((config.connections_max, config.mesh_peers_max), (3, 4));
        assert_eq!((config.connections_per_ip_max, config.memory_bytes_max), (9, Some(1 << 30)));
        assert_eq!(config.trusted_proxies, ["10.0.0.0/8", "::1"].map(|text| Network::parse(text).unwrap()));
        assert_eq!((config.message_bytes_max, config.rate_max), (5 * 1024, 0));
        assert_eq!(config.ping_interval, Duration::from_secs(7));
        assert_eq!(config.ice_servers, ["stun:a.example", "turn:b.example"]);
        assert_eq!(config.turn_secret_file, Some("/etc/secret".into()));
        assert!(!config.page);
        assert_eq!(config.metrics, Some("127.0.0.1:8".parse().unwrap()));
        assert_eq!(config.log, LevelFilter::Debug);
    }

    #[test]
    fn ice_servers() {
        for url in [
            "stun:stun.example",
            "stuns:stun.example:5349",
            "turn:192.0.2.1",
            "turn:[2001:db8::1]:3478?transport=tcp",
            "turns:[2001:db8::1]",
            "turn:turn_1.example?transport=udp",
        ] {
            assert_eq!(ice_server(url), Ok(url.to_owned()));
        }
        for url in [
            "",
            "stun",
            "stun:",
            "stun:?transport=udp",
            "STUN:a.example",
            "http://a.example",
            "stun://a.example",
            "turn:user@a.example",
            "stun:a.example:",
            "stun:a.example:0",
            "stun:a.example:+1",
            "stun:a.example:65536",
            "stun:a.example?transport=udp",
            "turn:a.example?transport=tls",
            "turn:2001:db8::1",
            "turn:[2001:db8::1",
            "turn:[a.example]",
            "turn:a b",
            &format!("stun:{}", "x".repeat(300)),
        ] {
            assert!(ice_server(url).is_err(), "{url}");
        }
        let nine = "--ice-server stun:a.example ".repeat(9);
        assert_eq!(parse(&nine).unwrap_err(), "--ice-server: at most 8");
        assert_eq!(
            parse("--ice-server turn:a.example").unwrap_err(),
            "--ice-server turn:a.example: needs --turn-secret-file"
        );
        assert!(parse("--turn-secret-file /x --ice-server stun:a.example").is_err());
    }

    #[test]
    fn a_secret_is_shown_to_nobody() {
        let turn_secret = Some(Secret("open sesame".to_owned()));
        assert!(!format!("{:?}", Config { turn_secret, ..Config::default() }).contains("sesame"));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1024", 1024), ("64K", 65_536), ("1M", 1 << 20), ("16m", 16 << 20)] {
            assert_eq!(size(text, KIB, 16 * MIB), Ok(bytes));
        }
        for text in ["", "K", "1023", "17M", "1G", "-1K", "1.5K", "99999999999999999999K"] {
            assert!(size(text, KIB, 16 * MIB).is_err(), "{text}");
        }
        for (bytes, text) in [(0, "0"), (1023, "1023"), (65_536, "64K"), (65_537, "64.1K"), (3 << 29, "1.5G")]
        {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag_in_one_line() {
        assert_eq!(parse("--max-rate x").unwrap_err(), "--max-rate x: not a whole number from 0 to 1000000");
        assert!(!Config::parse([OsString::from("--x\ny")]).unwrap_err().contains('\n'));
    }
}
