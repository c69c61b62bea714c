//! Reads the client address that trusted proxies report.

use std::net::{IpAddr, SocketAddr};

use super::Request;
use crate::config::{Config, ORIGIN_LOGGED_MAX};

/// The header to which each proxy appends the address of the peer that it serves.
const FORWARDED_FOR: &str = "X-Forwarded-For";
/// A header that holds one address. nginx configurations set it by convention.
const REAL_IP: &str = "X-Real-IP";

impl Request<'_> {
    /// Returns the client address that a trusted proxy reports, or `None` if the proxy reports none.
    ///
    /// With `--client-ip-header` only that header is read, else `X-Forwarded-For` and, without it, `X-Real-IP`.
    ///
    /// # Errors
    /// The header is there, but the client's address in it is not readable. The request must be refused then: otherwise
    /// a client could evade the limit of its address by sending a malformed header. Returns the name of the header
    /// and its value, escaped for the log.
    pub(super) fn client_address(&self, config: &Config) -> Result<Option<IpAddr>, UnreadableAddress> {
        let name = match &config.client_ip_header {
            Some(name) => name,
            None if self.values(FORWARDED_FOR).next().is_some() => FORWARDED_FOR,
            None => REAL_IP,
        };
        if self.values(name).next().is_none() {
            return Ok(None);
        }
        let address = if name.eq_ignore_ascii_case(FORWARDED_FOR) {
            let hops = self.values(name).flat_map(|value| value.split(|byte| *byte == b','));
            last_untrusted_hop(hops, config)
        } else {
            self.only_value(name).and_then(parse_hop)
        };
        match address {
            Some(address) => Ok(Some(address)),
            None => {
                let value: String = self.joined_values(name).chars().take(ORIGIN_LOGGED_MAX).collect();
                Err(UnreadableAddress { header: name.to_owned(), value })
            }
        }
    }
}

/// A header of a trusted proxy in which the client's address is not readable.
pub(super) struct UnreadableAddress {
    /// The name of the header.
    pub(super) header: String,
    /// The value, shortened. Not escaped.
    pub(super) value: String,
}

/// Returns the last hop that is no trusted proxy, or the first hop if all are trusted.
///
/// Each proxy appends a hop, and the client chooses what is before those. So the hops are read from the right, one by
/// one: a malformed hop of the client cannot hide the hops behind it. `None`: the hop that counts is no address.
fn last_untrusted_hop<'a>(hops: impl Iterator<Item = &'a [u8]>, config: &Config) -> Option<IpAddr> {
    let hops: Vec<&[u8]> = hops.collect();
    let mut last = None;
    for hop in hops.into_iter().rev() {
        let address = parse_hop(hop)?;
        last = Some(address);
        if !config.trusts(address.into()) {
            break;
        }
    }
    last
}

/// Parses an address as proxies write it: with or without a port, and in brackets if it is IPv6 with one.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let without_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address: IpAddr = match without_brackets {
        Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.into(),
        None => match text.parse() {
            Ok(address) => address,
            Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(address.to_canonical())
}
