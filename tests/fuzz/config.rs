//! Arbitrary variables and flags: an error is one printable line, and accepted values are in the documented ranges.

#![cfg_attr(not(test), no_main)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use noroshi::config::{Command, Config};
use noroshi::protocols;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const WORDS: [&str; 32] = [
    "listen",
    "allow-origin",
    "max-connections",
    "max-connections-per-ip",
    "trust-proxy",
    "client-ip-header",
    "max-memory",
    "max-mesh-peers",
    "max-message",
    "max-rate",
    "ping-interval",
    "ice-server",
    "turn-secret-file",
    "token-secret-file",
    "ayame",
    "matchbox",
    "drain",
    "no-page",
    "metrics",
    "metrics-host",
    "log",
    "port",
    "port-8080-tcp",
    "service-host",
    "service-port",
    "peerjs",
    "secret-file",
    "room",
    "room-prefix",
    "id",
    "ttl",
    "",
];

/// The first byte selects the command. Each line is a variable or an argument: the low five bits of its first byte
/// select the name, the others the form of the value.
pub fn check(data: &[u8]) {
    let Some((command, lines)) = data.split_first() else { return };
    let mut variables = Vec::new();
    let mut args = Vec::<OsString>::new();
    let command = [None, None, Some("token"), Some("health")][usize::from(command & 3)];
    args.extend(command.map(OsString::from));
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((how, value)) = line.split_first() else { continue };
        let word = WORDS[usize::from(how & 31)];
        let with = |begin: String| OsString::from_vec([begin.as_bytes(), value].concat());
        match how >> 5 {
            0 | 1 => {
                let name = format!("NOROSHI_{}", word.to_uppercase().replace('-', "_"));
                variables.push((name.into(), OsString::from_vec(value.to_vec())));
            }
            2 => variables.push(("PORT".into(), OsString::from_vec(value.to_vec()))),
            3 => variables.push((with(format!("NOROSHI_{}", word.to_uppercase())), "x".into())),
            4 | 5 => args.push(with(format!("--{word}="))),
            6 => args.extend([format!("--{word}").into(), OsString::from_vec(value.to_vec())]),
            _ => args.push(OsString::from_vec(value.to_vec())),
        }
    }
    let is_health = args.first().is_some_and(|first| first == "health");
    match Config::parse_with_environment(&protocols::endpoints(protocols::ALL), variables, args) {
        Err(error) => assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}"),
        Ok(Command::Run(config)) => check_config(&config),
        Ok(Command::Token(mint)) => {
            assert!(mint.ttl.as_secs() > 0);
            let has_control = |id: &String| id.contains(|c| matches!(c, '\0'..='\x1f' | '\x7f'));
            assert!(mint.id.is_none_or(|id| (1..=128).contains(&id.len()) && !has_control(&id)));
        }
        Ok(Command::Health(probe)) => {
            assert!(probe.path.starts_with('/') && probe.path.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(probe.authority.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(is_health);
        }
        Ok(Command::Help | Command::Version) => {}
    }
}

/// Asserts the ranges of the table of flags in `scripts/deploy/README.md`.
fn check_config(config: &Config) {
    assert!((1..=1_000_000).contains(&config.connections_max));
    assert!(config.connections_per_ip_max <= 1_000_000);
    assert!(config.memory_bytes_max.is_none_or(|bytes| (8 << 20..=1024 << 30).contains(&bytes)));
    assert!((1..=1000).contains(&config.mesh_peers_max));
    assert!((1 << 10..=16 << 20).contains(&config.message_bytes_max));
    assert!(config.rate_max <= 1_000_000);
    assert!((1..=3600).contains(&config.ping_interval.as_secs()));
    assert!(config.drain.as_secs() <= 86_400);
    assert!(config.port > 0);
    assert!(config.ice_servers.len() <= 8);
    let is_path = |path: &str| {
        let own = ["/", "/ws", "/healthz", "/.ok", "/health", "/check", "/noroshi.js", "/noroshi"];
        let is_below_own = path.starts_with("/ws/") || path.starts_with("/noroshi/");
        path.starts_with('/') && !path.ends_with('/') && !own.contains(&path) && !is_below_own
    };
    let mut paths: Vec<&str> = Vec::new();
    for (endpoint, path) in &config.mounts {
        assert!(is_path(path) || (path.is_empty() && endpoint.may_be_root), "{path}");
        assert!(!paths.contains(&path.as_str()), "{path} has two protocols");
        paths.push(path);
    }
    for name in config.client_ip_header.iter().chain(&config.metrics_hosts) {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
    }
    assert!(config.metrics_hosts.is_empty() || config.metrics.is_some());
    let needs_secret = config.ice_servers.iter().any(|url| url.starts_with("turn"));
    assert_eq!(needs_secret, config.turn_secret_file.is_some());
}
