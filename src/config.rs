//! Configuration: the values that flags and environment variables set.
//!
//! Limits without a flag are in [`crate::limits`]. `flags` parses the command line, `environment` the variables.

use std::fmt::{self, Display};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::http::address::{Address, Network};
use crate::http::origin::AllowedOrigin;
use crate::http::token::{self, Secrets};
use crate::limits::{
    BASE_BYTES, BURST_BYTES_PER_CREDIT, CANDIDATES_MAX, CONNECTION_BYTES, CONTROL_QUEUE_BYTES_MAX, GIB, KIB,
    LARGE_QUEUE_BYTES_MAX_FLOOR, MIB, QUEUE_BURST_BYTES_CEILING, QUEUE_BURST_BYTES_FLOOR,
    QUEUE_BYTES_MAX_FLOOR, QUEUE_BYTES_RESERVE, RATE_BURST_SECONDS, READ_BYTES_MAX, STORED_BYTES_MAX,
};

mod endpoint;
mod environment;
mod flags;
mod secret_file;
mod values;

pub use endpoint::Endpoint;
pub use flags::{Command, HealthCheck, TokenRequest};

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses to listen on. Empty: [`Config::port`] of `[::]`, or of `0.0.0.0` if the kernel has no IPv6.
    pub listen: Vec<ListenAddress>,
    /// The port of the default address.
    pub port: u16,
    /// Origins whose pages may connect. Pages of the server's own host may always connect.
    pub allow_origins: Vec<AllowedOrigin>,
    /// Concurrent WebSocket connections. Ten thousand idle ones use a few MB of memory.
    pub connections_max: usize,
    /// Connections from one IPv4 address or one IPv6 /64. 0: no limit.
    pub connections_per_ip_max: usize,
    /// Proxies whose reports of client addresses are trusted.
    pub trusted_proxies: Vec<Network>,
    /// The only header in which a trusted proxy reports the client's address. `None`: `X-Forwarded-For`, then `X-Real-IP`.
    pub client_ip_header: Option<String>,
    /// The memory limit in bytes, see [`crate::memory_budget`]. `None`: no limit.
    pub memory_bytes_max: Option<usize>,
    /// Joined peers in one room. In a mesh each peer connects to all others, and browsers reach their limit before 64.
    pub mesh_peers_max: usize,
    /// Bytes of one incoming message. An offer with video has 5 to 10 KB.
    pub message_bytes_max: usize,
    /// Credits a second of one connection: one for a message up to 4 KiB, see [`crate::rate_limit`]. 0: no limit.
    ///
    /// A browser that joins a full mesh sends 63 offers of two credits each, and 15 candidates for each offer: 1,071
    /// credits. The burst of ten seconds allows about twice as much.
    pub rate_max: u32,
    /// Time without input after which a peer is pinged. After two of these intervals the connection is closed.
    ///
    /// It is shorter than the idle timeout of proxies, which is 55 to 60 s.
    pub ping_interval: Duration,
    /// STUN and TURN servers that clients receive, as URLs of RFC 7064 and RFC 7065.
    pub ice_servers: Vec<String>,
    /// The file with the secret that the TURN servers share.
    pub turn_secret_file: Option<PathBuf>,
    /// The content of that file, after [`Config::read_secret_files`].
    pub turn_secret: Option<Secret>,
    /// The file with the secrets that sign tokens. `None`: clients need no token.
    pub token_secret_file: Option<PathBuf>,
    /// The content of that file, after [`Config::read_secret_files`].
    pub token_secrets: Option<Secrets>,
    /// The protocols that flags mount, each with its path. Empty path: its rooms are at the top level. Protocols that are
    /// always on are not listed.
    pub mounts: Vec<(&'static Endpoint, String)>,
    /// Time for which existing rooms are served after SIGTERM.
    pub drain: Duration,
    /// Whether the pages and the client library are served.
    pub page: bool,
    /// The address of the operator listener, for `/metrics` and `/rooms`. `None`: it is off.
    pub metrics: Option<SocketAddr>,
    /// Names with dots that the operator listener accepts as `Host`.
    pub metrics_hosts: Vec<String>,
    /// The log level.
    pub log: LevelFilter,
}

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix domain socket.
    Unix(PathBuf),
}

impl Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A secret. Its `Debug` output hides the text.
#[derive(Clone)]
pub struct Secret(pub String);

impl Secret {
    /// Reads a secret from a file.
    ///
    /// A byte order mark at the beginning and whitespace at both ends are removed, because editors write both.
    ///
    /// # Errors
    /// The file cannot be read, is not UTF-8, or is empty.
    pub fn read(file: &Path) -> io::Result<Secret> {
        let content = secret_file::read(file)?;
        let content = token::strip_byte_order_mark(&content).map_err(io::Error::other)?;
        let Ok(text) = std::str::from_utf8(content) else {
            return Err(io::Error::other("expected text in UTF-8, got other bytes"));
        };
        match text.trim() {
            "" => Err(io::Error::other("expected a secret, got an empty file")),
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
            mounts: Vec::new(),
            drain: Duration::ZERO,
            page: true,
            metrics: None,
            metrics_hosts: Vec::new(),
            log: LevelFilter::Info,
        }
    }
}

