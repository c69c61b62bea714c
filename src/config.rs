//! What an operator may choose, and every limit of the program.
//!
//! What has a flag stands in [`Config`], the rest in [`crate::limits`]; each is named with its unit and says why it has
//! the value it has. `flags` reads the command line.

use std::fmt::{self, Display};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::address::{Address, Network};
use crate::origin::AllowedOrigin;
use crate::token::{self, Secrets};

mod environment;
mod flags;
mod secret_file;
mod values;

pub use flags::{Command, Mint, Probe};

pub use crate::limits::*;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Empty: this port of `[::]`, or of `0.0.0.0` where the kernel has no IPv6.
    pub listen: Vec<Listen>,
    /// For that.
    pub port: u16,
    /// Pages that may connect besides those of the server's own host.
    pub allow_origins: Vec<AllowedOrigin>,
    /// WebSocket connections at a time. Ten thousand idle ones are a few MB.
    pub connections_max: usize,
    /// Connections from one address of IPv4 or one /64 of IPv6; 0 is no limit.
    pub connections_per_ip_max: usize,
    /// Who is believed when it says where a request comes from.
    pub trusted_proxies: Vec<Network>,
    /// The only header in which a trusted proxy reports the client's address. `None`: `X-Forwarded-For`, then `X-Real-IP`.
    pub client_ip_header: Option<String>,
    /// Bytes of memory, see [`crate::budget`]; `None` is no limit.
    pub memory_bytes_max: Option<usize>,
    /// Joined peers in one room. In a mesh everybody is connected to everybody: browsers give up before 64.
    pub mesh_peers_max: usize,
    /// Bytes of one incoming message. An offer with video is 5 to 10 KB.
    pub message_bytes_max: usize,
    /// Messages a second from one connection; 0 is no limit. A browser that joins a full mesh sends 63 offers of two
    /// credits each and 15 candidates with each: 1,071 credits, of which the burst of ten seconds is to be twice as much.
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
    /// Where the secrets are that tokens are signed with. Without it nobody needs a token.
    pub token_secret_file: Option<PathBuf>,
    /// What is in that file, once it is read.
    pub token_secrets: Option<Secrets>,
    /// The path at which Ayame's protocol is spoken, if it is.
    pub ayame: Option<String>,
    /// The path before the rooms of matchbox's protocol, if it is spoken. Empty: the rooms are at the top.
    pub matchbox: Option<String>,
    /// How long rooms may go on when the server is told to stop.
    pub drain: Duration,
    /// Whether to serve the page and the client library.
    pub page: bool,
    /// Where to serve `GET /metrics`, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Names with dots that a request at that listener may have as its `Host`.
    pub metrics_hosts: Vec<String>,
    /// How much to log.
    pub log: LevelFilter,
}

/// Where to listen, or where one listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At an address and port.
    Tcp(SocketAddr),
    /// At the socket in a file.
    Unix(PathBuf),
}

impl Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Something that is shown to nobody.
#[derive(Clone)]
pub struct Secret(pub String);

impl Secret {
    /// Reads a file, without the byte order mark before it and the space around it: editors write both.
    ///
    /// # Errors
    /// It cannot be read, is not UTF-8, or is empty.
    pub fn read(file: &Path) -> io::Result<Secret> {
        let content = secret_file::read(file)?;
        let content = token::strip_byte_order_mark(&content).map_err(io::Error::other)?;
        let not_utf8 = |_| io::Error::other("expected text in UTF-8, got other bytes");
        match std::str::from_utf8(content).map_err(not_utf8)?.trim() {
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
            port: 8080,
            allow_origins: Vec::new(),
            connections_max: 10_000,
            connections_per_ip_max: 0,
            trusted_proxies: Vec::new(),
            client_ip_header: None,
            memory_bytes_max: None,
            mesh_peers_max: 64,
            message_bytes_max: 64 * KIB,
            rate_max: 200,
            ping_interval: Duration::from_secs(25),
            ice_servers: Vec::new(),
            turn_secret_file: None,
            turn_secret: None,
            token_secret_file: None,
            token_secrets: None,
            ayame: None,
            matchbox: None,
            drain: Duration::ZERO,
            page: true,
            metrics: None,
            metrics_hosts: Vec::new(),
            log: LevelFilter::Info,
        }
    }
}

impl Config {
    /// Reads the files that flags name.
    ///
    /// # Errors
    /// One line that names the flag and the file, and says what is wrong.
    pub fn read_files(&mut self) -> Result<(), String> {
        let named = |flag: &str, file: &Path, error: String| format!("{flag} {file:?}: {error}");
        if let Some(file) = &self.turn_secret_file {
            let secret =
                Secret::read(file).map_err(|error| named("--turn-secret-file", file, error.to_string()))?;
            self.turn_secret = Some(secret);
        }
        if let Some(file) = &self.token_secret_file {
            let secrets =
                read_token_secrets(file).map_err(|error| named("--token-secret-file", file, error))?;
            self.token_secrets = Some(secrets);
        }
        Ok(())
    }

    /// Whether this is one of the proxies that are believed. At the socket of a file there is nobody else.
    pub fn trusts(&self, address: Address) -> bool {
        address == Address::UNIX || self.trusted_proxies.iter().any(|network| network.contains(address.ip()))
    }

    /// Returns what all connections can use together at worst, in bytes, if there is no `--max-memory`. For each: a full
    /// queue, a message that comes in slowly, input that waits for the next turn, an offer and stored candidates. Buffers
    /// that grow may come to have twice the room they need.
    pub fn worst_case_bytes(&self) -> u64 {
        let outgoing = 2 * (self.queue_bytes_max() + QUEUE_BYTES_RESERVE) + CONTROL_BYTES_MAX;
        let incoming = 2 * self.message_bytes_max + READ_BYTES_MAX;
        let stored = 2 * self.message_bytes_max + 2 * STORED_BYTES_MAX;
        let each = CONNECTION_BYTES + outgoing + incoming + stored;
        // The sum is more than a small machine can count to.
        BASE_BYTES as u64 + self.connections_max as u64 * each as u64
    }

    /// What may wait to be sent to one peer, in bytes. Whatever may come in must fit when it goes out: as a
    /// string inside JSON a text grows to twice its size at most, each of its candidates becomes a message that
    /// names the sender, and a `joined` names every peer of the mesh. An id takes less than a KiB.
    pub fn queue_bytes_max(&self) -> usize {
        QUEUE_BYTES_MAX.max(2 * self.message_bytes_max + CANDIDATES_MAX * KIB).max(self.mesh_peers_max * KIB)
    }
}

/// The secrets for tokens that are in a file.
///
/// # Errors
/// It cannot be read, or is not as [`Secrets::parse`] wants it.
pub fn read_token_secrets(file: &Path) -> Result<Secrets, String> {
    Secrets::parse(&secret_file::read(file).map_err(|error| error.to_string())?)
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
