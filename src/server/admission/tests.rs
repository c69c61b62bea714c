//! Request heads and the responses to them.

#[path = "../../../tests/common/answer.rs"]
mod answer;

use answer::answer;

use super::*;
use crate::http::address::Network;
use crate::http::head_end;
use crate::http::origin::AllowedOrigin;
use crate::protocols;
use crate::web::{CHECK, LIBRARY, LIBRARY_MODULES, PAGE};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";

/// Allows every upgrade, and ignores the client address.
const ALLOWED: fn(Option<IpAddr>, Option<&Target>) -> LimitCheck = |_, _| LimitCheck::Allowed;

/// Returns the response to a complete head. The test decides on the admission.
fn respond(
    head: &[u8],
    listener: ListenerKind,
    config: &Config,
    is_trusted: bool,
    admission: impl FnOnce(Option<IpAddr>, Option<&Target>) -> LimitCheck,
) -> Decision {
    answer(head, listener, config, is_trusted, Duration::ZERO, admission)
}

/// Returns a configuration that serves a protocol at its default path.
fn with_protocol(protocol: &'static Descriptor) -> Config {
    let mut config = Config::default();
    config.mount(&protocol.endpoint, protocol.endpoint.default_path.trim_end_matches('/').to_owned());
    config
}

/// Returns the status and the head of the response, or 101 and the room. `head` lacks its last empty line.
fn exchange(listener: ListenerKind, config: &Config, is_full: bool, head: &str) -> (u16, String) {
    let head = format!("{head}\r\n");
    assert_eq!(head_end(head.as_bytes(), 0), Some(head.len()));
    let admission = if is_full { LimitCheck::ServerFull } else { LimitCheck::Allowed };
    let mut decision = respond(head.as_bytes(), listener, config, false, |_, _| admission);
    if let Decision::Operator(request) = &decision {
        decision = Decision::Respond(request.render("body"));
    }
    match decision {
        Decision::Operator(_) => unreachable!("it was rendered"),
        Decision::Resource(_) => unreachable!("no protocol with resources is mounted"),
        Decision::Upgrade { bytes, target, .. } => {
            let response = String::from_utf8(bytes).unwrap();
            assert!(response.starts_with("HTTP/1.1 101 "));
            // The example of RFC 6455 section 1.3.
            assert!(response.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
            assert!(response.ends_with("\r\n\r\n"));
            (101, target.room)
        }
        Decision::Respond(Response { status, bytes, .. }) => {
            let response = String::from_utf8(bytes).unwrap();
            let (response_head, body) = response.split_once("\r\n\r\n").expect("a head");
            assert!(response_head.starts_with(&format!("HTTP/1.1 {status} ")));
            assert!(response_head.contains("close"), "{response_head}");
            if status == 204 {
                assert!(body.is_empty());
                return (status, response_head.to_owned());
            }
            let length = response_head.split("Content-Length: ").nth(1).expect("a length");
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let has_body = !head.starts_with("HEAD ") && status != 304;
            assert_eq!(body.len(), if has_body { length } else { 0 });
            assert!(length > 0);
            (status, response_head.to_owned())
        }
    }
}

/// Sends a plain request with a `Host` to the main listener.
fn get(head: &str) -> (u16, String) {
    let head = format!("{}\r\nHost: h:1\r\n", head.trim_end());
    exchange(ListenerKind::Main, &Config::default(), false, &head)
}

/// Sends an upgrade with more headers to the main listener.
fn upgrade(target: &str, more: &str) -> (u16, String) {
    get(&format!("GET {target} HTTP/1.1\r\n{UPGRADE}{KEY}{more}"))
}

#[test]
fn upgrades_are_accepted() {
    assert_eq!(upgrade("/ws", ""), (101, "".into()));
    assert_eq!(upgrade("/ws?x=/y", ""), (101, "".into()));
    assert_eq!(upgrade("/ws/tea", ""), (101, "tea".into()));
    assert_eq!(upgrade("/ws/A.b_c~d-9?token=1", ""), (101, "A.b_c~d-9".into()));
    assert_eq!(upgrade("http://h:1/ws/tea", ""), (101, "tea".into()));
    assert_eq!(upgrade(&format!("/ws/{}", "x".repeat(64)), "").0, 101);
    let mixed = "upgrade: h2c, WebSocket\r\nconnection: keep-alive, UPGRADE\r\nsec-websocket-version: 13";
    assert_eq!(get(&format!("GET /ws HTTP/1.1\r\n{KEY}{mixed}")).0, 101);
    let twice =
        "Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13";
    assert_eq!(get(&format!("GET /ws HTTP/1.1\r\n{KEY}{twice}")).0, 101);
}

/// RFC 6455 section 4.2.2: a server that supports none of the offered subprotocols selects none.
#[test]
fn no_subprotocol_is_selected() {
    let head = format!("GET /ws HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Protocol: a, b\r\n{KEY}{UPGRADE}\r\n");
    let response = respond(head.as_bytes(), ListenerKind::Main, &Config::default(), false, ALLOWED);
    let Decision::Upgrade { bytes, .. } = response else { panic!("{response:?}") };
    assert!(!String::from_utf8(bytes).unwrap().contains("Sec-WebSocket-Protocol"));
}

#[test]
fn invalid_rooms_are_rejected() {
    for room in [
        ".",
        "..",
        "%2e",
        "%2E.",
        "/",
        "a//",
        "a/b",
        "a%20b",
        "a%2fb",
        "%",
        "%4",
        "a b",
        "日本",
        "a:b",
        &"x".repeat(65),
    ] {
        let (status, _) = upgrade(&format!("/ws/{room}"), "");
        assert_eq!(status, 400, "{room}");
    }
}

#[test]
fn scheme_and_host_of_absolute_targets_are_ignored() {
    for scheme in ["http", "https", "ws", "wss", "HTTPS", "Ws"] {
        assert_eq!(upgrade(&format!("{scheme}://h:1/ws/tea?x"), ""), (101, "tea".into()), "{scheme}");
        assert_eq!(get(&format!("GET {scheme}://h:1/healthz HTTP/1.1")).0, 200, "{scheme}");
    }
    for target in ["ftp://h:1/ws/tea", "wss:/ws/tea", "wss//h/ws", "/wss://h/ws", "wss://h"] {
        assert_eq!(upgrade(target, "").0, 404, "{target}");
    }
}

#[test]
fn paths_are_normalized() {
    for (target, room) in [
        ("/ws/", ""),
        ("/ws/?x=/", ""),
        ("/ws/tea/", "tea"),
        ("/ws/a%7Eb", "a~b"),
        ("/ws/a%7eb", "a~b"),
        ("/ws/%41%2D%2e%5F%7A", "A-._z"),
        ("/%77s/tea", "tea"),
        ("wss://h:1/ws/%74ea/", "tea"),
    ] {
        assert_eq!(upgrade(target, ""), (101, room.into()), "{target}");
    }
    let config = with_protocol(&protocols::ayame::DESCRIPTOR);
    for (path, status) in [("/signaling", 101), ("/%73ignaling", 101), ("/signaling/", 404)] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{KEY}{UPGRADE}");
        assert_eq!(exchange(ListenerKind::Main, &config, false, &head).0, status, "{path}");
    }
    assert_eq!(upgrade("/healthz", "").0, 200, "a health check ignores the headers of an upgrade");
}

