//! Log lines of rejected upgrades, metrics, and signals.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::Duration;

use crate::common::files::Folder;
use crate::common::pipe::REQUEST;
use crate::common::process::{NOROSHI, Running, eventually, run};
use crate::common::program::is_installed;
use nix::sys::signal::Signal;
use noroshi::limits::{LOG_LINE_BYTES_MAX, REJECTIONS_LOGGED_MAX, SECRET_FILE_BYTES_MAX};
use serde_json::Value;
use tungstenite::Message;

const PROMTOOL: &str = "/usr/bin/promtool";

/// Sends a request and returns the status of the response.
fn status(server: &Running, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer["HTTP/1.1 ".len()..][..3].to_owned()
}

#[test]
fn rejected_upgrades_are_logged_at_a_limited_rate() {
    let (server, mut stderr) = run(r#"exec "$0""#);
    // The sweep runs while a connection exists.
    let _socket = server.websocket("/ws");
    let foreign = REQUEST.replace("Host: h\r\n", "Host: h:8080\r\nOrigin: https://h\r\n");
    assert_eq!(status(&server, &foreign), "403");
    let mut line = String::new();
    let why = r#"refused: 403, Origin "https://h" does not match Host "h:8080"; see --allow-origin"#;
    while !line.contains("refused") {
        line.clear();
        stderr.read_line(&mut line).unwrap();
    }
    assert!(
        line.contains(" INFO ") && line.contains("127.0.0.1:") && line.trim_end().ends_with(why),
        "{line}"
    );
    let requests = 300;
    for _ in 0..requests {
        assert_eq!(status(&server, &REQUEST.replace("/ws/tea", "/tea")), "404");
    }
    // A plain request is not a rejected upgrade.
    assert_eq!(status(&server, "GET /tea HTTP/1.1\r\nHost: h\r\n\r\n"), "404");
    let mut logged = 0;
    let mut truncated = 0;
    while logged + truncated < requests {
        line.clear();
        stderr.read_line(&mut line).unwrap();
        if line.contains("refused: 404, ") {
            logged += 1;
        } else if let Some(rest) = line.split("and ").nth(1) {
            truncated += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
        }
    }
    assert!(logged + truncated == requests && truncated > 0, "{logged} lines, and {truncated} in others");
    assert_eq!(server.metric("refused_upgrades_total{status=\"404\"}"), requests as f64);
    assert_eq!(server.metric("refused_upgrades_total{status=\"403\"}"), 1.0);
}

#[test]
fn rejected_upgrades_are_counted_in_the_log_after_the_last_disconnect() {
    let (server, mut stderr) = run(r#"exec "$0""#);
    for _ in 0..REJECTIONS_LOGGED_MAX + 20 {
        assert_eq!(status(&server, &REQUEST.replace("/ws/tea", "/tea")), "404");
    }
    let (sender, lines) = channel();
    let reader = spawn(move || {
        let mut line = String::new();
        while stderr.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let _ = sender.send(std::mem::take(&mut line));
        }
    });
    // A sweep between the requests may count some of them earlier.
    let mut logged = 0;
    let mut counted = 0;
    while logged + counted < REJECTIONS_LOGGED_MAX + 20 {
        let line = lines.recv_timeout(Duration::from_secs(5)).expect("the rest is counted within seconds");
        if line.contains("refused: 404, ") {
            logged += 1;
        } else if let Some((_, rest)) = line.split_once("and ") {
            counted += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
        }
    }
    assert!(counted > 0);
    drop(server);
    reader.join().unwrap();
}

#[test]
fn log_line_is_limited_in_bytes() {
    let (mut server, mut stderr) = run(r#"exec "$0""#);
    // `{:?}` writes ten bytes for each of these characters.
    let long = "\u{10fffd}".repeat(1000);
    for header in [format!("Origin: https://{long}"), format!("Origin: https://a\r\nX-Long: {long}")] {
        let host = if header.contains("X-Long") { &long } else { "h" };
        let foreign = REQUEST.replace("Host: h\r\n", &format!("Host: {host}\r\n{header}\r\n"));
        assert_eq!(status(&server, &foreign), "403");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("was refused: 403, Origin")).collect();
    assert_eq!(refused.len(), 2, "{log}");
    for line in refused {
        assert!(line.len() < LOG_LINE_BYTES_MAX && line.len() > LOG_LINE_BYTES_MAX - 30, "{line}");
        assert!(line.ends_with(" [truncated]"), "{line}");
    }
}

#[test]
fn metrics_exist_from_the_start_in_prometheus_format() {
    let (server, _stderr) = run(r#"exec "$0""#);
    for name in [
        "refused_upgrades_total{status=\"403\"}",
        "messages_total{type=\"connect\"}",
        "errors_total{code=\"peer_busy\"}",
        "closings_total{reason=\"slow\"}",
        "loop_turn_seconds_bucket{le=\"1\"}",
        "loop_turn_seconds_bucket{le=\"+Inf\"}",
        "loop_turn_seconds_count",
        "loop_turn_seconds_sum",
        concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"),
    ] {
        let value = server.metric(name);
        assert!(
            value >= 0.0 && (name.contains("loop") || name.contains("build") || value == 0.0),
            "{name} {value}"
        );
    }
    let page = || server.request(server.metrics, "/metrics");
    let value = |name: &str| {
        let page = page();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse::<f64>().unwrap()
    };
    // The requesting connection is included, and an earlier one may be.
    let descriptors = server.descriptors() as f64;
    assert!((descriptors..descriptors + 3.0).contains(&value("process_open_fds")));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..now).contains(&value("process_start_time_seconds")));

    if !is_installed(PROMTOOL) {
        return;
    }
    let mut promtool = Command::new(PROMTOOL)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let page = page();
    promtool.stdin.take().unwrap().write_all(page.split_once("\r\n\r\n").unwrap().1.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A file that is removed when the value is dropped.
struct Secret(PathBuf);

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn sighup_reloads_the_secret() {
    let file = Secret(std::env::temp_dir().join(format!("noroshi-secret-{}", std::process::id())));
    std::fs::write(&file.0, "north").unwrap();
    let flags = format!("--ice-server turn:t.example --turn-secret-file {}", file.0.display());
    let (mut server, mut stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let mut socket = server.websocket("/ws");
    // The user name contains the time. The secret in use shows in the signature of that name.
    let mut is_signed_with = |secret: &str| {
        socket.send(Message::text(r#"{"type":"join","id":"A"}"#)).unwrap();
        let joined: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
        let turn = &joined["iceServers"][0];
        let script =
            format!("printf %s {} | openssl dgst -sha1 -hmac {secret} -binary | base64", turn["username"]);
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim() == turn["credential"]
    };
    let mut wait_for_log = |word: &str| {
        let mut line = String::new();
        while !line.contains("SIGHUP") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0);
        }
        assert!(line.contains(word), "{line}");
    };
    assert!(is_signed_with("north"));
    std::fs::write(&file.0, "south\n").unwrap();
    server.signal(Signal::SIGHUP);
    wait_for_log("reloaded");
    assert!(is_signed_with("south"));
    std::fs::write(&file.0, " \n").unwrap();
    server.signal(Signal::SIGHUP);
    wait_for_log("the previous secrets remain in use");
    assert!(is_signed_with("south"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));

    let (server, _stderr) = run(r#"exec "$0""#);
    let _socket = server.websocket("/ws");
    server.signal(Signal::SIGHUP);
    eventually("it lives on", || server.is_healthy());
    assert_eq!(server.metric("connections"), 1.0);
}

#[test]
fn irregular_or_oversized_secret_file_is_rejected_at_start_and_reload() {
    let folder = Folder::new("odd-secrets");
    let [secret, link] = ["secret", "link"].map(|name| folder.0.join(name));
    let good = "0123456789abcdef0123456789abcdef";
    std::fs::write(&secret, good).unwrap();
    // Kubernetes mounts secrets as symbolic links.
    symlink(&secret, &link).unwrap();
    let flags = format!("--token-secret-file {}", link.display());
    let (server, mut stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let make_fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let make_directory = |path: &Path| std::fs::create_dir(path).unwrap();
    let make_large = |path: &Path| std::fs::write(path, "#".repeat(SECRET_FILE_BYTES_MAX + 1)).unwrap();
    for (make, expected) in [
        (&make_fifo as &dyn Fn(&Path), "expected a regular file, got a FIFO or pipe"),
        (&make_directory, "expected a regular file, got a directory"),
        (&make_large, "expected at most 64K bytes, got more"),
    ] {
        std::fs::remove_file(&secret).unwrap();
        make(&secret);
        server.signal(Signal::SIGHUP);
        let mut line = String::new();
        while !line.contains("SIGHUP") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0);
        }
        let named = format!("--token-secret-file {link:?}: {expected}");
        assert!(line.contains(&named) && line.ends_with("; the previous secrets remain in use\n"), "{line}");
        assert!(server.is_healthy());

        for flags in [
            ["--token-secret-file", link.to_str().unwrap(), "--ice-server", "stun:s.example"],
            ["--turn-secret-file", link.to_str().unwrap(), "--ice-server", "turn:t.example"],
        ] {
            let output = Command::new(*NOROSHI).args(flags).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert_eq!(stderr, format!("noroshi: {} {link:?}: {expected}\n", flags[0]));
        }
        let moved = folder.0.join(format!("moved-{}", expected.len()));
        std::fs::rename(&secret, moved).unwrap();
        std::fs::write(&secret, good).unwrap();
    }
}
