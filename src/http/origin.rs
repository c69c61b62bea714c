//! Parses and compares web origins (RFC 6454).
//!
//! Comparison ignores case and the default port of the scheme. The server does not know whether a proxy terminates TLS,
//! so a `Host` without a port is compared as if it had the default port of the scheme of the `Origin`.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A pattern for the origins of pages that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// `*`: every origin.
    All,
    /// One origin, normalized.
    Origin(String),
    /// `https://*.example.com`: the origins of all hosts below a host, without that host itself.
    Subdomains {
        /// The scheme with its separator: `https://`.
        scheme: String,
        /// The rest of the origin: `.example.com`.
        suffix: String,
    },
}

impl AllowedOrigin {
    /// Parses the value of `--allow-origin`.
    ///
    /// # Errors
    /// No page has this origin. The error describes what is expected.
    pub fn parse(text: &str) -> Result<AllowedOrigin, &'static str> {
        // Browsers send these two for a page from a file and for a page in a sandbox.
        if let "null" | "file://" = text {
            return Ok(AllowedOrigin::Origin(text.to_owned()));
        }
        if text == "*" {
            return Ok(AllowedOrigin::All);
        }
        if !text.is_ascii() {
            return Err("the name as browsers write it, xn--…");
        }
        let (scheme, host) = text.split_once("://").ok_or("SCHEME://HOST or SCHEME://HOST:PORT, or *")?;
        if host.contains(['/', '?', '#', '@', '\\']) {
            return Err("SCHEME://HOST or SCHEME://HOST:PORT, and nothing after that");
        }
        let parent = host.strip_prefix("*.");
        let origin = normalize(&format!("{scheme}://{}", parent.unwrap_or(host)));
        let origin = origin.ok_or("an origin that a page can have: SCHEME://HOST or SCHEME://HOST:PORT")?;
        if parent.is_none() {
            return Ok(AllowedOrigin::Origin(origin));
        }
        let (scheme, host) = origin.split_at(scheme.len() + "://".len());
        Ok(AllowedOrigin::Subdomains { scheme: scheme.to_owned(), suffix: format!(".{host}") })
    }

    /// Returns whether an `Origin` header matches the pattern.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            AllowedOrigin::All => true,
            AllowedOrigin::Origin(allowed) => {
                allowed == origin || normalize(origin).is_some_and(|origin| origin == *allowed)
            }
            AllowedOrigin::Subdomains { scheme, suffix } => {
                let Some(origin) = normalize(origin) else { return false };
                let Some(host) = origin.strip_prefix(scheme.as_str()) else { return false };
                host.strip_suffix(suffix.as_str()).is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

/// Returns whether an `Origin` and a `Host` name the same host and port.
pub fn is_same_origin(origin: &str, host: &str) -> bool {
    let Some(normalized) = normalize(origin) else { return false };
    let Some((scheme, _)) = origin.split_once("://") else { return false };
    normalize(&format!("{scheme}://{host}")) == Some(normalized)
}

/// Returns whether a `Host` is an IP address, a single label (`localhost`), or one of these names.
///
/// Case and port are ignored. A page from another machine cannot have such a host by DNS rebinding.
pub fn is_local_host(host: &str, names: &[String]) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let Some((ip, rest)) = rest.split_once(']') else { return false };
        let is_valid_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return is_valid_port && ip.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if !is_port(port) {
        return false;
    }
    let is_label_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = !name.is_empty() && name.bytes().all(is_label_byte);
    is_label || name.parse::<Ipv4Addr>().is_ok() || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Returns an origin in the form that browsers send, or `None` if it is not valid.
///
/// The result is in lower case and does not have the default port of its scheme.
fn normalize(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, rest) = origin.split_once("://")?;
    if !is_scheme(scheme) {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let host = normalize_host(host)?;
    let port = match port {
        Some(digits) => Some(parse_port(digits)?),
        None => None,
    };
    let default_port = match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    Some(match port {
        Some(port) if Some(port) != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

fn is_scheme(text: &str) -> bool {
    let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(is_scheme_byte)
}

/// Returns a host in its canonical form, or `None` if it is not valid.
fn normalize_host(host: &str) -> Option<String> {
    if let Some(ip) = host.strip_prefix('[') {
        let ip = ip.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?;
        return Some(format!("[{ip}]"));
    }
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_valid = !host.is_empty() && host.bytes().all(is_host_byte);
    is_valid.then(|| host.to_owned())
}

/// Parses a port as a number, because `0443` is the port 443.
fn parse_port(digits: &str) -> Option<u16> {
    // The parser for `u16` accepts a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_origins_match_normalized_origins() {
        let matches =
            |allowed: &str, origin: &str| AllowedOrigin::parse(allowed).expect(allowed).matches(origin);
        for (allowed, origin) in [
            ("*", "null"),
            ("null", "null"),
            ("file://", "file://"),
            ("https://a.example", "https://a.example"),
            ("https://a.example", "https://A.example:443"),
            ("https://a.example:443", "https://a.example"),
            ("HTTP://A.Example:80", "http://a.example"),
            ("https://a.example:8443", "https://a.example:8443"),
            ("http://[::1]:3000", "http://[0:0::1]:3000"),
            ("https://xn--wgv71a119e.example", "https://xn--wgv71a119e.example"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("https://*.example.com", "https://a.example.com"),
            ("https://*.example.com", "https://a.b.example.com"),
            ("https://*.example.com:443", "https://a.example.com"),
            ("http://*.example.com:8000", "http://a.example.com:8000"),
        ] {
            assert!(matches(allowed, origin), "{allowed} {origin}");
        }
        for (allowed, origin) in [
            ("null", "file://"),
            ("file://", "null"),
            ("https://a.example", "http://a.example"),
            ("https://a.example", "https://a.example:444"),
            ("https://a.example", "https://a.example.evil"),
            ("https://a.example", "https://evil-a.example"),
            ("http://a.example", "http://a.example:443"),
            ("https://*.example.com", "https://example.com"),
            ("https://*.example.com", "https://.example.com"),
            ("https://*.example.com", "https://evilexample.com"),
            ("https://*.example.com", "http://a.example.com"),
            ("https://*.example.com", "https://a.example.com:8443"),
            ("https://*.example.com", "https://a.example.com.evil"),
        ] {
            assert!(!matches(allowed, origin), "{allowed} {origin}");
        }
        for (invalid, expected) in [
            ("", "SCHEME"),
            ("a.example", "SCHEME"),
            ("https://a.example/", "nothing after"),
            ("https://a.example/page", "nothing after"),
            ("https://a.example#x", "nothing after"),
            ("https://a.example?x", "nothing after"),
            ("https://me@a.example", "nothing after"),
            ("https://日本.example", "xn--"),
            ("https://", "a page can have"),
            ("https://*", "a page can have"),
            ("https://*.", "a page can have"),
            ("https://a.*.example", "a page can have"),
            ("https://*a.example", "a page can have"),
            ("*://a.example", "a page can have"),
            ("https://a b", "a page can have"),
            ("https://a.example:", "a page can have"),
            ("https://a.example:x", "a page can have"),
            ("https://a.example:65536", "a page can have"),
            ("https://[::1", "a page can have"),
            ("https://[a.example]", "a page can have"),
            ("1://a.example", "a page can have"),
        ] {
            assert!(AllowedOrigin::parse(invalid).is_err_and(|error| error.contains(expected)), "{invalid}");
        }
    }

    #[test]
    fn origin_is_the_same_as_its_host() {
        for (origin, host) in [
            ("https://example.com", "example.com"),
            ("https://example.com", "example.com:443"),
            ("https://example.com:443", "example.com"),
            ("http://example.com", "EXAMPLE.com:80"),
            ("HTTPS://Example.com:8443", "example.com:8443"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("https://example.com:0443", "example.com"),
            ("http://example.com:8080", "example.com:08080"),
            ("http://192.0.2.1", "192.0.2.1"),
            ("https://xn--wgv71a119e.example", "xn--wgv71a119e.example"),
        ] {
            assert!(is_same_origin(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://example.com", "example.com:80"),
            ("http://example.com", "example.com:443"),
            ("https://example.com:8443", "example.com"),
            ("https://example.com", "example.com.evil"),
            ("https://example.com", ""),
            ("null", "null"),
            ("file://", ""),
            ("example.com", "example.com"),
            ("", ""),
            ("://h", "h"),
            ("https://h/", "h"),
            ("https://h", "h/"),
            ("https://u@h", "h"),
        ] {
            assert!(!is_same_origin(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn local_hosts_are_ip_addresses_single_labels_and_configured_names() {
        let names = ["metrics.example.com".to_owned()];
        for host in [
            "localhost",
            "LOCALHOST:8081",
            "noroshi",
            "noroshi_1-a:80",
            "127.0.0.1",
            "192.0.2.1:8081",
            "[::1]",
            "[2001:db8::1]:8081",
            "metrics.example.com",
            "Metrics.Example.COM:8081",
            "localhost:",
        ] {
            assert!(is_local_host(host, &names), "{host}");
        }
        for host in [
            "",
            ":8081",
            "example.com",
            "localhost.",
            "localhost.example.com",
            "metrics.example.com.",
            "a.metrics.example.com",
            "127.0.0.1.example.com",
            "127.1",
            "127.0.0.1 ",
            "::1",
            "[::1",
            "[::1]x",
            "[localhost]",
            "localhost:x",
            "localhost:80:80",
            "user@localhost",
            "é",
        ] {
            assert!(!is_local_host(host, &names), "{host}");
        }
    }
}