/// Returns the status and the reject reason of a plain response. `head` lacks its `Host`.
fn rejection(config: &Config, head: &str) -> Option<(u16, String)> {
    let head = format!("{head}Host: h\r\n\r\n");
    let response = respond(head.as_bytes(), ListenerKind::Main, config, false, ALLOWED);
    let Decision::Respond(Response { status, reject_reason, bytes }) = response else {
        panic!("{response:?}")
    };
    let text = String::from_utf8(bytes).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.trim_end();
    let message = reject_reason?.message;
    assert_eq!(message, body, "the log and the client get the same sentence");
    Some((status, message))
}

#[test]
fn rejected_upgrade_names_the_likely_fault_of_a_proxy() {
    let matchbox = with_protocol(&protocols::matchbox::DESCRIPTOR);
    let version = "Sec-WebSocket-Version: 13\r\n";
    let whole = format!("{UPGRADE}{KEY}");
    let only_key = format!("{KEY}{version}Connection: close\r\n");
    let no_upgrade = "no Upgrade header: is a proxy dropping it?";
    let old = "HTTP/1.0, but WebSocket needs HTTP/1.1: does nginx lack proxy_http_version 1.1?";
    let no_path = "not a WebSocket path; use /ws or /ws/ROOM";
    let slashes = "not a WebSocket path, because it begins with two slashes; use /ws or /ws/ROOM";
    let foreign = r#"Origin "https://a" does not match Host "h"; see --allow-origin"#;
    for (config, line, headers, status, message) in [
        (&Config::default(), "GET /ws HTTP/1.1", &only_key, 426, no_upgrade.to_owned()),
        (&Config::default(), "GET /ws/tea HTTP/1.0", &only_key, 426, format!("{old}; {no_upgrade}")),
        (&Config::default(), "GET /ws HTTP/1.0", &whole, 426, old.to_owned()),
        (
            &Config::default(),
            "GET /ws HTTP/1.1",
            &format!("{KEY}{version}Upgrade: h2c\r\n"),
            426,
            "the Upgrade header does not list websocket".to_owned(),
        ),
        (
            &Config::default(),
            "GET /ws HTTP/1.1",
            &format!("{KEY}{version}Upgrade: websocket\r\nConnection: keep-alive\r\n"),
            426,
            "no Upgrade in the Connection header: is a proxy changing it?".to_owned(),
        ),
        (&Config::default(), "GET / HTTP/1.1", &whole, 404, no_path.to_owned()),
        (&Config::default(), "GET / HTTP/1.1", &only_key, 404, no_path.to_owned()),
        (&Config::default(), "GET /check HTTP/1.1", &whole, 404, no_path.to_owned()),
        (&Config::default(), "GET /tea HTTP/1.1", &only_key, 404, no_path.to_owned()),
        (&Config::default(), "GET //ws/tea HTTP/1.1", &whole, 404, slashes.to_owned()),
        (&matchbox, "GET / HTTP/1.1", &only_key, 426, no_upgrade.to_owned()),
        (
            &Config::default(),
            "GET /ws HTTP/1.1",
            &format!("{whole}Origin: https://a\r\n"),
            403,
            foreign.to_owned(),
        ),
        (
            &Config::default(),
            "GET /ws HTTP/1.0",
            &format!("{only_key}Origin: https://a\r\n"),
            403,
            format!("{foreign}; {old}; {no_upgrade}"),
        ),
        (
            &Config::default(),
            "GET / HTTP/1.1",
            &format!("{only_key}Origin: https://a\r\n"),
            404,
            no_path.to_owned(),
        ),
    ] {
        assert_eq!(
            rejection(config, &format!("{line}\r\n{headers}")),
            Some((status, message)),
            "{line}\r\n{headers}"
        );
    }
    // Requests that are not for a WebSocket are not logged.
    for line in
        ["GET /ws HTTP/1.1", "GET /ws HTTP/1.0", "GET /tea HTTP/1.1", "POST / HTTP/1.1", "GET //ws HTTP/1.1"]
    {
        assert_eq!(rejection(&Config::default(), &format!("{line}\r\n")), None, "{line}");
    }
}

