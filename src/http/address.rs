//! Peer addresses, networks (CIDR), and the number of connections per address.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address of a peer, with IPv4 mapped into IPv6.
///
/// It takes 18 bytes, where `SocketAddr` takes 32; every session has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    ip: Ipv6Addr,
    /// 0 if unknown: a proxy has reported the address.
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address { ip: to_ipv6(address.ip()), port: address.port() }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Address {
        Address { ip: to_ipv6(ip), port: 0 }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if *self == Address::UNIX {
            return f.write_str("a local socket");
        }
        match self.port {
            0 => self.ip().fmt(f),
            port => SocketAddr::new(self.ip(), port).fmt(f),
        }
    }
}

impl Address {
    /// The address of every peer that connects to a Unix socket.
    ///
    /// No TCP connection has it, because none comes from `::`.
    pub const UNIX: Address = Address { ip: Ipv6Addr::UNSPECIFIED, port: 1 };

    /// Returns the IP address, with a mapped IPv4 address as IPv4.
    pub fn ip(&self) -> IpAddr {
        self.ip.to_canonical()
    }

    /// Returns the key under which connections of this host are counted.
    ///
    /// It is the whole IPv4 address, but only the /64 prefix of an IPv6 address, because one host owns a whole /64.
    fn host_key(&self) -> u128 {
        match self.ip() {
            IpAddr::V4(_) => self.ip.to_bits(),
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        }
    }
}

fn to_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// A range of addresses with a common prefix (CIDR, RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address before the `/`, as IPv6.
    address: u128,
    /// The length of the prefix in bits, counted in an IPv6 address.
    prefix_bits: u32,
}

impl Network {
    /// Parses `ADDRESS/BITS`, or an address alone.
    pub fn parse(text: &str) -> Option<Network> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        // A mapped IPv4 address occupies the last 32 bits of 128.
        let (address_bits, mapping_bits) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix_bits = bits.unwrap_or(address_bits).checked_add(mapping_bits)?;
        if prefix_bits > 128 {
            return None;
        }
        Some(Network { address: to_ipv6(ip).to_bits(), prefix_bits })
    }

    /// Returns whether the network contains this address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let difference = self.address ^ to_ipv6(ip).to_bits();
        // A prefix of 0 bits contains every address; a shift by 128 overflows.
        difference.checked_shr(128 - self.prefix_bits).unwrap_or(0) == 0
    }
}

/// Counts connections per host, for `--max-connections-per-ip`.
///
/// Nothing is counted if there is no limit.
pub struct PerIpCounts {
    connections_max: usize,
    counts: HashMap<u128, usize>,
}

impl PerIpCounts {
    /// Creates counts with a limit per host; 0 is no limit.
    pub fn new(connections_max: usize) -> PerIpCounts {
        PerIpCounts { connections_max, counts: HashMap::new() }
    }

    /// Counts a new connection.
    pub fn add(&mut self, address: Address) {
        if self.connections_max > 0 {
            *self.counts.entry(address.host_key()).or_default() += 1;
        }
    }

    /// Stops counting a connection that has ended.
    pub fn remove(&mut self, address: Address) {
        let key = address.host_key();
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }

    /// Returns the number of connections over the limit of this host.
    pub fn excess(&self, address: Address) -> usize {
        let count = self.counts.get(&address.host_key());
        count.map_or(0, |count| count.saturating_sub(self.connections_max))
    }

    /// Returns the number of hosts with connections.
    pub fn hosts(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn network_contains_addresses_with_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("0.0.0.0/0", "203.0.113.7", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1", "::2"),
        ] {
            let network = Network::parse(network).expect(network);
            assert!(network.contains(ip(inside)), "{network:?} {inside}");
            assert!(!network.contains(ip(outside)), "{network:?} {outside}");
        }
        assert!(Network::parse("::/0").unwrap().contains(ip("203.0.113.7")));
        for text in [
            "",
            "/8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/-1",
            "10.0.0/8",
            "a",
            "10.0.0.0/8/8",
            "10.0.0.0/4294967200",
        ] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn connections_are_counted_by_ipv4_address_or_ipv6_64() {
        let mut counts = PerIpCounts::new(1);
        let address = |text: &str| Address::from(ip(text));
        for (first, same, other) in [
            ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8:0:0:ffff::9", "2001:db8:0:1::1"),
        ] {
            counts.add(address(first));
            assert_eq!(counts.excess(address(first)), 0);
            counts.add(address(same));
            assert_eq!((counts.excess(address(first)), counts.excess(address(other))), (1, 0));
            counts.remove(address(same));
            counts.remove(address(first));
        }
        assert_eq!(counts.hosts(), 0);
        let mut unlimited = PerIpCounts::new(0);
        unlimited.add(address("::1"));
        assert_eq!((unlimited.hosts(), unlimited.excess(address("::1"))), (0, 0));
    }

    #[test]
    fn addresses_are_displayed_in_canonical_form() {
        let socket = |text: &str| Address::from(text.parse::<SocketAddr>().unwrap()).to_string();
        assert_eq!(socket("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
        assert_eq!(socket("[2001:db8::1]:80"), "[2001:db8::1]:80");
        assert_eq!(Address::from(ip("192.0.2.1")).to_string(), "192.0.2.1");
        assert_eq!(Address::UNIX.to_string(), "a local socket");
        assert_ne!(Address::from(ip("::")), Address::UNIX, "a proxy may report ::");
        assert_eq!(size_of::<Address>(), 18);
    }
}
