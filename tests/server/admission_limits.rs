//! Limits on connections: by address, by memory and in total.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use noroshi::http::ListenerKind;
use noroshi::http::address::Network;
use noroshi::http::origin::AllowedOrigin;
use noroshi::limits::{
    BASE_BYTES, CONNECTION_BYTES, EVICTION_TIME_MIN, HEAD_TIME_FULL_MAX, HEAD_TIME_MAX,
    OPERATOR_CONNECTIONS_MAX, PER_IP_REJECTED_AT_ONCE, REJECTED_AT_ONCE,
};
use tungstenite::Message;

use super::sockets::{receive_json, with};
use crate::common::pipe::REQUEST;
use crate::common::transcript::Transport;

#[test]
fn connections_over_the_limit_of_an_address_are_rejected() {
    let mut net = with(|config| config.connections_per_ip_max = 2);
    net.open("A", "");
    net.open("B", "");
    assert!(net.request(ListenerKind::Main, REQUEST).starts_with("HTTP/1.1 429 "));
    // Other addresses are unaffected.
    let mut other = net.connect_from("127.0.0.2", ListenerKind::Main);
    other.write_all(REQUEST.as_bytes()).unwrap();
    net.wait_until(|_| (other.read(&mut [0; 1000]).ok()? > 100).then_some(()));
    // Further connections are closed without a response.
    let mut silent: Vec<_> = (0..20).map(|_| net.connect(ListenerKind::Main)).collect();
    net.server.poll_once(Some(Duration::ZERO)).unwrap();
    assert_eq!(net.server.sessions(), 3 + PER_IP_REJECTED_AT_ONCE);
    for stream in &mut silent[PER_IP_REJECTED_AT_ONCE..] {
        assert!(net.read_to_end(stream).is_empty());
    }
    assert!(
        net.request(ListenerKind::Operator, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            .starts_with("HTTP/1.1 200 ")
    );
    drop((silent, other));
    net.close("A");
    net.wait_until(|net| (net.server.sessions() == 1).then_some(()));
    net.open("C", "");
    net.finish();
}

#[test]
fn page_of_an_allowed_origin_may_read_the_reason_of_a_rejection() {
    let mut net = with(|config| {
        config.connections_per_ip_max = 1;
        config.allow_origins = vec![AllowedOrigin::parse("https://a.example").unwrap()];
    });
    net.open("A", "");
    let plain_request = "GET /ws/tea HTTP/1.1\r\nHost: h\r\n\r\n";
    for request in [REQUEST, plain_request] {
        let from = |origin: &str| request.replace("\r\n\r\n", &format!("\r\nOrigin: {origin}\r\n\r\n"));
        let expected = "HTTP/1.1 429 Too Many Requests\r\n\
            Access-Control-Allow-Origin: https://a.example\r\nVary: Origin\r\nConnection: close\r\n\
            Content-Type: text/plain; charset=utf-8\r\nContent-Length: 39\r\n\r\n\
            too many connections from your address\n";
        assert_eq!(net.request(ListenerKind::Main, &from("https://a.example")), expected);
        let answer = net.request(ListenerKind::Main, &from("https://b.example"));
        assert!(
            answer.starts_with("HTTP/1.1 403 Forbidden\r\nVary: Origin\r\nConnection: close\r\n"),
            "{answer}"
        );
        assert!(!answer.contains("Access-Control"), "{answer}");
    }
    net.finish();
}

#[test]
fn forwarded_address_counts_only_from_a_trusted_proxy() {
    for (network, believed) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let mut net = with(|config| {
            config.connections_per_ip_max = 2;
            config.trusted_proxies = vec![Network::parse(network).unwrap()];
        });
        let mut ask = |address: &str| {
            let mut stream = net.connect(ListenerKind::Main);
            let request = REQUEST.replace("Host:", &format!("X-Forwarded-For: {address}\r\nHost:"));
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = vec![0; 1000];
            net.wait_until(|_| stream.read(&mut answer).ok());
            (stream, String::from_utf8_lossy(&answer[9..12]).into_owned())
        };
        let open: Vec<_> = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"].map(&mut ask).into();
        let statuses: Vec<_> = open.iter().map(|(_, status)| status.as_str()).collect();
        // The limit does not apply to the proxy, which carries all connections.
        let expected = if believed { ["101", "101", "429", "101"] } else { ["101", "101", "429", "429"] };
        assert_eq!(statuses, expected);
        if believed {
            // Clients at the proxy's own address do not use up the proxy's connections.
            let clients: Vec<_> = (0..8).map(|_| ask("127.0.0.1")).collect();
            assert_eq!(clients.iter().filter(|(_, status)| status == "101").count(), 2);
            assert_eq!(ask("192.0.2.3").1, "101");
        }
        drop(open);
        net.finish();
    }
}