#[test]
fn plain_request_without_host_has_no_reject_reason() {
    let head = b"GET / HTTP/1.1\r\n\r\n";
    let response = respond(head, ListenerKind::Main, &Config::default(), false, ALLOWED);
    assert!(
        matches!(response, Decision::Respond(Response { status: 400, reject_reason: None, .. })),
        "{response:?}"
    );
}

#[test]
fn only_fields_of_the_query_that_are_read_must_be_utf8() {
    let secret = b"only the tests sign with this secret";
    let with_tokens = Config {
        token_secrets: Some(crate::http::token::Secrets::parse(secret).unwrap()),
        ..Config::default()
    };
    let matchbox = with_protocol(&protocols::matchbox::DESCRIPTOR);
    for (config, target, expected) in [
        (&Config::default(), "/ws?token=%ff&next=%ff", 101),
        (&with_tokens, "/ws?token=%ff", 400),
        (&with_tokens, "/ws?next=%ff", 401),
        (&matchbox, "/tea?next=%ff", 400),
        (&matchbox, "/tea?next=2&token=%ff&%ff", 101),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{KEY}{UPGRADE}");
        assert_eq!(exchange(ListenerKind::Main, config, false, &head).0, expected, "{target}");
    }
}

#[test]
fn metrics_listener_rejects_rebound_names() {
    let metrics_hosts = vec!["metrics.example.com".to_owned()];
    let named = Config { metrics: Some("127.0.0.1:1".parse().unwrap()), metrics_hosts, ..Config::default() };
    let status = |config: &Config, path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let response = respond(head.as_bytes(), ListenerKind::Operator, config, false, ALLOWED);
        match response {
            Decision::Operator(_) => (200, String::new()),
            Decision::Respond(Response { status, bytes, reject_reason }) => {
                assert_eq!(reject_reason, None);
                let text = String::from_utf8(bytes).unwrap();
                (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
            }
            Decision::Upgrade { .. } | Decision::Resource(_) => {
                unreachable!("the operator listener has no WebSockets")
            }
        }
    };
    let expected = "Host: expected an IP address, a name without dots or a name of --metrics-host, \
        got \"evil.example:8081\"\n";
    for path in ["/metrics", "/rooms", "/rooms?room=tea", "/"] {
        assert_eq!(status(&named, path, "evil.example:8081"), (403, expected.to_owned()), "{path}");
    }
    for path in ["/metrics", "/rooms"] {
        for host in ["localhost:8081", "127.0.0.1:8081", "[::1]:8081", "noroshi", "10.0.0.1"] {
            assert_eq!(status(&Config::default(), path, host).0, 200, "{path} {host}");
        }
        assert_eq!(status(&named, path, "Metrics.example.com:8081").0, 200);
        assert_eq!(status(&Config::default(), path, "metrics.example.com:8081").0, 403);
    }
    assert_eq!(
        exchange(ListenerKind::Operator, &Config::default(), false, "GET /metrics HTTP/1.0\r\n").0,
        200
    );
    assert_eq!(
        exchange(
            ListenerKind::Main,
            &Config::default(),
            false,
            "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n"
        )
        .0,
        200
    );
}

