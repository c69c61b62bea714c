//! Parsers of the values of flags.
//!
//! Each returns the value, or the noun phrase that follows "expected" in the error. `flags` adds the name of the flag and
//! the text that was given.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::flags::HealthCheck;
use super::{ListenAddress, Size};
use crate::http::address::Network;
use crate::http::paths;
use crate::id;
use crate::limits::{
    GIB, HEADER_NAME_BYTES_MAX, HOST_NAME_BYTES_MAX, ICE_SERVER_BYTES_MAX, ID_BYTES_MAX, KIB, MIB,
};

/// Parses the URL of a health check, or `unix:PATH`.
pub(super) fn health_check(url: &str) -> Result<HealthCheck, &'static str> {
    const EXPECTED: &str = "a URL such as http://127.0.0.1:8080/healthz, or unix:PATH";
    if let Some(path) = url.strip_prefix("unix:") {
        return if path.is_empty() { Err(EXPECTED) } else { Ok(unix_health_check(path.into())) };
    }
    http_health_check(url).ok_or(EXPECTED)
}

fn http_health_check(url: &str) -> Option<HealthCheck> {
    let rest = url.strip_prefix("http://")?;
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let (host, port) = authority.rsplit_once(':')?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return None;
    }
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let path = if path.is_empty() { paths::HEALTH } else { path };
    Some(HealthCheck { socket: None, authority: authority.to_owned(), path: path.to_owned() })
}

/// Returns the health check of a server that listens on a Unix domain socket.
pub(super) fn unix_health_check(socket: PathBuf) -> HealthCheck {
    HealthCheck { socket: Some(socket), authority: "localhost".to_owned(), path: paths::HEALTH.to_owned() }
}

pub(super) fn peer_id(text: &str) -> Result<String, String> {
    if id::is_valid(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("an id of 1 to {ID_BYTES_MAX} bytes without control characters"))
    }
}

/// Parses a duration with a unit: `90s`, `5m`, `1h` or `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a time such as 90s, 5m, 1h or 7d";
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    for (letter, unit_seconds) in UNITS {
        let Some(digits) = text.strip_suffix(letter) else { continue };
        return match digits.parse::<u32>() {
            Ok(number) if number > 0 => Ok(Duration::from_secs(u64::from(number) * unit_seconds)),
            _ => Err(EXPECTED),
        };
    }
    Err(EXPECTED)
}

/// Parses the address of a listener: an address and a port, or `unix:PATH`.
pub(super) fn listen_address(text: &str) -> Result<ListenAddress, &'static str> {
    match text.strip_prefix("unix:") {
        Some("") => Err("the path of a socket after unix:"),
        Some(path) => Ok(ListenAddress::Unix(path.into())),
        None => socket_address(text).map(ListenAddress::Tcp),
    }
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and port, such as 127.0.0.1:8080 or [::]:8080")
}

pub(super) fn network(text: &str) -> Result<Network, &'static str> {
    Network::parse(text).ok_or("an address or a network, such as 127.0.0.1 or 10.0.0.0/8")
}

/// Parses the name of the header that holds a client's address.
///
/// It is a token of RFC 9110 section 5.6.2, and not `Forwarded`, which has another syntax (RFC 7239).
pub(super) fn client_ip_header(name: &str) -> Result<String, &'static str> {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let has_valid_length = (1..=HEADER_NAME_BYTES_MAX).contains(&name.len());
    let is_header_name = has_valid_length && name.bytes().all(is_token_byte);
    if is_header_name && !name.eq_ignore_ascii_case("Forwarded") {
        Ok(name.to_owned())
    } else {
        Err("the name of a header that holds an address, such as X-Real-IP, and not Forwarded")
    }
}

pub(super) fn host_name(name: &str) -> Result<String, &'static str> {
    let has_valid_length = (1..=HOST_NAME_BYTES_MAX).contains(&name.len());
    if has_valid_length && name.bytes().all(is_host_name_byte) {
        Ok(name.to_owned())
    } else {
        Err("the name of a host, such as metrics.example.com, without a port")
    }
}

fn is_host_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

/// Parses the URL of a STUN or TURN server (RFC 7064, RFC 7065).
///
/// Browsers refuse all connections if one of the URLs is malformed.
pub(super) fn ice_server(url: &str) -> Result<String, &'static str> {
    if url.len() <= ICE_SERVER_BYTES_MAX && is_ice_server(url) {
        Ok(url.to_owned())
    } else {
        Err(
            "stun:HOST, stuns:HOST, turn:HOST or turns:HOST, with :PORT and, for TURN, ?transport=tcp if need be",
        )
    }
}

fn is_ice_server(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once(':') else { return false };
    let authority = match scheme {
        "stun" | "stuns" => rest,
        "turn" | "turns" => without_transport(rest),
        _ => return false,
    };
    match authority.rsplit_once(':') {
        // The last colon of an IPv6 address in brackets is not that of a port.
        Some((host, port)) if !port.ends_with(']') => is_ice_host(host) && is_port(port),
        _ => is_ice_host(authority),
    }
}

fn without_transport(authority: &str) -> &str {
    let udp = authority.strip_suffix("?transport=udp");
    let tcp = authority.strip_suffix("?transport=tcp");
    udp.or(tcp).unwrap_or(authority)
}

fn is_port(text: &str) -> bool {
    // `parse` accepts a sign.
    let has_only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    has_only_digits && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_ice_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(is_host_name_byte),
    }
}

/// Parses a whole number between two bounds, inclusive.
pub(super) fn number_within<N>(text: &str, min: N, max: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(number) if number >= min && number <= max => Ok(number),
        _ => Err(format!("a whole number from {min} to {max}")),
    }
}

/// Parses a number of bytes between two bounds, inclusive. The suffix K, M or G multiplies it by a power of 1,024.
pub(super) fn size_within(text: &str, min: usize, max: usize) -> Result<usize, String> {
    match parse_size(text) {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!("a size from {} to {}", Size(min as u64), Size(max as u64))),
    }
}

fn parse_size(text: &str) -> Option<usize> {
    const UNITS: [([char; 2], usize); 3] = [(['K', 'k'], KIB), (['M', 'm'], MIB), (['G', 'g'], GIB)];
    for (letters, unit) in UNITS {
        if let Some(digits) = text.strip_suffix(letters) {
            return digits.parse::<usize>().ok()?.checked_mul(unit);
        }
    }
    text.parse().ok()
}

pub(super) fn log_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug, trace")
}
