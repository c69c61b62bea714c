//! What the values of flags may be. Each is read, or the error says what was expected: `flags` puts the name of the flag
//! before it, and the value behind it.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::flags::Probe;
use super::{
    GIB, HEADER_NAME_BYTES_MAX, HOST_NAME_BYTES_MAX, ICE_SERVER_BYTES_MAX, ID_BYTES_MAX, KIB, Listen, MIB,
    Size,
};
use crate::address::Network;
use crate::id;
use crate::paths;

pub(super) fn probe(url: &str) -> Result<Probe, &'static str> {
    let read = || {
        if let Some(path) = url.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Some(unix_probe(path.into()));
        }
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.rsplit_once(':')?;
        let is_fine =
            !host.is_empty() && port.parse::<u16>().is_ok() && url.bytes().all(|b| b.is_ascii_graphic());
        let path = if path.is_empty() { paths::HEALTH } else { path };
        is_fine.then(|| Probe { socket: None, authority: authority.to_owned(), path: path.to_owned() })
    };
    read().ok_or("a URL such as http://127.0.0.1:8080/healthz, or unix:PATH")
}

/// Returns the health check at the socket in a file.
pub(super) fn unix_probe(socket: PathBuf) -> Probe {
    let (authority, path) = ("localhost".to_owned(), paths::HEALTH.to_owned());
    Probe { socket: Some(socket), authority, path }
}

pub(super) fn peer_id(text: &str) -> Result<String, String> {
    if id::is_valid(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("an id of 1 to {ID_BYTES_MAX} bytes without control characters"))
    }
}

/// `90s`, `5m`, `1h` or `7d`.
pub(super) fn time(text: &str) -> Result<Duration, &'static str> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let read = |(letter, unit)| Some(text.strip_suffix(letter)?.parse::<u32>().ok()? as u64 * unit);
    let seconds = units.into_iter().find_map(read).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or("a time such as 90s, 5m, 1h or 7d")
}

/// Reads a path at which another protocol can be served.
pub(super) fn mount(path: &str) -> Result<String, String> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~-".contains(&byte);
    if let Some(own) = paths::find_conflict(path) {
        return Err(format!("a path such as /signaling that the server does not use itself (it uses {own})"));
    }
    if path.starts_with('/') && !path.ends_with('/') && path.bytes().all(is_fine) {
        Ok(path.to_owned())
    } else {
        Err("a path such as /signaling, of A-Z a-z 0-9 . _ ~ - and /, without a slash at its end".to_owned())
    }
}

pub(super) fn prefix_of_rooms(prefix: &str) -> Result<String, String> {
    if prefix == "/" { Ok(String::new()) } else { mount(prefix) }
}

pub(super) fn listen(text: &str) -> Result<Listen, &'static str> {
    match text.strip_prefix("unix:") {
        Some("") => Err("the path of a socket after unix:"),
        Some(path) => Ok(Listen::Unix(path.into())),
        None => address(text).map(Listen::Tcp),
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and port, such as 127.0.0.1:8080 or [::]:8080")
}

pub(super) fn network(text: &str) -> Result<Network, &'static str> {
    Network::parse(text).ok_or("an address or a network, such as 127.0.0.1 or 10.0.0.0/8")
}

/// Reads the name of a header that holds a client's address (a token of RFC 9110 section 5.6.2).
pub(super) fn client_ip_header(name: &str) -> Result<String, &'static str> {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = (1..=HEADER_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_token_byte);
    // Forwarded has another syntax (RFC 7239), which is not read.
    if is_name && !name.eq_ignore_ascii_case("Forwarded") {
        Ok(name.to_owned())
    } else {
        Err("the name of a header that holds an address, such as X-Real-IP, and not Forwarded")
    }
}

/// Reads the name of a host.
pub(super) fn host_name(name: &str) -> Result<String, &'static str> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=HOST_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) {
        Ok(name.to_owned())
    } else {
        Err("the name of a host, such as metrics.example.com, without a port")
    }
}

/// A URL of RFC 7064 or RFC 7065. Browsers refuse to connect at all when one of them is wrong.
pub(super) fn ice_server(text: &str) -> Result<String, &'static str> {
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
    is_one().ok_or(
        "stun:HOST, stuns:HOST, turn:HOST or turns:HOST, with :PORT and, for TURN, ?transport=tcp if need be",
    )
}

pub(super) fn within<N>(text: &str, min: N, max: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(number) if (&min..=&max).contains(&&number) => Ok(number),
        _ => Err(format!("a whole number from {min} to {max}")),
    }
}

pub(super) fn size(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let units = [(['K', 'k'], KIB), (['M', 'm'], MIB), (['G', 'g'], GIB)];
    let unit = units.iter().find_map(|(letters, unit)| Some((text.strip_suffix(letters)?, *unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    bytes
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| format!("a size from {} to {}", Size(min as u64), Size(max as u64)))
}

pub(super) fn level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug, trace")
}
