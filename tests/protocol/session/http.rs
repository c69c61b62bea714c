//! Plain HTTP responses and rejected upgrades.

use super::status;
use crate::common::pipe::{REQUEST, TestSession};
use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::limits::HEAD_BYTES_MAX;

#[test]
fn plain_requests_have_their_status() {
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
            let mut test = TestSession::new(ListenerKind::Main, Config::default());
            test.feed(&request.as_bytes()[..cut]);
            test.feed(&request.as_bytes()[cut..]);
            assert_eq!(status(&mut test), expected, "{request}");
        }
    }
}

#[test]
fn request_head_is_limited_in_size_and_time() {
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    let head = format!("GET /healthz HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    test.feed(&head.as_bytes()[head.len() - HEAD_BYTES_MAX..]);
    assert_eq!(status(&mut test), "400");
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    test.feed(&head.as_bytes()[..=HEAD_BYTES_MAX]);
    assert_eq!(status(&mut test), "431");

    // One byte a second does not extend the timeout.
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    for byte in &REQUEST.as_bytes()[..4] {
        test.advance(1);
        test.feed(&[*byte]);
    }
    assert!(test.take_output().is_empty());
    test.advance(1);
    assert_eq!(status(&mut test), "408");
}

#[test]
fn heads_that_common_proxies_accept_are_accepted() {
    let cookies = format!("Cookie: a={}\r\nCookie: b={}\r\n", "x".repeat(4096), "y".repeat(4096));
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    test.feed(REQUEST.replace("\r\n\r\n", &format!("\r\n{cookies}\r\n")).as_bytes());
    assert_eq!(test.events, ["+tea"]);
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    test.feed(&REQUEST.as_bytes()[..REQUEST.len() - 2]);
    test.feed(format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX)).as_bytes());
    assert_eq!(status(&mut test), "431");
    assert_eq!(test.rejected.unwrap().0, 431);
}

#[test]
fn bytes_that_cannot_begin_a_request_are_rejected_immediately() {
    for (bytes, needed) in [
        (&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], 1),
        (b"SSH-2.0-OpenSSH_10.0\r\n", 21),
        (b"\r\n\0", 3),
        (b" GET / HTTP/1.1", 1),
        (b"{\"type\":\"connect\"}", 1),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 33),
    ] {
        let mut test = TestSession::new(ListenerKind::Main, Config::default());
        for (i, byte) in bytes.iter().enumerate().take(needed) {
            assert!(test.take_output().is_empty(), "{i} of {bytes:?}");
            test.feed(&[*byte]);
        }
        assert_eq!(status(&mut test), "400", "{bytes:?}");
        assert_eq!(test.rejected, None);
    }
}

#[test]
fn rejected_upgrade_has_a_log_reason() {
    let refused = |request: &str| {
        let mut test = TestSession::new(ListenerKind::Main, Config::default());
        test.feed(request.as_bytes());
        test.rejected.map(|(status, why)| format!("{status} {why}"))
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
fn half_closed_client_receives_its_response() {
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    test.pipe().writable_bytes = 0;
    test.pipe().is_eof = true;
    test.feed(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    test.process();
    assert!(!test.session.is_closed());
    test.pipe().writable_bytes = 1000;
    test.process();
    assert!(test.take_output().ends_with(b"ok"));
    assert!(test.session.is_closed());
}
