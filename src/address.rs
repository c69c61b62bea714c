//! Where peers are: addresses, networks, and how many connections come from one place.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address of a peer, in eighteen bytes; a `SocketAddr` takes thirty-two. IPv4 is mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    ip: Ipv6Addr,
    /// 0: unknown, because a proxy has named the address.
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address { ip: mapped(address.ip()), port: address.port() }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Address {
        Address { ip: mapped(ip), port: 0 }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.ip(), self.port) {
            _ if *self == Address::UNIX => f.write_str("a local socket"),
            (ip, 0) => ip.fmt(f),
            (ip, port) => SocketAddr::new(ip, port).fmt(f),
        }
    }
}

impl Address {
    /// Of all who connect to the socket in a file. Nobody else can be there, as no connection comes from `::`.
    pub const UNIX: Address = Address { ip: Ipv6Addr::UNSPECIFIED, port: 1 };

    /// Without the port.
    pub fn ip(&self) -> IpAddr {
        self.ip.to_canonical()
    }

    /// Whom an address stands for: one host of IPv4, but a /64 of IPv6, of which a host has all addresses.
    fn place(&self) -> u128 {
        match self.ip() {
            IpAddr::V4(_) => self.ip.to_bits(),
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        }
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// The addresses that share a prefix (CIDR, RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: u128,
    /// Bits of the prefix, in an IPv6 address.
    bits: u32,
}

impl Network {
    /// Reads `ADDRESS/BITS`, or an address alone.
    pub fn parse(text: &str) -> Option<Network> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let (length, before) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        let bits = bits.unwrap_or(length).checked_add(before)?;
        (bits <= 128).then(|| Network { first: mapped(ip).to_bits(), bits })
    }

    /// Whether it has this address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let differ = self.first ^ mapped(ip).to_bits();
        differ.checked_shr(128 - self.bits).unwrap_or(0) == 0
    }
}

/// How many connections come from each place. Nothing is counted where there is no limit.
pub struct PerIpCounts {
    max: usize,
    counts: HashMap<u128, usize>,
}

impl PerIpCounts {
    /// At most so many from one place; 0 is no limit.
    pub fn new(max: usize) -> PerIpCounts {
        PerIpCounts { max, counts: HashMap::new() }
    }

    /// Counts a connection.
    pub fn enter(&mut self, address: Address) {
        if self.max > 0 {
            *self.counts.entry(address.place()).or_default() += 1;
        }
    }

    /// A connection that was counted is gone.
    pub fn leave(&mut self, address: Address) {
        if let Some(count) = self.counts.get_mut(&address.place()) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&address.place());
            }
        }
    }

    /// By how many more than allowed there are in the place of this address.
    pub fn excess(&self, address: Address) -> usize {
        self.counts.get(&address.place()).map_or(0, |count| count.saturating_sub(self.max))
    }

    /// How many places there are connections from.
    pub fn places(&self) -> usize {
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
    fn networks() {
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
    fn a_crowd_is_counted_by_host_or_64() {
        let mut crowd = PerIpCounts::new(1);
        let address = |text: &str| Address::from(ip(text));
        for (first, same, other) in [
            ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8:0:0:ffff::9", "2001:db8:0:1::1"),
        ] {
            crowd.enter(address(first));
            assert_eq!(crowd.excess(address(first)), 0);
            crowd.enter(address(same));
            assert_eq!((crowd.excess(address(first)), crowd.excess(address(other))), (1, 0));
            crowd.leave(address(same));
            crowd.leave(address(first));
        }
        assert_eq!(crowd.places(), 0);
        let mut unlimited = PerIpCounts::new(0);
        unlimited.enter(address("::1"));
        assert_eq!((unlimited.places(), unlimited.excess(address("::1"))), (0, 0));
    }

    #[test]
    fn addresses_are_shown_as_people_write_them() {
        let socket = |text: &str| Address::from(text.parse::<SocketAddr>().unwrap()).to_string();
        assert_eq!(socket("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
        assert_eq!(socket("[2001:db8::1]:80"), "[2001:db8::1]:80");
        assert_eq!(Address::from(ip("192.0.2.1")).to_string(), "192.0.2.1");
        assert_eq!(Address::UNIX.to_string(), "a local socket");
        assert_ne!(Address::from(ip("::")), Address::UNIX, "which a proxy may have been told");
        assert_eq!(size_of::<Address>(), 18);
    }
}
