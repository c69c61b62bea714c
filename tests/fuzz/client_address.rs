//! A naive reader of the client address that trusted proxies report, compared with `http`.

use std::net::{IpAddr, SocketAddr};

/// Returns the client address in these headers, or an error if the request must be rejected. `only` is the header that
/// the operator configured, and `is_trusted` returns whether an address is a proxy.
pub fn expected(
    headers: &[(String, Vec<u8>)],
    only: Option<&str>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Option<IpAddr>, ()> {
    let values = |wanted: &str| -> Vec<String> {
        let is_wanted = |(name, _): &&(String, Vec<u8>)| name.eq_ignore_ascii_case(wanted);
        let as_latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
        headers.iter().filter(is_wanted).map(|(_, value)| as_latin1(value)).collect()
    };
    let name = match only {
        Some(name) => name.to_ascii_lowercase(),
        None if values("x-forwarded-for").is_empty() => "x-real-ip".to_owned(),
        None => "x-forwarded-for".to_owned(),
    };
    let values = values(&name);
    if values.is_empty() {
        return Ok(None);
    }
    if name != "x-forwarded-for" {
        return match &values[..] {
            [value] => address(value).map(Some).ok_or(()),
            _ => Err(()),
        };
    }
    let joined = values.join(",");
    let mut hops: Vec<&str> = joined.split(',').collect();
    loop {
        let ip = address(hops.pop().unwrap()).ok_or(())?;
        if hops.is_empty() || !is_trusted(ip) {
            return Ok(Some(ip));
        }
    }
}

/// Parses an address, optionally with a port or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let in_brackets = || format!("{text}:1").parse::<SocketAddr>().ok().filter(|_| text.starts_with('['));
    let bare = text.parse::<IpAddr>().ok();
    let with_port = text.parse::<SocketAddr>().ok().or_else(in_brackets);
    bare.or(with_port.map(|address| address.ip())).map(|ip| ip.to_canonical())
}
