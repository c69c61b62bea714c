//! What is answered before there is a WebSocket, or instead.

use super::status;
use crate::common::pipe::{Line, REQUEST};
use noroshi::config::{Config, HEAD_BYTES_MAX};
use noroshi::http::ListenerKind;

#[test]
fn plain_answers() {
    for (request, expected) in [
        ("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /pipelined HTTP/1.1\r\n\r\n", "200"),
        ("POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", "405"),
        ("GET /ws HTTP/1.1\r\nHost: h\r\n\r\n", "426"),
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        for cut in 0..request.len() {
            let mut line = Line::new(ListenerKind::Main, Config::default());
            line.feed(&request.as_bytes()[..cut]);
            line.feed(&request.as_bytes()[cut..]);
            assert_eq!(status(&mut line), expected, "{request}");
        }
    }
}

#[test]
fn a_head_has_a_size_and_a_time() {
    let mut line = Line::new(ListenerKind::Main, Config::default());
    let head = format!("GET /healthz HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    line.feed(&head.as_bytes()[head.len() - HEAD_BYTES_MAX..]);
    assert_eq!(status(&mut line), "400");
    let mut line = Line::new(ListenerKind::Main, Config::default());
    line.feed(&head.as_bytes()[..=HEAD_BYTES_MAX]);
    assert_eq!(status(&mut line), "431");

    // A byte a second does not help.
    let mut line = Line::new(ListenerKind::Main, Config::default());
    for byte in &REQUEST.as_bytes()[..4] {
        line.pass(1);
        line.feed(&[*byte]);
    }
    assert!(line.sent().is_empty());
    line.pass(1);
    assert_eq!(status(&mut line), "408");
}

#[test]
fn what_every_proxy_lets_through_is_heard() {
    let cookies = format!("Cookie: a={}\r\nCookie: b={}\r\n", "x".repeat(4096), "y".repeat(4096));
    let mut line = Line::new(ListenerKind::Main, Config::default());
    line.feed(REQUEST.replace("\r\n\r\n", &format!("\r\n{cookies}\r\n")).as_bytes());
    assert_eq!(line.events, ["+tea"]);
    let mut line = Line::new(ListenerKind::Main, Config::default());
    line.feed(&REQUEST.as_bytes()[..REQUEST.len() - 2]);
    line.feed(format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX)).as_bytes());
    assert_eq!(status(&mut line), "431");
    assert_eq!(line.refused.unwrap().0, 431);
}

#[test]
fn what_cannot_begin_a_request_is_answered_at_once() {
    for (bytes, needed) in [
        (&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], 1),
        (b"SSH-2.0-OpenSSH_10.0\r\n", 21),
        (b"\r\n\0", 3),
        (b" GET / HTTP/1.1", 1),
        (b"{\"type\":\"connect\"}", 1),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 33),
    ] {
        let mut line = Line::new(ListenerKind::Main, Config::default());
        for (i, byte) in bytes.iter().enumerate().take(needed) {
            assert!(line.sent().is_empty(), "{i} of {bytes:?}");
            line.feed(&[*byte]);
        }
        assert_eq!(status(&mut line), "400", "{bytes:?}");
        assert_eq!(line.refused, None);
    }
}

#[test]
fn a_refused_upgrade_says_why() {
    let refused = |request: &str| {
        let mut line = Line::new(ListenerKind::Main, Config::default());
        line.feed(request.as_bytes());
        line.refused.map(|(status, why)| format!("{status} {why}"))
    };
    let with = |header: &str| REQUEST.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"));
    assert_eq!(refused(REQUEST), None);
    assert_eq!(refused("GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    assert_eq!(refused("GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    for (request, why) in [
        (
            with("Origin: https://a\" is of Host \"h\u{85}"),
            r#"403 Origin "https://a\" is of Host \"h\u{85}" does not match Host "h"; see --allow-origin"#,
        ),
        (REQUEST.replace("/ws/tea", "/nowhere"), "404 not a WebSocket path; use /ws or /ws/ROOM"),
        (REQUEST.replace("/ws/tea", "/ws/a b"), "400 expected an HTTP request"),
        (
            REQUEST.replace("/ws/tea", "/ws/%20"),
            "400 expected a room of 1 to 64 characters of A-Z a-z 0-9 . _ ~ -",
        ),
        (with("Host: i"), "400 expected one Host header"),
        (
            REQUEST.replace("Upgrade: websocket\r\nConnection: Upgrade\r\n", "Connection: close\r\n"),
            "426 no Upgrade header: is a proxy dropping it?",
        ),
        (REQUEST.replace("/ws/tea", "/"), "404 not a WebSocket path; use /ws or /ws/ROOM"),
        (REQUEST.replace("Version: 13", "Version: 8"), "426 expected a WebSocket upgrade, version 13"),
    ] {
        assert_eq!(refused(&request).as_deref(), Some(why), "{request}");
    }
}

#[test]
fn who_shuts_its_write_side_still_gets_its_answer() {
    let mut line = Line::new(ListenerKind::Main, Config::default());
    line.pipe().room = 0;
    line.pipe().ended = true;
    line.feed(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    line.turn();
    assert!(!line.session.is_closed());
    line.pipe().room = 1000;
    line.turn();
    assert!(line.sent().ends_with(b"ok"));
    assert!(line.session.is_closed());
}
