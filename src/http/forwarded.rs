//! Where a request comes from, as far as trusted proxies say it.

use std::net::{IpAddr, SocketAddr};

use super::Request;
use crate::config::Config;

impl Request<'_> {
    /// Where the request comes from: the last hop of `X-Forwarded-For` that is none of the proxies, or else the first;
    /// without that header, `X-Real-IP`. Whatever is no address ends what can be believed.
    pub(super) fn forwarded(&self, config: &Config) -> Option<IpAddr> {
        let mut hops: Vec<&str> = Vec::new();
        for value in self.values("x-forwarded-for") {
            hops.extend(std::str::from_utf8(value).unwrap_or_default().split(','));
        }
        if hops.is_empty() {
            return self.value("x-real-ip").and_then(hop);
        }
        let mut last = None;
        for ip in hops.into_iter().rev().map_while(hop) {
            last = Some(ip);
            if !config.trusts(ip.into()) {
                break;
            }
        }
        last
    }
}

/// An address as proxies write it: with or without a port, and in brackets if it is IPv6 with one.
fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}
