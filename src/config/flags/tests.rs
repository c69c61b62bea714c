//! Tests of the command line.

use log::LevelFilter;

use super::super::{ListenAddress, Secret, Size};
use super::*;
use crate::config::endpoint::examples::{AYAME, ENDPOINTS, MATCHBOX};
use crate::http::address::Network;

fn parse(line: &str) -> Result<Command, String> {
    Config::parse(ENDPOINTS, line.split_whitespace().map(OsString::from))
}

#[test]
fn every_flag_is_parsed() {
    let line = "-l 127.0.0.1:1 --listen [::1]:2 -lunix:/run/it --allow-origin https://a.example --allow-origin=* \
        --max-connections 3 --max-connections-per-ip 9 --trust-proxy 10.0.0.0/8 --trust-proxy ::1 \
        --max-memory 1G --max-mesh-peers 4 --max-message 5k --max-rate 0 --ping-interval 7 \
        --ice-server stun:a.example --ice-server=turn:b.example --turn-secret-file /etc/secret --no-page \
        --metrics 127.0.0.1:8 --log debug --ayame --matchbox=/games";
    let Ok(Command::Run(config)) = parse(line) else { panic!("{line}") };
    let [first, second] =
        ["127.0.0.1:1", "[::1]:2"].map(|address| ListenAddress::Tcp(address.parse().unwrap()));
    assert_eq!(config.listen, [first, second, ListenAddress::Unix("/run/it".into())]);
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
    assert_eq!((config.path_of(&AYAME), config.path_of(&MATCHBOX)), (Some("/signaling"), Some("/games")));
    assert!(!config.page);
    assert_eq!(config.metrics, Some("127.0.0.1:8".parse().unwrap()));
    assert_eq!(config.log, LevelFilter::Debug);
}

#[test]
fn ice_servers_are_stun_or_turn_urls() {
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
    assert_eq!(parse(&nine).unwrap_err(), "--ice-server: expected at most 8 of them, got more");
    assert_eq!(
        parse("--ice-server turn:a.example").unwrap_err(),
        "--ice-server \"turn:a.example\": expected --turn-secret-file too, got none"
    );
    assert!(parse("--turn-secret-file /x --ice-server stun:a.example").is_err());
}

#[test]
fn client_ip_header_is_a_header_name() {
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
fn metrics_hosts_are_host_names() {
    let line = "--metrics 127.0.0.1:8 --metrics-host a.example --metrics-host=B_1.example";
    let Ok(Command::Run(config)) = parse(line) else { panic!("{line}") };
    assert_eq!(config.metrics_hosts, ["a.example", "B_1.example"]);
    for name in ["a.example:80", "http://a.example", "*", "é", &"x".repeat(254)] {
        let error = parse(&format!("--metrics 127.0.0.1:8 --metrics-host {name}")).unwrap_err();
        assert!(error.starts_with("--metrics-host: expected the name of a host"), "{error}");
    }
    assert_eq!(
        parse("--metrics-host a.example").unwrap_err(),
        "--metrics-host: expected --metrics too, got none"
    );
}

#[test]
fn debug_output_hides_secrets() {
    let turn_secret = Some(Secret("open sesame".to_owned()));
    assert!(!format!("{:?}", Config { turn_secret, ..Config::default() }).contains("sesame"));
}

#[test]
fn byte_order_mark_is_removed_from_turn_secret() {
    let file = std::env::temp_dir().join(format!("noroshi-byte-order-mark-{}", std::process::id()));
    let read_secret = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        Secret::read(&file).map(|secret| secret.0).map_err(|error| error.to_string())
    };
    let secrets = [
        read_secret(b"\xef\xbb\xbfnorth\r\n"),
        read_secret(b" north"),
        read_secret(b"\xff\xfen\0"),
        read_secret(b"\xfe\xff\0n"),
        read_secret(b"\xef\xbb\xbf\n"),
        read_secret(b"north\xff"),
    ];
    std::fs::remove_file(&file).unwrap();
    let utf16 = Err("expected UTF-8, got UTF-16: save the file as UTF-8".to_owned());
    let expected = [
        Ok("north".to_owned()),
        Ok("north".to_owned()),
        utf16.clone(),
        utf16,
        Err("expected a secret, got an empty file".to_owned()),
        Err("expected text in UTF-8, got other bytes".to_owned()),
    ];
    assert_eq!(secrets, expected);
}