impl Config {
    /// Reads the secret files that flags name.
    ///
    /// # Errors
    /// One line that names the flag and the file, and says what was expected.
    pub fn read_secret_files(&mut self) -> Result<(), String> {
        if let Some(file) = &self.turn_secret_file {
            let secret =
                Secret::read(file).map_err(|error| format!("--turn-secret-file {file:?}: {error}"))?;
            self.turn_secret = Some(secret);
        }
        if let Some(file) = &self.token_secret_file {
            let secrets =
                read_token_secrets(file).map_err(|error| format!("--token-secret-file {file:?}: {error}"))?;
            self.token_secrets = Some(secrets);
        }
        Ok(())
    }

    /// Returns the path at which a protocol is served. `None`: it is off.
    pub fn path_of(&self, endpoint: &Endpoint) -> Option<&str> {
        if endpoint.is_always_on {
            return Some(endpoint.default_path);
        }
        let mount = self.mounts.iter().find(|(mounted, _)| mounted.name == endpoint.name);
        mount.map(|(_, path)| path.as_str())
    }

    /// Mounts a protocol at a path, and at no other.
    pub fn mount(&mut self, endpoint: &'static Endpoint, path: String) {
        self.mounts.retain(|(mounted, _)| mounted.name != endpoint.name);
        self.mounts.push((endpoint, path));
    }

    /// Returns whether the peer at this address is a trusted proxy.
    ///
    /// Only a proxy connects to a Unix domain socket.
    pub fn is_trusted_proxy(&self, address: Address) -> bool {
        if address == Address::UNIX {
            return true;
        }
        self.trusted_proxies.iter().any(|network| network.contains(address.ip()))
    }

    /// Returns the memory that all connections can use together without `--max-memory`.
    ///
    /// In bytes. The sum for each connection has a full outbound queue, an incomplete message, input that waits for the
    /// next iteration, an offer and stored candidates, and what the protocol with the largest storage may store. A buffer that
    /// grows can have twice the capacity that it needs.
    pub fn worst_case_bytes(&self) -> u64 {
        let has_large_queues = self.mounts.iter().any(|(endpoint, _)| endpoint.has_large_queues);
        let queue =
            self.queue_bytes_max(has_large_queues) + QUEUE_BYTES_RESERVE + self.queue_bytes_burst_max();
        // In a large queue, a small frame that is shared takes up to four times its bytes.
        let factor = if has_large_queues { 4 } else { 2 };
        let outgoing = factor * queue + CONTROL_QUEUE_BYTES_MAX;
        let incoming = 2 * self.message_bytes_max + READ_BYTES_MAX;
        let stored = 2 * self.message_bytes_max + 2 * STORED_BYTES_MAX;
        let further = self.mounts.iter().map(|(endpoint, _)| endpoint.stored_bytes_max).max().unwrap_or(0);
        let each = CONNECTION_BYTES + outgoing + incoming + stored + further;
        // The sum can exceed the `usize` of a 32-bit machine.
        BASE_BYTES as u64 + self.connections_max as u64 * each as u64
    }

    /// Returns the queue space beyond the reserve for messages of the server itself, in bytes. Peers that take bytes may use
    /// it, so that a burst of notices which one sender causes does not disconnect them.
    pub fn queue_bytes_burst_max(&self) -> usize {
        let burst = self.rate_max as usize * RATE_BURST_SECONDS as usize;
        (burst * BURST_BYTES_PER_CREDIT).clamp(QUEUE_BURST_BYTES_FLOOR, QUEUE_BURST_BYTES_CEILING)
    }

    /// Returns the capacity of one outbound queue in bytes.
    ///
    /// Each message that a peer may send fits when it is forwarded. As a string inside JSON, a text grows to at most twice
    /// its size, and each of its candidates becomes a message that names the sender. A `joined` names every peer of the
    /// mesh. An id takes less than 1 KiB. Queues of a protocol with [`Endpoint::has_large_queues`] have a larger minimum.
    pub fn queue_bytes_max(&self, is_large: bool) -> usize {
        let forwarded_message = 2 * self.message_bytes_max + CANDIDATES_MAX * KIB;
        let joined_message = self.mesh_peers_max * KIB;
        let floor = if is_large { LARGE_QUEUE_BYTES_MAX_FLOOR } else { QUEUE_BYTES_MAX_FLOOR };
        floor.max(forwarded_message).max(joined_message)
    }
}

/// Reads the secrets that sign tokens from a file.
///
/// # Errors
/// The file cannot be read, or [`Secrets::parse`] rejects its content.
pub fn read_token_secrets(file: &Path) -> Result<Secrets, String> {
    let content = secret_file::read(file).map_err(|error| error.to_string())?;
    Secrets::parse(&content)
}

/// A number of bytes. `Display` rounds it up to a tenth of a unit: `64K`, `6.1G`.
pub struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (unit, letter) = match self.0 {
            bytes if bytes >= GIB as u64 => (GIB as u64, "G"),
            bytes if bytes >= MIB as u64 => (MIB as u64, "M"),
            bytes if bytes >= KIB as u64 => (KIB as u64, "K"),
            _ => (1, ""),
        };
        let tenths = (10 * self.0).div_ceil(unit);
        let whole = tenths / 10;
        match tenths % 10 {
            0 => write!(f, "{whole}{letter}"),
            fraction => write!(f, "{whole}.{fraction}{letter}"),
        }
    }
}
