//! The command line, read.

use log::LevelFilter;

use super::super::{Listen, Secret, Size};
use super::*;
use crate::address::Network;

fn parse(line: &str) -> Result<Command, String> {
    Config::parse(line.split_whitespace().map(OsString::from))
}

#[test]
fn every_flag() {
    let line = "-l 127.0.0.1:1 --listen [::1]:2 -lunix:/run/it --allow-origin https://a.example --allow-origin=* \
        --max-connections 3 --max-connections-per-ip 9 --trust-proxy 10.0.0.0/8 --trust-proxy ::1 \
        --max-memory 1G --max-mesh-peers 4 --max-message 5k --max-rate 0 --ping-interval 7 \
        --ice-server stun:a.example --ice-server=turn:b.example --turn-secret-file /etc/secret --no-page \
        --metrics 127.0.0.1:8 --log debug --ayame --matchbox=/games";
    let Ok(Command::Run(config)) = parse(line) else { panic!("{line}") };
    let [first, second] = ["127.0.0.1:1", "[::1]:2"].map(|address| Listen::Tcp(address.parse().unwrap()));
    assert_eq!(config.listen, [first, second, Listen::Unix("/run/it".into())]);
    assert_eq!(
        config.allow_origins,
        ["https://a.example", "*"].map(|text| AllowedOrigin::parse(text).unwrap())
    );
    assert_eq!((config.connections_max, config.mesh_peers_max), (3, 4));
    assert_eq!((config.connections_per_ip_max, config.memory_bytes_max), (9, Some(1 << 30)));
    assert_eq!(config.trusted_proxies, ["10.0.0.0/8", "::1"].map(|text| Network::parse(text).unwrap()));
    assert_eq!((config.message_bytes_max, config.rate_max), (5 * 1024, 0));
    assert_eq!(config.ping_interval, Duration::from_secs(7));
    assert_eq!(config.ice_servers, ["stun:a.example", "turn:b.example"]);
    assert_eq!(config.turn_secret_file, Some("/etc/secret".into()));
    assert_eq!((config.ayame.as_deref(), config.matchbox.as_deref()), (Some("/signaling"), Some("/games")));
    assert!(!config.page);
    assert_eq!(config.metrics, Some("127.0.0.1:8".parse().unwrap()));
    assert_eq!(config.log, LevelFilter::Debug);
}

#[test]
fn ice_servers() {
    for url in [
        "stun:stun.example",
        "stuns:stun.example:5349",
        "turn:192.0.2.1",
        "turn:[2001:db8::1]:3478?transport=tcp",
        "turns:[2001:db8::1]",
        "turn:turn_1.example?transport=udp",
    ] {
        assert_eq!(ice_server(url), Ok(url.to_owned()));
    }
    for url in [
        "",
        "stun",
        "stun:",
        "stun:?transport=udp",
        "STUN:a.example",
        "http://a.example",
        "stun://a.example",
        "turn:user@a.example",
        "stun:a.example:",
        "stun:a.example:0",
        "stun:a.example:+1",
        "stun:a.example:65536",
        "stun:a.example?transport=udp",
        "turn:a.example?transport=tls",
        "turn:2001:db8::1",
        "turn:[2001:db8::1",
        "turn:[a.example]",
        "turn:a b",
        &format!("stun:{}", "x".repeat(300)),
    ] {
        assert!(ice_server(url).is_err(), "{url}");
    }
    let nine = "--ice-server stun:a.example ".repeat(9);
    assert_eq!(parse(&nine).unwrap_err(), "--ice-server: at most 8");
    assert_eq!(
        parse("--ice-server turn:a.example").unwrap_err(),
        "--ice-server turn:a.example: needs --turn-secret-file"
    );
    assert!(parse("--turn-secret-file /x --ice-server stun:a.example").is_err());
}

