//! Headers of the client address: the server must agree with a naive reader, and reject a request with an unreadable
//! address before it is counted.

#![cfg_attr(not(test), no_main)]

mod client_address;

use std::net::IpAddr;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::http::address::Network;
use noroshi::server::admission::{Decision, LimitCheck};
use noroshi_test_support::answer::answer;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const NAMES: [&str; 4] = ["X-Forwarded-For", "x-forwarded-for", "X-Real-IP", "CF-Connecting-IP"];

/// The first byte selects the header that the operator configured. Each line is a header: its first byte selects the
/// name, the rest is the value.
pub fn check(data: &[u8]) {
    let Some((how, lines)) = data.split_first() else { return };
    let only =
        [None, Some("X-Forwarded-For"), Some("x-real-ip"), Some("CF-Connecting-IP")][usize::from(how & 3)];
    let trusted_proxies: Vec<Network> =
        ["10.0.0.0/8", "fd00::/8", "192.0.2.1"].iter().map(|text| Network::parse(text).unwrap()).collect();
    let config = Config {
        trusted_proxies: trusted_proxies.clone(),
        client_ip_header: only.map(str::to_owned),
        ..Config::default()
    };

    let mut headers = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else { continue };
        // Bytes that httparse accepts in a value, without surrounding whitespace (RFC 9110 section 5.5).
        let is_value = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        let value: Vec<u8> = value.iter().copied().filter(is_value).collect();
        headers.push((NAMES[usize::from(name & 3)].to_owned(), value.trim_ascii().to_vec()));
    }
    if headers.len() > 50 {
        return;
    }
    let mut head = b"GET /healthz HTTP/1.1\r\nHost: h\r\n".to_vec();
    for (name, value) in &headers {
        head.extend_from_slice(format!("{name}: ").as_bytes());
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");

    let mut counted_address: Option<Option<IpAddr>> = None;
    let answer = answer(&head, ListenerKind::Main, &config, true, Duration::ZERO, |address, _| {
        counted_address = Some(address);
        LimitCheck::Allowed
    });
    let Decision::Respond(response) = answer else { panic!("{answer:?}") };
    let status = response.status;
    let is_trusted = |ip| trusted_proxies.iter().any(|network| network.contains(ip));
    match client_address::expected(&headers, only, is_trusted) {
        Ok(address) => assert_eq!((status, counted_address), (200, Some(address))),
        Err(()) => assert_eq!((status, counted_address), (400, None)),
    }
}