#[test]
fn incomplete_upgrades_are_rejected() {
    let (status, head) = get("GET /ws HTTP/1.1");
    assert_eq!(status, 426);
    assert!(head.contains("\r\nSec-WebSocket-Version: 13\r\n") && head.contains("\r\nUpgrade: websocket"));
    assert_eq!(get("HEAD /ws/tea HTTP/1.1").0, 426);
    let old = UPGRADE.replace("13", "8");
    assert_eq!(get(&format!("GET /ws HTTP/1.1\r\n{KEY}{old}")).0, 426);
    assert_eq!(get(&format!("GET /ws HTTP/1.0\r\n{KEY}{UPGRADE}")).0, 426);
    for key in ["", "Sec-WebSocket-Key: short\r\n", &format!("{KEY}{KEY}"), &KEY.replace('X', "*")] {
        assert_eq!(get(&format!("GET /ws HTTP/1.1\r\n{key}{UPGRADE}")).0, 400, "{key}");
    }
    let (status, head) = get("POST /ws HTTP/1.1");
    assert_eq!(status, 405);
    assert!(head.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"));
}

#[test]
fn origins_are_checked() {
    assert_eq!(upgrade("/ws", "Origin: http://h:1").0, 101);
    assert_eq!(upgrade("/ws", "Origin: HTTPS://H:1").0, 101);
    for foreign in ["http://h", "http://h:2", "http://evil.h:1", "null", "h:1", "", "http://h:1/", "://h:1"] {
        assert_eq!(upgrade("/ws", &format!("Origin: {foreign}")).0, 403, "{foreign}");
    }
    assert_eq!(upgrade("/ws", "Origin: http://h:1\r\nOrigin: http://h:1").0, 403);
    let from = |allowed: &str, origin: &str| {
        let allow_origins = vec![AllowedOrigin::parse(allowed).unwrap()];
        let config = Config { allow_origins, ..Config::default() };
        let head = format!("GET /ws HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\n{KEY}{UPGRADE}");
        exchange(ListenerKind::Main, &config, false, &head).0
    };
    assert_eq!(from("https://a.example", "https://a.example"), 101);
    assert_eq!(from("https://a.example", "https://A.example"), 101);
    assert_eq!(from("https://a.example", "http://a.example"), 403);
    assert_eq!(from("https://a.example", "https://h"), 101);
    assert_eq!(from("*", "null"), 101);
}

/// Returns the client address that trusted proxies report, or the status and the reason of the rejection.
fn client_address(header: Option<&str>, headers: &[u8]) -> Result<Option<String>, (u16, String)> {
    let proxies = ["10.0.0.0/8", "fd00::/8"].map(|text| Network::parse(text).unwrap());
    let client_ip_header = header.map(str::to_owned);
    let config = Config { trusted_proxies: proxies.into(), client_ip_header, ..Config::default() };
    let start = format!("GET /ws HTTP/1.1\r\nHost: h\r\n{KEY}{UPGRADE}");
    let head = [start.as_bytes(), headers, b"\r\n"].concat();
    let mut address = None;
    let response = respond(&head, ListenerKind::Main, &config, true, |reported, _| {
        address = reported;
        LimitCheck::Allowed
    });
    match response {
        Decision::Upgrade { .. } => Ok(address.map(|ip| ip.to_string())),
        Decision::Respond(Response { status, reject_reason, bytes }) => {
            assert_eq!(address, None, "a rejected request counts for no address");
            let message = reject_reason.expect("the log has the reason").message;
            let sentence = message.split(", got").next().unwrap();
            assert!(String::from_utf8(bytes).unwrap().contains(sentence));
            Err((status, message))
        }
        Decision::Operator(_) | Decision::Resource(_) => unreachable!("this is a path of the main listener"),
    }
}

#[test]
fn proxies_report_the_client_address() {
    for (headers, expected) in [
        ("", None),
        ("X-Real-IP: 192.0.2.1\r\n", Some("192.0.2.1")),
        ("X-Forwarded-For: 192.0.2.1\r\n", Some("192.0.2.1")),
        ("X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.9\r\n", Some("192.0.2.1")),
        // The client's own hops are before those of the proxies.
        ("X-Forwarded-For: 127.0.0.1, 192.0.2.1\r\n", Some("192.0.2.1")),
        (
            "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 192.0.2.1, 10.0.0.2 ,10.0.0.1\r\n",
            Some("192.0.2.1"),
        ),
        ("X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", Some("10.0.0.3")),
        ("X-Forwarded-For: 192.0.2.1:4711\r\n", Some("192.0.2.1")),
        ("X-Forwarded-For: [2001:db8::1]:4711, [2001:db8::2]\r\n", Some("2001:db8::2")),
        ("X-Forwarded-For: 2001:db8::1, fd00::1, ::ffff:10.0.0.1\r\n", Some("2001:db8::1")),
    ] {
        let expected = Ok(expected.map(str::to_owned));
        assert_eq!(client_address(None, headers.as_bytes()), expected, "{headers}");
    }
}

#[test]
fn bytes_that_are_not_utf8_do_not_hide_the_hops_behind_them() {
    for headers in [
        &b"X-Forwarded-For: \xff, 203.0.113.7\r\n"[..],
        b"X-Forwarded-For: \xff\r\nX-Forwarded-For: 203.0.113.7\r\n",
        b"X-Forwarded-For: 192.0.2.1,\xe9\xff,203.0.113.7, 10.0.0.1\r\n",
        b"X-Forwarded-For: \x80203.0.113.9, 203.0.113.7\r\nX-Real-IP: \xff\r\n",
    ] {
        let expected = Ok(Some("203.0.113.7".to_owned()));
        assert_eq!(client_address(None, headers), expected, "{}", String::from_utf8_lossy(headers));
    }
}

#[test]
fn unreadable_client_address_is_rejected() {
    for (headers, message) in [
        (
            &b"X-Forwarded-For: unknown\r\n"[..],
            r#"X-Forwarded-For: expected the client's IP address, got "unknown""#,
        ),
        (b"X-Forwarded-For: \r\n", r#"X-Forwarded-For: expected the client's IP address, got """#),
        (
            b"X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.2\r\n",
            r#"X-Forwarded-For: expected the client's IP address, got "192.0.2.1, unknown, 10.0.0.2""#,
        ),
        (
            b"X-Forwarded-For: 192.0.2.1, \xff\r\n",
            "X-Forwarded-For: expected the client's IP address, got \"192.0.2.1, \u{fffd}\"",
        ),
        (
            b"X-Forwarded-For: 192.0.2.1,\r\n",
            r#"X-Forwarded-For: expected the client's IP address, got "192.0.2.1,""#,
        ),
        (
            b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: \xff\r\nX-Real-IP: 192.0.2.9\r\n",
            "X-Forwarded-For: expected the client's IP address, got \"192.0.2.1, \u{fffd}\"",
        ),
        (b"X-Real-IP: \xff\r\n", "X-Real-IP: expected the client's IP address, got \"\u{fffd}\""),
        (
            b"X-Real-IP: 192.0.2.1, 192.0.2.2\r\n",
            r#"X-Real-IP: expected the client's IP address, got "192.0.2.1, 192.0.2.2""#,
        ),
        (
            b"X-Real-IP: 192.0.2.1\r\nX-Real-IP: 192.0.2.2\r\n",
            r#"X-Real-IP: expected the client's IP address, got "192.0.2.1, 192.0.2.2""#,
        ),
    ] {
        assert_eq!(client_address(None, headers), Err((400, message.to_owned())));
    }
}

#[test]
fn client_ip_header_is_the_only_header_that_is_read() {
    let both = b"X-Forwarded-For: 192.0.2.66\r\nX-Real-IP: 203.0.113.7\r\nCF-Connecting-IP: 2001:db8::1\r\n";
    let address = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(client_address(Some("x-real-ip"), both), address("203.0.113.7"));
    assert_eq!(client_address(Some("X-Forwarded-For"), both), address("192.0.2.66"));
    assert_eq!(client_address(Some("CF-Connecting-IP"), both), address("2001:db8::1"));
    assert_eq!(client_address(Some("True-Client-IP"), both), Ok(None));
    let bad = b"X-Forwarded-For: \xff\r\nX-Real-IP: 203.0.113.7\r\n";
    assert_eq!(client_address(Some("X-Real-IP"), bad), address("203.0.113.7"));
    assert_eq!(client_address(Some("X-Forwarded-For"), bad).unwrap_err().0, 400);
}

#[test]
fn full_server_rejects_valid_upgrades_with_503() {
    let full = |head: &str| exchange(ListenerKind::Main, &Config::default(), true, head).0;
    assert_eq!(full(&format!("GET /ws HTTP/1.1\r\nHost: h\r\n{KEY}{UPGRADE}")), 503);
    assert_eq!(full(&format!("GET /ws HTTP/1.1\r\nHost: h\r\nOrigin: http://x\r\n{KEY}{UPGRADE}")), 403);
    assert_eq!(full("GET /healthz HTTP/1.1\r\nHost: h\r\n"), 200);
}

#[test]
fn paths_lead_to_resources() {
    assert_eq!(get("GET /healthz HTTP/1.1").0, 200);
    assert_eq!(get("HEAD /healthz?x HTTP/1.1").0, 200);
    assert_eq!(get("GET /healthz HTTP/1.0").0, 200);
    assert_eq!(get("DELETE /healthz HTTP/1.1").0, 405);
    for target in ["/", "/healthz", "/ws", "*"] {
        let (status, head) = get(&format!("OPTIONS {target} HTTP/1.0"));
        assert_eq!(status, 204, "{target}");
        assert!(
            head.ends_with("\r\nAllow: GET, HEAD, OPTIONS") && !head.contains("Content-Length"),
            "{head}"
        );
    }
    assert_eq!(get("GET /healthz/ HTTP/1.1").0, 200);
    assert_eq!(get("GET /%68ealthz HTTP/1.1").0, 200);
    for target in ["/metrics", "/wsx", "/healthz//", "//healthz", "*", "http://h:1", "http://h?z=/ws"] {
        assert_eq!(get(&format!("GET {target} HTTP/1.1")).0, 404, "{target}");
    }
    let metrics = |head: &str| exchange(ListenerKind::Operator, &Config::default(), false, head).0;
    assert_eq!(metrics("GET /metrics HTTP/1.1\r\nHost: h\r\n"), 200);
    assert_eq!(metrics("HEAD /metrics HTTP/1.1\r\nHost: h\r\n"), 200);
    assert_eq!(metrics("PUT /metrics HTTP/1.1\r\nHost: h\r\n"), 405);
    assert_eq!(metrics("PUT /rooms HTTP/1.1\r\nHost: h\r\n"), 405);
    assert_eq!(metrics("HEAD /rooms?room=tea HTTP/1.1\r\nHost: h\r\n"), 200);
    for (query, expected) in [
        ("", Some((None, None))),
        ("room=tea", Some((Some("tea"), None))),
        ("room=", Some((Some(""), None))),
        ("room=%E8%8C%B6%20%22&after=ff.10", Some((Some("茶 \""), Some((255, 16))))),
        ("after=ffffffffffffffff.0", Some((None, Some((u64::MAX, 0))))),
        ("after=1ffffffffffffffff.0", None),
        ("after=1", None),
        ("after=+1.x", None),
        ("room=%ff", None),
        ("room", Some((Some(""), None))),
        ("room=a+b", Some((Some("a b"), None))),
        ("r%6fom=tea&after=%31.2", Some((Some("tea"), Some((1, 2))))),
        ("room=tea&other=%ff", None),
        ("rooms=tea", None),
    ] {
        let expected = expected.map(|(room, after): (Option<&str>, _)| OperatorResource::Rooms {
            room: room.map(String::from),
            after,
        });
        assert_eq!(rooms_resource(&Query::new(query)), expected, "{query}");
        let status = metrics(&format!("GET /rooms?{query} HTTP/1.1\r\nHost: h\r\n"));
        assert_eq!(status, if expected.is_some() { 200 } else { 400 });
    }
    assert_eq!(metrics(&format!("GET /ws HTTP/1.1\r\nHost: h\r\n{KEY}{UPGRADE}")), 404);
}

#[test]
fn files_are_served() {
    let (status, page) = get("GET /?room=tea HTTP/1.1");
    assert_eq!(status, 200);
    for header in [
        "Content-Type: text/html; charset=utf-8",
        "Cache-Control: no-cache",
        &format!("ETag: {}", PAGE.etag()),
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Content-Security-Policy: default-src 'none'; script-src 'self' 'sha256-",
    ] {
        assert!(page.contains(&format!("\r\n{header}")), "{header}: {page}");
    }
    assert!(!page.contains("\nAccess-Control-Allow-Origin:"), "{page}");
    let (status, library) = get("GET /noroshi.js HTTP/1.1");
    assert_eq!(status, 200);
    assert!(library.contains("\r\nContent-Type: text/javascript; charset=utf-8\r\n"), "{library}");
    let (status, check) = get("GET /check HTTP/1.1");
    assert_eq!(status, 200);
    assert!(check.contains("Content-Security-Policy: default-src 'none'; script-src 'sha256-"), "{check}");
    assert_eq!(get("HEAD / HTTP/1.1"), (200, page.clone()));
    assert_eq!(get("HEAD /noroshi.js HTTP/1.0"), (200, library));
    assert_eq!(get("POST / HTTP/1.1").0, 405);
    for target in ["//", "/index.html", "/check/", "/noroshi.js/", "/NOROSHI.js"] {
        assert_eq!(get(&format!("GET {target} HTTP/1.1")).0, 404, "{target}");
    }
    assert_eq!(
        exchange(ListenerKind::Operator, &Config::default(), false, "GET / HTTP/1.1\r\nHost: h\r\n").0,
        404
    );
    let config = Config { page: false, ..Config::default() };
    for target in ["/", "/check", "/noroshi.js"].into_iter().map(str::to_owned).chain(module_paths()) {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n");
        assert_eq!(exchange(ListenerKind::Main, &config, false, &head).0, 404, "{target}");
    }
}

fn module_paths() -> impl Iterator<Item = String> {
    LIBRARY_MODULES.iter().map(|(name, _)| format!("/noroshi/{name}"))
}

#[test]
fn modules_of_the_library_are_served() {
    for (path, (_, file)) in module_paths().zip(LIBRARY_MODULES) {
        let (status, head) = get(&format!("GET {path} HTTP/1.1"));
        assert_eq!(status, 200, "{path}");
        for header in ["Content-Type: text/javascript; charset=utf-8", &format!("ETag: {}", file.etag())] {
            assert!(head.contains(&format!("\r\n{header}\r\n")), "{path} {header}: {head}");
        }
        assert_eq!(get(&format!("GET {path} HTTP/1.1\r\nIf-None-Match: {}", file.etag())).0, 304, "{path}");
        // Rooms of matchbox at every path do not hide the modules.
        let matchbox = with_protocol(&protocols::matchbox::DESCRIPTOR);
        let plain = format!("GET {path} HTTP/1.1\r\nHost: h\r\n");
        assert_eq!(exchange(ListenerKind::Main, &matchbox, false, &plain).0, 200, "{path}");
    }
    for target in ["/noroshi", "/noroshi/", "/noroshi/none.js", "/noroshi/noroshi.js", "/noroshi//"] {
        assert_eq!(get(&format!("GET {target} HTTP/1.1")).0, 404, "{target}");
    }
}

/// Returns the value of a header of a response, if there is exactly one.
fn only_header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.split("\r\n").filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let value = values.next()?;
    assert_eq!(values.next(), None, "{name}");
    Some(value)
}

#[test]
fn policy_of_a_page_names_its_own_host() {
    let policy = |path: &str, version: &str, headers: &str| {
        let head = format!("GET {path} HTTP/{version}\r\n{headers}");
        let (status, head) = exchange(ListenerKind::Main, &Config::default(), false, &head);
        (status, only_header(&head, "Content-Security-Policy").map(str::to_owned))
    };
    for (path, file) in [("/", PAGE), ("/check", CHECK)] {
        for host in ["example.com", "localhost:8080", "192.0.2.1"] {
            let headers = format!("Host: {host}\r\n");
            assert_eq!(policy(path, "1.1", &headers), (200, file.policy(Some(host))), "{path} {host}");
            // A 304 has the policy, too, because it replaces that of the stored response.
            let headers = format!("{headers}If-None-Match: {}\r\n", file.etag());
            assert_eq!(policy(path, "1.1", &headers), (304, file.policy(Some(host))), "{path} {host}");
        }
        for host in ["[::1]:8080", "h; script-src *", "h;script-src 'unsafe-inline'", "h, x", "*", "h\tx"] {
            let headers = format!("Host: {host}\r\n");
            assert_eq!(policy(path, "1.1", &headers), (200, file.policy(None)), "{path} {host}");
        }
        assert_eq!(policy(path, "1.0", ""), (200, file.policy(None)));
        assert_eq!(policy(path, "1.1", "Host: a\r\nHost: b\r\n"), (400, None));
    }
}

#[test]
fn cached_file_is_not_sent_again() {
    let tag = PAGE.etag();
    let status = |tags: &str| get(&format!("GET / HTTP/1.1\r\nIf-None-Match: {tags}")).0;
    for tags in [&tag, &format!("W/{tag}"), &format!("\"a,b\" , {tag}"), "*"] {
        assert_eq!(status(tags), 304, "{tags}");
    }
    for tags in ["", "\"\"", tag.trim_matches('"'), &LIBRARY.etag()] {
        assert_eq!(status(tags), 200, "{tags}");
    }
    // RFC 9110 section 15.4.5: a 304 has the headers of the 200.
    let (_, full) = get("GET / HTTP/1.1");
    let (_, same) = get(&format!("HEAD / HTTP/1.1\r\nIf-None-Match: {tag}"));
    assert_eq!(full.replace("200 OK", "304 Not Modified"), same);
}

#[test]
fn allowed_origins_may_load_the_library() {
    let head = |allow: &[&str], origin: &str, target: &str| {
        let allow_origins = allow.iter().map(|origin| AllowedOrigin::parse(origin).unwrap()).collect();
        let config = Config { allow_origins, ..Config::default() };
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\n");
        exchange(ListenerKind::Main, &config, false, &head).1
    };
    let allowed = |head: &str| {
        let rest = head.split("\r\nAccess-Control-Allow-Origin: ").nth(1)?;
        Some(rest.split("\r\n").next()?.to_owned())
    };
    for path in module_paths().chain(["/noroshi.js".to_owned()]) {
        let library = |allow: &[&str], origin| {
            let head = head(allow, origin, &path);
            assert!(
                head.contains("\r\nVary: Origin\r\n"),
                "a cache must not share the responses to two origins: {head}"
            );
            allowed(&head)
        };
        assert_eq!(library(&[], "http://h"), Some("http://h".into()));
        assert_eq!(library(&[], "https://a.example"), None);
        assert_eq!(library(&["https://a.example"], "https://a.example"), Some("https://a.example".into()));
        assert_eq!(library(&["https://a.example"], "https://b.example"), None);
        assert_eq!(library(&["*"], "null"), Some("null".into()));
    }
    assert_eq!(allowed(&head(&["*"], "https://a.example", "/")), None);
}

/// A page cannot read the response to a rejected upgrade, but that to a plain request of the same URL.
#[test]
fn pages_of_allowed_origins_may_read_why_an_upgrade_is_rejected() {
    let secrets = Secrets::parse(b"only the tests sign with this secret").unwrap();
    let token_for_coffee = secrets.sign(&Claims {
        expires_at: Duration::from_secs(1000),
        room: Some("coffee".into()),
        ..Claims::default()
    });
    let config = Config {
        token_secrets: Some(secrets),
        allow_origins: vec![AllowedOrigin::parse("https://a.example").unwrap()],
        trusted_proxies: vec![Network::parse("10.0.0.0/8").unwrap()],
        ..Config::default()
    };
    let without_tokens = Config { token_secrets: None, ..config.clone() };
    let for_coffee = format!("/ws/tea?token={token_for_coffee}");
    let unreadable = "X-Forwarded-For: unknown\r\n";
    for (config, target, more, limits, status, is_same_for_plain_requests) in [
        (&config, "/ws/%2e", "", LimitCheck::Allowed, 400, true),
        (&config, "/ws/tea?token=%ff", "", LimitCheck::Allowed, 400, true),
        (&config, "/ws/tea", unreadable, LimitCheck::Allowed, 400, true),
        (&config, "/ws/tea", "", LimitCheck::Allowed, 401, true),
        (&config, &for_coffee, "", LimitCheck::Allowed, 403, true),
        (&config, "/wss/tea", "", LimitCheck::Allowed, 404, true),
        (&config, "//ws/tea", "", LimitCheck::Allowed, 404, true),
        (&without_tokens, "/ws/tea", "", LimitCheck::AddressFull, 429, true),
        (&without_tokens, "/ws/tea", "", LimitCheck::ServerFull, 503, true),
        (&without_tokens, "/ws/tea", "", LimitCheck::RoomFull, 503, true),
        (&without_tokens, "/ws/tea", "", LimitCheck::Draining, 503, true),
        (&without_tokens, "/ws/tea", "Sec-WebSocket-Version: 12\r\n", LimitCheck::Allowed, 426, true),
        (&without_tokens, "/ws/tea", "Sec-WebSocket-Key: short\r\n", LimitCheck::Allowed, 400, false),
    ] {
        let head = |upgrade: &str, origin: &str| {
            let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{upgrade}{more}{origin}\r\n");
            let decision =
                respond(head.as_bytes(), ListenerKind::Main, config, more == unreadable, |_, _| limits);
            let Decision::Respond(Response { status, bytes, .. }) = decision else { panic!("{head}") };
            let (head, _) = std::str::from_utf8(&bytes).unwrap().split_once("\r\n\r\n").unwrap();
            (status, head.to_owned())
        };
        let upgrade = format!("{UPGRADE}{KEY}");
        for (origin, allowed_origin) in [
            ("https://a.example", Some("https://a.example")),
            ("https://A.example:443", Some("https://A.example:443")),
            ("http://h", Some("http://h")),
        ] {
            let origin = format!("Origin: {origin}\r\n");
            for (upgrade, is_upgrade) in [(&*upgrade, true), ("", false)] {
                let (sent_status, head) = head(upgrade, &origin);
                if is_upgrade || is_same_for_plain_requests {
                    assert_eq!(sent_status, status, "{target}: {head}");
                }
                assert_eq!(only_header(&head, "Access-Control-Allow-Origin"), allowed_origin, "{head}");
                assert_eq!(only_header(&head, "Vary"), Some("Origin"), "{head}");
            }
        }
        for origin in ["", "Origin: https://b.example\r\n", "Origin: null\r\n", "Origin: https://h/\r\n"] {
            for upgrade in [&*upgrade, ""] {
                let (_, head) = head(upgrade, origin);
                assert_eq!(only_header(&head, "Access-Control-Allow-Origin"), None, "{head}");
                assert_eq!(only_header(&head, "Vary"), Some("Origin"), "{head}");
            }
        }
    }
    // The operator listener has nothing for pages of other origins.
    let head = "GET /nowhere HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n";
    let (status, head) = exchange(ListenerKind::Operator, &config, false, head);
    assert_eq!((status, only_header(&head, "Access-Control-Allow-Origin")), (404, None));
}

#[test]
fn malformed_requests_are_rejected() {
    let main = |head: &str| exchange(ListenerKind::Main, &Config::default(), false, head).0;
    for head in ["GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n"] {
        assert_eq!(main(head), 400, "{head}");
    }
    for head in
        ["\r\n", "GET\r\n", "GET / HTTP/2.0\r\nHost: h\r\n", "GET / HTTP/1.1\r\nHo st: h\r\n", "\0\r\n"]
    {
        assert_eq!(main(head), 400, "{head}");
    }
    assert_eq!(main(&format!("GET / HTTP/1.1\r\nHost: h\r\n{}", "a: b\r\n".repeat(200))), 431);
    assert_eq!(main("HEAD / HTTP/1.1\r\n"), 400);
    assert_eq!(main("HEAD  HTTP/1.1\r\nHost: h\r\n"), 400);
    assert_eq!(main("GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n"), 400);
    // Some parsers take two bare line feeds for the end of the head, others do not.
    assert_eq!(main("GET /healthz HTTP/1.1\nHost: h\n\nGET / HTTP/1.1\r\nHost: h\r\n"), 400);
    // Some parsers take the bare line feed for the end of a header.
    assert_eq!(main("GET /healthz HTTP/1.1\r\nHost: h\r\nX: y\nOrigin: http://h\r\n"), 400);
    assert_eq!(main("GET /healthz HTTP/1.1\nHost: h\r\n"), 400);
}

#[test]
fn head_end_is_found_for_every_searched_prefix() {
    let head = b"GET / HTTP/1.1\r\n\r\n\r\n\r\n";
    for searched in 0..=17 {
        assert_eq!(head_end(&head[..17], searched), None);
        assert_eq!(head_end(head, searched), Some(18));
    }
}