#[test]
fn the_header_of_the_client_address_is_a_name() {
    let header = |name: &str| match parse(&format!("--client-ip-header {name}")) {
        Ok(Command::Run(config)) => Ok(config.client_ip_header.unwrap()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    assert_eq!(header("CF-Connecting-IP"), Ok("CF-Connecting-IP".to_owned()));
    for name in ["Forwarded", "forwarded", "X-Real-IP:", "é", "a,b", "--client-ip-header=", &"x".repeat(65)]
    {
        let error = header(name).unwrap_err();
        assert!(error.starts_with("--client-ip-header") && error.contains("such as X-Real-IP"), "{error}");
    }
}

#[test]
fn hosts_of_the_metrics_listener_are_names() {
    let line = "--metrics 127.0.0.1:8 --metrics-host a.example --metrics-host=B_1.example";
    let Ok(Command::Run(config)) = parse(line) else { panic!("{line}") };
    assert_eq!(config.metrics_hosts, ["a.example", "B_1.example"]);
    for name in ["a.example:80", "http://a.example", "*", "é", &"x".repeat(254)] {
        let error = parse(&format!("--metrics 127.0.0.1:8 --metrics-host {name}")).unwrap_err();
        assert!(error.starts_with("--metrics-host: expected the name of a host"), "{error}");
    }
    assert_eq!(
        parse("--metrics-host a.example").unwrap_err(),
        "--metrics-host: expected --metrics beside it"
    );
}

#[test]
fn a_secret_is_shown_to_nobody() {
    let turn_secret = Some(Secret("open sesame".to_owned()));
    assert!(!format!("{:?}", Config { turn_secret, ..Config::default() }).contains("sesame"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_turn_secret() {
    let file = std::env::temp_dir().join(format!("noroshi-mark-{}", std::process::id()));
    let read = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        Secret::read(&file).map(|secret| secret.0).map_err(|error| error.to_string())
    };
    let read = [
        read(b"\xef\xbb\xbfnorth\r\n"),
        read(b" north"),
        read(b"\xff\xfen\0"),
        read(b"\xfe\xff\0n"),
        read(b"\xef\xbb\xbf\n"),
        read(b"north\xff"),
    ];
    std::fs::remove_file(&file).unwrap();
    let utf16 = Err("expected UTF-8, got UTF-16: save the file as UTF-8".to_owned());
    let expected = [
        Ok("north".to_owned()),
        Ok("north".to_owned()),
        utf16.clone(),
        utf16,
        Err("there is nothing in it".to_owned()),
        Err("expected text in UTF-8, got other bytes".to_owned()),
    ];
    assert_eq!(read, expected);
}

#[test]
fn sizes() {
    for (text, bytes) in [("1024", 1024), ("64K", 65_536), ("1M", 1 << 20), ("16m", 16 << 20)] {
        assert_eq!(size(text, KIB, 16 * MIB), Ok(bytes));
    }
    for text in ["", "K", "1023", "17M", "1G", "-1K", "1.5K", "99999999999999999999K"] {
        assert!(size(text, KIB, 16 * MIB).is_err(), "{text}");
    }
    for (bytes, text) in [(0, "0"), (1023, "1023"), (65_536, "64K"), (65_537, "64.1K"), (3 << 29, "1.5G")] {
        assert_eq!(Size(bytes).to_string(), text);
    }
}

#[test]
fn a_wrong_value_is_named_with_its_flag_in_one_line() {
    assert_eq!(
        parse("--max-rate x").unwrap_err(),
        "--max-rate: expected a whole number from 0 to 1000000, got \"x\""
    );
    assert!(!Config::parse([OsString::from("--x\ny")]).unwrap_err().contains('\n'));
}

#[test]
fn other_protocols_have_paths_of_their_own() {
    let Ok(Command::Run(config)) = parse("--matchbox --ayame=/a/b.c") else { panic!("they are fine") };
    assert_eq!((config.ayame.as_deref(), config.matchbox.as_deref()), (Some("/a/b.c"), Some("")));
    for line in [
        "--ayame=/ws",
        "--ayame=/ws/tea",
        "--ayame=/",
        "--ayame=",
        "--ayame=signaling",
        "--ayame=/a?b",
        "--matchbox=/healthz",
        "--listen unix:",
        "--matchbox=/games/",
        "--matchbox=/a --ayame=/a",
        "--ayame /signaling",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn no_protocol_is_mounted_at_a_path_of_the_server() {
    let own = ["/ws", "/ws/tea", "/healthz", "/.ok", "/health"].into_iter().chain(crate::paths::PAGES);
    for (flag, path) in own.flat_map(|path| [("--ayame", path), ("--matchbox", path)]) {
        if (flag, path) == ("--matchbox", "/") {
            // There the rooms are at the top, and only for what is left.
            continue;
        }
        let uses = if path == "/ws/tea" { "/ws" } else { path };
        let error = parse(&format!("{flag}={path}")).unwrap_err();
        let expected = format!(
            "{flag}: expected a path such as /signaling that the server does not use itself (it uses {uses}), got {path:?}"
        );
        assert_eq!(error, expected);
    }
    for path in ["/wsx", "/checks", "/metrics", "/.ok/a", "/Check"] {
        assert!(parse(&format!("--ayame={path}")).is_ok(), "{path}");
    }
}

#[test]
fn who_is_asked_for_its_health() {
    for (line, authority, path) in [
        ("health", "127.0.0.1:8080", "/healthz"),
        ("health http://a.example:80", "a.example:80", "/healthz"),
        ("health http://[::1]:8081/", "[::1]:8081", "/"),
        ("health http://10.0.0.1:1/a/b?c", "10.0.0.1:1", "/a/b?c"),
    ] {
        let Ok(Command::Health(probe)) = parse(line) else { panic!("{line}") };
        assert_eq!((probe.authority.as_str(), probe.path.as_str()), (authority, path));
        assert_eq!(probe.to_string(), format!("http://{authority}{path}"));
    }
    assert_eq!(probe("unix:/run/it").unwrap().to_string(), "unix:/run/it");
    for url in [
        "",
        "unix:",
        "a.example:80",
        "https://a.example:443/",
        "http://a.example",
        "http://:80",
        "http://a:99999",
    ] {
        assert!(probe(url).is_err(), "{url}");
    }
    assert!(probe("http://a:80/ HTTP/1.1\r\nX: y").is_err());
    assert!(parse("health http://a:80 http://b:80").is_err());
    assert!(parse("health --listen [::1]:2").is_err());
    assert!(matches!(parse("health --help"), Ok(Command::Help)));
}
