//! A request head in pieces: every head receives one complete and correct response.

#![cfg_attr(not(test), no_main)]

mod client_address;

use std::net::IpAddr;

use noroshi::config::Config;
use noroshi::http::address::Network;
use noroshi::http::origin::AllowedOrigin;
use noroshi::http::{self, ListenerKind};
use noroshi::limits::HEAD_BYTES_MAX;
use noroshi::server::admission::{Decision, LimitCheck};
use noroshi_test_support::answer::answer;
use noroshi_test_support::pipe::{ADDRESS, OPERATOR_RESPONSE, TestSession};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// The first byte selects the configuration, the others are the peer's bytes.
pub fn check(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let listener = if how & 1 == 0 { ListenerKind::Main } else { ListenerKind::Operator };
    let full = how & 2 != 0;
    let allow_origins =
        if how & 4 == 0 { vec![] } else { vec![AllowedOrigin::parse("https://a.example").unwrap()] };
    // The peer's address is or is not a trusted proxy.
    let proxies = if how & 8 == 0 { vec![] } else { Network::parse("192.0.2.0/24").into_iter().collect() };
    let config = Config { allow_origins, trusted_proxies: proxies, ..Config::default() };

    let mut session = TestSession::new(listener, config.clone());
    session.is_full = full;
    for piece in bytes.chunks(1 << (how >> 4)) {
        session.feed(piece);
    }
    let ends = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let answer = match ends {
        _ if http::is_not_http(bytes) => Decision::Respond(http::malformed(bytes)),
        Some(end) if end <= HEAD_BYTES_MAX => {
            assert_eq!(http::head_end(bytes, end - 1), ends);
            let place = if full { LimitCheck::ServerFull } else { LimitCheck::Allowed };
            let is_trusted = listener == ListenerKind::Main && !config.trusted_proxies.is_empty();
            let mut client_address = None;
            let wall = std::time::Duration::ZERO;
            let answer = answer(&bytes[..end], listener, &config, is_trusted, wall, |address, _| {
                client_address = Some(address);
                place
            });
            let counted = client_address.flatten();
            assert_eq!(session.address, counted.unwrap_or(ADDRESS).into());
            check_client_address(&bytes[..end], &config, is_trusted, client_address, &answer);
            answer
        }
        None if bytes.len() <= HEAD_BYTES_MAX => {
            assert!(session.take_output().is_empty() && !session.session.is_closed());
            session.advance(5);
            Decision::Respond(http::timeout(bytes))
        }
        _ => Decision::Respond(http::head_too_large(bytes)),
    };
    let sent = session.take_output();
    let answer = match answer {
        Decision::Operator(request) => Decision::Respond(request.render(OPERATOR_RESPONSE)),
        answer => answer,
    };
    match answer {
        Decision::Operator(_) => unreachable!("it was rendered"),
        Decision::Resource(_) => unreachable!("no protocol with resources is mounted"),
        Decision::Upgrade { bytes: response, target, .. } => {
            assert!(sent.starts_with(&response));
            assert_eq!(session.events.first(), Some(&format!("+{}", target.room)));
            assert_eq!(parse(&response), (101, b"".to_vec(), None));
            assert!(listener == ListenerKind::Main && !full);
            check_upgrade(&bytes[..ends.unwrap()], &target.room);
        }
        Decision::Respond(http::Response { status, bytes: response, .. }) => {
            assert!(session.events.is_empty());
            let (sent_status, sent_body, _) = parse(&sent);
            let (status_inside, body, length) = parse(&response);
            assert_eq!((sent_status, status_inside), (status, status));
            assert_eq!(sent_body, body);
            if bytes.starts_with(b"HEAD ") {
                assert!(body.is_empty());
            } else {
                assert_eq!(length.unwrap_or(0), body.len());
                assert_eq!(length.is_none(), status == 204);
            }
            // The session ends as soon as the peer closes, whatever it still sends.
            assert!(session.pipe().is_write_shut);
            session.feed(b"GET / HTTP/1.1\r\n\r\n");
            session.pipe().is_eof = true;
            session.process();
            assert!(session.session.is_closed() && session.take_output().is_empty());
        }
    }
}

/// Compares the client address with that of a naive reader. `counted_address` is `None` if the request was rejected
/// before its address was counted.
fn check_client_address(
    head: &[u8],
    config: &Config,
    is_trusted: bool,
    counted_address: Option<Option<IpAddr>>,
    answer: &Decision,
) {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = parsed.parse(head) else {
        assert_eq!(counted_address, None);
        return;
    };
    let headers: Vec<(String, Vec<u8>)> =
        parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
    let trusts = |ip| config.trusted_proxies.iter().any(|network| network.contains(ip));
    let expected = if is_trusted { client_address::expected(&headers, None, trusts) } else { Ok(None) };
    match (counted_address, expected) {
        (Some(counted_address), expected) => assert_eq!(Ok(counted_address), expected),
        (None, _) => assert!(
            matches!(answer, Decision::Respond(response) if [400, 431].contains(&response.status)),
            "{answer:?}"
        ),
    }
}

/// Parses status, body and Content-Length of a response.
fn parse(response: &[u8]) -> (u16, Vec<u8>, Option<usize>) {
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(end)) = parsed.parse(response) else { panic!("a whole head") };
    let status = parsed.code.unwrap();
    let value = |name: &str| {
        let mut values = parsed.headers.iter().filter(|header| header.name == name);
        let value = values.next().map(|header| std::str::from_utf8(header.value).unwrap());
        assert!(values.next().is_none());
        value
    };
    assert!(status == 101 || value("Connection").is_some_and(|value| value.ends_with("close")));
    let length = value("Content-Length").map(|length| length.parse().unwrap());
    (status, response[end..].to_vec(), length)
}

/// Checks an accepted upgrade with a naive reader of RFC 6455 section 4.2.1.
fn check_upgrade(head: &[u8], room: &str) {
    let head: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = head.trim_start_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap();
    assert!(line.starts_with("GET ") && line.ends_with(" HTTP/1.1"), "{line}");
    let target = line.split(' ').nth(1).unwrap().split(['?', '#']).next().unwrap();
    let mut path = target.to_owned();
    for byte in (0..128).filter(|byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
        for encoded in [format!("%{byte:02x}"), format!("%{byte:02X}")] {
            path = path.replace(&encoded, &char::from(byte).to_string());
        }
    }
    let expected = if room.is_empty() { "/ws".to_owned() } else { format!("/ws/{room}") };
    assert!(path.strip_suffix('/').unwrap_or(&path).ends_with(&expected), "{path} {expected}");
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let values = |wanted: &str| -> Vec<String> {
        let of = headers.iter().filter(|(name, _)| name == wanted);
        of.map(|(_, value)| value.to_ascii_lowercase()).collect()
    };
    assert_eq!(values("host").len(), 1);
    assert_eq!(values("sec-websocket-version"), ["13"]);
    assert!(matches!(&values("sec-websocket-key")[..], [key] if key.len() == 24));
    assert!(values("upgrade").iter().any(|value| value.contains("websocket")));
    assert!(values("connection").iter().any(|value| value.contains("upgrade")));
    assert!(values("origin").len() < 2);
}
