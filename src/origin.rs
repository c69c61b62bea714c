//! Where pages come from (RFC 6454), and which of them may connect.
//!
//! Origins are compared as origins: without case, and without the port that their scheme has anyway. Whether a proxy
//! speaks TLS for us is not known here, so that a `Host` without a port has that of the scheme of the `Origin`.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Pages that may connect, as an operator says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// `*`: all of them.
    All,
    /// Those of one origin, in the form in which browsers write it.
    Origin(String),
    /// `https://*.example.com`: those of any host below that one, but not of that one.
    Below {
        /// With what follows it: `https://`.
        scheme: String,
        /// The rest of the origin: `.example.com`.
        suffix: String,
    },
}

impl Allowed {
    /// Reads what an operator allows.
    ///
    /// # Errors
    /// No page has this origin. Returns what is expected instead.
    pub fn parse(text: &str) -> Result<Allowed, &'static str> {
        // Browsers write no more than this for a page from a file, or in a sandbox.
        if let "null" | "file://" = text {
            return Ok(Allowed::Origin(text.to_owned()));
        }
        if text == "*" {
            return Ok(Allowed::All);
        }
        if !text.is_ascii() {
            return Err("the name as browsers write it, xn--…");
        }
        let (scheme, host) = text.split_once("://").ok_or("SCHEME://HOST or SCHEME://HOST:PORT, or *")?;
        if host.contains(['/', '?', '#', '@', '\\']) {
            return Err("SCHEME://HOST or SCHEME://HOST:PORT, and nothing after that");
        }
        let below = host.strip_prefix("*.");
        let origin = normal(&format!("{scheme}://{}", below.unwrap_or(host)));
        let origin = origin.ok_or("an origin that a page can have: SCHEME://HOST or SCHEME://HOST:PORT")?;
        match below {
            None => Ok(Allowed::Origin(origin)),
            Some(_) => {
                let (scheme, host) = origin.split_at(scheme.len() + 3);
                Ok(Allowed::Below { scheme: scheme.to_owned(), suffix: format!(".{host}") })
            }
        }
    }

    /// Whether this origin is among them.
    pub fn has(&self, origin: &str) -> bool {
        match self {
            Allowed::All => true,
            Allowed::Origin(allowed) if allowed == origin => true,
            Allowed::Origin(allowed) => normal(origin).is_some_and(|origin| origin == *allowed),
            Allowed::Below { scheme, suffix } => normal(origin).is_some_and(|origin| {
                let below =
                    origin.strip_prefix(scheme.as_str()).and_then(|host| host.strip_suffix(suffix.as_str()));
                below.is_some_and(|labels| !labels.is_empty())
            }),
        }
    }
}

/// Whether a page of this origin asks the host that it came from.
pub fn is_same(origin: &str, host: &str) -> bool {
    let of_host = |(scheme, _)| normal(&format!("{scheme}://{host}"));
    normal(origin).is_some_and(|normal| origin.split_once("://").and_then(of_host) == Some(normal))
}

/// Returns whether a `Host` is an IP address, a name of one label (`localhost`), or one of these names. Case and port do
/// not count.
pub fn is_local(host: &str, names: &[String]) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let Some((ip, rest)) = rest.split_once(']') else { return false };
        let has_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return has_port && ip.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if !is_port(port) {
        return false;
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_named = || names.iter().any(|own| own.eq_ignore_ascii_case(name));
    is_label(name) || name.parse::<Ipv4Addr>().is_ok() || is_named()
}

/// An origin as browsers write it: in lower case, without the port that is the default of its scheme. `None`: it is none.
fn normal(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, rest) = origin.split_once("://")?;
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let default = match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    // As a number, because 0443 is 443.
    let port: Option<u16> = match port {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
        None => None,
    };
    let host = match host.strip_prefix('[') {
        Some(ip) => format!("[{}]", ip.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => host.to_owned(),
    };
    let is_host = host.starts_with('[')
        || !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !is_scheme || !is_host {
        return None;
    }
    Some(match port.filter(|port| Some(*port) != default) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_may_allow() {
        let has = |allowed: &str, origin: &str| Allowed::parse(allowed).expect(allowed).has(origin);
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
            assert!(has(allowed, origin), "{allowed} {origin}");
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
            assert!(!has(allowed, origin), "{allowed} {origin}");
        }
        for (never, why) in [
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
            assert!(Allowed::parse(never).is_err_and(|error| error.contains(why)), "{never}");
        }
    }

    #[test]
    fn the_host_that_a_page_came_from() {
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
            assert!(is_same(origin, host), "{origin} {host}");
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
            assert!(!is_same(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn hosts_that_no_page_of_another_machine_can_have() {
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
            assert!(is_local(host, &names), "{host}");
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
            assert!(!is_local(host, &names), "{host}");
        }
    }
}