#[test]
fn malformed_forwarded_hop_does_not_disable_the_limit_of_its_address() {
    let mut net = with(|config| {
        config.connections_per_ip_max = 2;
        config.trusted_proxies = vec![Network::parse("127.0.0.0/8").unwrap()];
    });
    let mut ask = |hops: &[u8]| {
        let mut stream = net.connect(ListenerKind::Main);
        let (line, rest) = REQUEST.split_once("Host:").unwrap();
        let request = [line.as_bytes(), b"X-Forwarded-For: ", hops, b"\r\nHost:", rest.as_bytes()].concat();
        stream.write_all(&request).unwrap();
        let mut answer = vec![0; 1000];
        net.wait_until(|_| stream.read(&mut answer).ok());
        (stream, String::from_utf8_lossy(&answer[9..12]).into_owned())
    };
    // A proxy appends the address to what the client sends.
    let open =
        [&b"\xff, 192.0.2.1"[..], b"\xff,192.0.2.1", b"\xff, 192.0.2.1", b"192.0.2.9, \xff"].map(&mut ask);
    let statuses: Vec<_> = open.iter().map(|(_, status)| status.as_str()).collect();
    assert_eq!(statuses, ["101", "101", "429", "400"]);
    drop(open);
    net.finish();
}

#[test]
fn new_connections_get_503_without_memory() {
    let mut net = with(|config| config.memory_bytes_max = Some(BASE_BYTES + 5 * CONNECTION_BYTES / 2));
    net.open("A", "");
    net.open("B", "");
    assert!(net.request(ListenerKind::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    // Existing peers are unaffected.
    net.send("A", Message::text(r#"{"type":"join","id":"A"}"#));
    net.send("B", Message::text(r#"{"type":"join","id":"B"}"#));
    net.close("B");
    assert_eq!(receive_json(&mut net, "A")["type"], "joined");
    assert_eq!(receive_json(&mut net, "A")["type"], "peerJoined");
    assert_eq!(receive_json(&mut net, "A")["type"], "peerLeft");
    net.wait_until(|net| (net.server.sessions() == 1).then_some(()));
    net.open("C", "");
    net.finish();
}

#[test]
fn full_server_answers_503_and_keeps_serving() {
    let mut net = with(|config| config.connections_max = 2);
    net.open("A", "");
    net.open("B", "");
    for _ in 0..3 {
        assert!(net.request(ListenerKind::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    }
    assert!(
        net.request(ListenerKind::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            .starts_with("HTTP/1.1 200 ")
    );
    assert!(
        net.request(ListenerKind::Operator, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            .starts_with("HTTP/1.1 200 ")
    );
    // Connections that send no request are closed after the head timeout.
    let mut idle: Vec<_> = (0..40).map(|_| net.connect(ListenerKind::Main)).collect();
    net.close("A");
    net.server.poll_once(Some(Duration::ZERO)).unwrap();
    assert_eq!(net.server.sessions(), 2 + REJECTED_AT_ONCE);
    net.server.advance(HEAD_TIME_MAX);
    for stream in &mut idle[..17] {
        assert!(net.read_to_end(stream).starts_with(b"HTTP/1.1 408 "));
    }
    drop(idle);
    net.open("C", "");
    assert!(net.request(ListenerKind::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    net.finish();
}

#[test]
fn oldest_unanswered_request_is_evicted_on_a_full_server() {
    let health = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    for (listener, places) in
        [(ListenerKind::Main, REJECTED_AT_ONCE), (ListenerKind::Operator, OPERATOR_CONNECTIONS_MAX)]
    {
        let mut net = with(|config| config.connections_max = 1);
        net.open("A", "");
        let mut idle: Vec<_> = (0..places).map(|_| net.connect(listener)).collect();
        net.wait_until(|net| (net.server.sessions() == 1 + places).then_some(()));
        for evicted in 0..3 {
            net.server.advance(EVICTION_TIME_MIN);
            assert!(net.request(listener, health).starts_with("HTTP/1.1 200 "));
            // The answered request frees its slot, and another idle connection takes it.
            assert!(net.read_to_end(&mut idle[evicted]).starts_with(b"HTTP/1.1 408 "));
            idle.push(net.connect(listener));
            net.wait_until(|net| (net.server.sessions() == 1 + places).then_some(()));
        }
        for stream in &mut idle[3..] {
            let read = stream.read(&mut [0]);
            assert!(
                read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "younger connections stay open"
            );
        }
        drop(idle);
        net.finish();
    }
}

#[test]
fn request_timeout_is_one_second_on_a_full_server() {
    for (connections_max, time) in [(1, HEAD_TIME_FULL_MAX), (2, HEAD_TIME_MAX)] {
        let mut net = with(|config| config.connections_max = connections_max);
        net.open("A", "");
        let mut idle = net.connect(ListenerKind::Main);
        net.wait_until(|net| (net.server.sessions() == 2).then_some(()));
        net.server.advance(time - Duration::from_millis(500));
        net.server.poll_once(Some(Duration::ZERO)).unwrap();
        net.server.poll_once(Some(Duration::ZERO)).unwrap();
        assert!(idle.read(&mut [0]).is_err(), "the timeout has not passed");
        net.server.advance(Duration::from_secs(1));
        assert!(net.read_to_end(&mut idle).starts_with(b"HTTP/1.1 408 "));
        net.finish();
    }
}
