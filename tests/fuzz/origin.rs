//! Arbitrary origins and hosts: the server must agree with a naive reader.

#![cfg_attr(not(test), no_main)]

use std::net::{Ipv4Addr, Ipv6Addr};

use noroshi::http::origin::{self, AllowedOrigin};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// The lines are an allowed origin, an `Origin` and a `Host`.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n').map(|line| line.trim_end_matches('\r'));
    let [allowed, origin, host] = std::array::from_fn(|_| lines.next().unwrap_or_default());

    let of_host = read(origin).and_then(|(scheme, ..)| read(&format!("{scheme}://{host}")));
    let is_same = of_host.is_some() && read(origin) == of_host;
    assert_eq!(origin::is_same_origin(origin, host), is_same, "{origin:?} {host:?}");
    assert_eq!(origin::is_same_origin(&origin.to_ascii_uppercase(), &host.to_ascii_lowercase()), is_same);

    match AllowedOrigin::parse(allowed) {
        Err(expected) => assert!(!expected.is_empty() && !expected.contains(char::is_control)),
        Ok(parsed) => {
            assert_eq!(parsed.matches(origin), may_connect(allowed, origin), "{allowed:?} {origin:?}")
        }
    }
    if !allowed.contains('*') && AllowedOrigin::parse(allowed).is_ok() {
        assert!(AllowedOrigin::parse(allowed).unwrap().matches(allowed), "an origin is itself: {allowed:?}");
    }
    // The allowed host names contain one name with dots.
    assert_eq!(origin::is_local_host(host, &["a.example".to_owned()]), is_local(host), "{host:?}");
}

/// Returns scheme, host and port of an origin.
fn read(origin: &str) -> Option<(String, String, Option<u16>)> {
    let origin = origin.to_ascii_lowercase();
    let colon = origin.find("://")?;
    let scheme = &origin[..colon];
    let authority = &origin[colon + 3..];
    let mut letters = scheme.chars();
    let is_scheme = letters.next()?.is_ascii_lowercase()
        && letters.all(|c| matches!(c, 'a'..='z' | '0'..='9' | '+' | '-' | '.'));
    if !is_scheme {
        return None;
    }
    let default = match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']')?;
            (format!("[{}]", ip.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let name = &authority[..end];
            let is_name = !name.is_empty()
                && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | '_'));
            (is_name.then(|| name.to_owned())?, &authority[end..])
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default,
        Some(digits) if !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) => {
            Some(digits.parse().ok()?)
        }
        _ => return None,
    };
    Some((scheme.to_owned(), host, port))
}

/// Returns whether a page of this origin may connect under a well-formed allowed origin.
fn may_connect(allowed: &str, origin: &str) -> bool {
    match allowed {
        "*" => return true,
        "null" | "file://" => return origin == allowed,
        _ => {}
    }
    let Some((scheme, host, port)) = read(origin) else { return false };
    let Some((before, base)) = allowed.split_once("://*.") else { return read(allowed) == read(origin) };
    let (own_scheme, own_host, own_port) =
        read(&format!("{before}://{base}")).expect("the allowed origin is well-formed");
    let below = host.strip_suffix(&own_host).and_then(|labels| labels.strip_suffix('.'));
    (scheme, port) == (own_scheme, own_port) && below.is_some_and(|labels| !labels.is_empty())
}

/// Returns whether a `Host` is an address, a name without dots, or the operator's name.
fn is_local(host: &str) -> bool {
    let cut = match host.rfind(':') {
        Some(at) if !host.ends_with(']') => at,
        _ => host.len(),
    };
    let name = &host[..cut];
    let port = host[cut..].trim_start_matches(':');
    let is_ipv6 = || {
        let inside = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        inside.is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
    };
    let is_label =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let is_named = name.eq_ignore_ascii_case("a.example");
    port.chars().all(|c| c.is_ascii_digit())
        && (is_label || is_named || name.parse::<Ipv4Addr>().is_ok() || is_ipv6())
}