#[test]
fn sizes_have_binary_units() {
    for (text, bytes) in [("1024", 1024), ("64K", 65_536), ("1M", 1 << 20), ("16m", 16 << 20)] {
        assert_eq!(size_within(text, KIB, 16 * MIB), Ok(bytes));
    }
    for text in ["", "K", "1023", "17M", "1G", "-1K", "1.5K", "99999999999999999999K"] {
        assert!(size_within(text, KIB, 16 * MIB).is_err(), "{text}");
    }
    for (bytes, text) in [(0, "0"), (1023, "1023"), (65_536, "64K"), (65_537, "64.1K"), (3 << 29, "1.5G")] {
        assert_eq!(Size(bytes).to_string(), text);
    }
}

#[test]
fn error_names_flag_and_value_in_one_line() {
    assert_eq!(
        parse("--max-rate x").unwrap_err(),
        "--max-rate: expected a whole number from 0 to 1000000, got \"x\""
    );
    assert!(!Config::parse(ENDPOINTS, [OsString::from("--x\ny")]).unwrap_err().contains('\n'));
}

#[test]
fn other_protocols_are_served_at_their_own_paths() {
    let Ok(Command::Run(config)) = parse("--matchbox --ayame=/a/b.c") else { panic!("the paths are valid") };
    assert_eq!((config.path_of(&AYAME), config.path_of(&MATCHBOX)), (Some("/a/b.c"), Some("")));
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
fn protocol_path_that_the_server_uses_is_rejected() {
    let used_paths = ["/ws", "/ws/tea", "/noroshi", "/noroshi/any.js", "/healthz", "/.ok", "/health"];
    let used_paths = used_paths.into_iter().chain(crate::http::paths::PAGES);
    for (flag, path) in used_paths.flat_map(|path| [("--ayame", path), ("--matchbox", path)]) {
        if (flag, path) == ("--matchbox", "/") {
            // The rooms may be at the top level: pages and health checks take precedence.
            continue;
        }
        let used = match path {
            "/ws/tea" => "/ws",
            "/noroshi/any.js" => "/noroshi",
            _ => path,
        };
        let error = parse(&format!("{flag}={path}")).unwrap_err();
        let expected = format!(
            "{flag}: expected a path such as /signaling that the server does not use itself (it uses {used}), got {path:?}"
        );
        assert_eq!(error, expected);
    }
    for path in ["/wsx", "/checks", "/metrics", "/.ok/a", "/Check", "/noroshi2", "/a/noroshi"] {
        assert!(parse(&format!("--ayame={path}")).is_ok(), "{path}");
    }
}

#[test]
fn health_check_has_a_url_or_a_socket() {
    for (line, authority, path) in [
        ("health", "127.0.0.1:8080", "/healthz"),
        ("health http://a.example:80", "a.example:80", "/healthz"),
        ("health http://[::1]:8081/", "[::1]:8081", "/"),
        ("health http://10.0.0.1:1/a/b?c", "10.0.0.1:1", "/a/b?c"),
    ] {
        let Ok(Command::Health(check)) = parse(line) else { panic!("{line}") };
        assert_eq!((check.authority.as_str(), check.path.as_str()), (authority, path));
        assert_eq!(check.to_string(), format!("http://{authority}{path}"));
    }
    assert_eq!(health_check("unix:/run/it").unwrap().to_string(), "unix:/run/it");
    for url in [
        "",
        "unix:",
        "a.example:80",
        "https://a.example:443/",
        "http://a.example",
        "http://:80",
        "http://a:99999",
    ] {
        assert!(health_check(url).is_err(), "{url}");
    }
    assert!(health_check("http://a:80/ HTTP/1.1\r\nX: y").is_err());
    assert!(parse("health http://a:80 http://b:80").is_err());
    assert!(parse("health --listen [::1]:2").is_err());
    assert!(matches!(parse("health --help"), Ok(Command::Help)));
}
