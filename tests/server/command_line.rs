//! The program from the operator's view: flags, exit codes, signals, logs and descriptors.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::files::Folder;
use crate::common::process::{NOROSHI, RetryOnInterrupt, Running, eventually, run};
use nix::sys::signal::Signal;
use noroshi::config::Config;
use noroshi::limits::LOG_LINE_BYTES_MAX;
use noroshi::protocols;
use tungstenite::{Error, Message, WebSocket};

fn noroshi(args: &[&str]) -> Output {
    Command::new(*NOROSHI).args(args).output().unwrap()
}

fn send_text(socket: &mut WebSocket<RetryOnInterrupt>, text: &str) {
    socket.send(Message::text(text)).unwrap();
}

#[test]
fn help_and_version_are_printed() {
    for flag in ["-h", "--help"] {
        let output = noroshi(&[flag]);
        assert!(output.status.success() && output.stderr.is_empty());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            Config::help(&protocols::endpoints(protocols::ALL))
        );
    }
    for flag in ["-V", "--version"] {
        let output = noroshi(&[flag]);
        assert!(output.status.success());
        assert_eq!(output.stdout, format!("noroshi {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    }
}

#[test]
fn health_command_checks_a_server() {
    let (server, _stderr) = run("exec \"$0\"");
    let url = |path: &str| format!("http://{}{path}", server.address);
    let output = noroshi(&["health", &url("")]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // A listener that accepts and never responds, and a closed port.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (url, why) in
        [(url("/nowhere"), "404"), (silent, "timed out"), ("http://127.0.0.1:1".into(), "refused")]
    {
        let output = noroshi(&["health", &url]);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}");
        assert!(line.lines().count() == 1 && line.contains(&url) && line.contains(why), "{line}");
    }
    assert_eq!(noroshi(&["health", "https://a.example:443"]).status.code(), Some(2));
}

#[test]
fn error_message_names_the_flag_in_one_line() {
    for (args, named) in [
        (&["--lsiten", "1"][..], "--lsiten"),
        (&["extra"], "extra"),
        (&["--listen"], "--listen"),
        (&["-l", "8080"], "8080"),
        (&["-l", "localhost:8080"], "localhost:8080"),
        (&["--max-connections", "0"], "whole number"),
        (&["--max-connections", "many"], "many"),
        (&["--max-message", "64X"], "64X"),
        (&["--max-message", "1"], "1K to 16M"),
        (&["--max-message", "99999999999999999999M"], "1K to 16M"),
        (&["--max-rate", "-1"], "-1"),
        (&["--ping-interval", "0"], "whole number"),
        (&["--ping-interval", "2.5"], "2.5"),
        (&["--allow-origin", "example.com"], "SCHEME://HOST"),
        (&["--allow-origin", "https://example.com/"], "SCHEME://HOST"),
        (&["--ice-server", "a.example"], "stun:HOST"),
        (&["--ice-server", "turn:a.example"], "--turn-secret-file"),
        (&["--ice-server", "turn:a.example", "--turn-secret-file", "/no/where"], "/no/where"),
        (&["--ice-server", "turn:a.example", "--turn-secret-file", "/dev/null"], "/dev/null"),
        (&["--ice-server", "turn:a.example", "--turn-secret-file", "/"], "directory"),
        (&["--turn-secret-file", "/dev/null"], "--ice-server"),
        (&["--metrics", "9090"], "9090"),
        (&["--log", "loud"], "loud"),
    ] {
        let output = noroshi(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(named) && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn error_message_is_one_line_of_limited_length() {
    let long = format!("unix:/{}", "x".repeat(5000));
    for (listen, expected) in [
        (long.as_str(), "xxx [truncated]\n"),
        ("unix:/no/where\nforged", "cannot listen on unix:/no/where\\nforged: "),
        ("unix:/no/where\u{2028}\u{202e}forged", "cannot listen on unix:/no/where\\u{2028}\\u{202e}forged: "),
    ] {
        let output = noroshi(&["-l", listen]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(expected) && stderr.ends_with('\n'), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.len() <= LOG_LINE_BYTES_MAX, "{stderr}");
    }
}

#[test]
fn page_is_served_unless_disabled() {
    let (server, _stderr) = run(r#"exec "$0""#);
    for path in ["/", "/noroshi.js"] {
        assert!(server.request(server.address, path).starts_with("HTTP/1.1 200 "), "{path}");
    }
    let (server, _stderr) = run(r#"exec "$0" --no-page"#);
    for path in ["/", "/noroshi.js"] {
        assert!(server.request(server.address, path).starts_with("HTTP/1.1 404 "), "{path}");
    }
}

#[test]
fn secret_is_read_from_its_file_and_never_printed() {
    let folder = Folder::new("secret-in-a-file");
    let file = folder.0.join("secret");
    std::fs::write(&file, " north-by-northwest\n").unwrap();
    let flags = format!("--log trace --ice-server turn:t.example --turn-secret-file {}", file.display());
    let (mut server, mut stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let mut socket = server.websocket("/ws");
    send_text(&mut socket, r#"{"type":"join","id":"A"}"#);
    let joined = socket.read().unwrap().into_text().unwrap();
    let joined: serde_json::Value = serde_json::from_str(&joined).unwrap();
    let turn = &joined["iceServers"][0];
    assert_eq!(turn["urls"], serde_json::json!(["turn:t.example"]));
    let credential = turn["credential"].as_str().unwrap();
    assert_eq!(credential.len(), 28, "the base64 of 20 bytes");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(!log.contains("northwest") && !log.contains(credential), "{log}");
}

#[test]
fn address_that_cannot_be_bound_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for args in [["-l", &address], ["--metrics", &address], ["-l", "192.0.2.1:1"]] {
        let output = noroshi(&[&args[..], &["-l", "127.0.0.1:0"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(args[1]) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn contradictory_flags_are_rejected() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for second in ["--listen", "--metrics"] {
        let output = noroshi(&["--listen", &free, second, &free]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&free) && stderr.lines().count() == 1, "{stderr}");
    }
    // The last occurrence of a flag counts. The limit of a mesh may exceed the number of connections, and a message may
    // cost more than the rate.
    let (server, _stderr) = run(
        r#"exec "$0" --max-connections 9 --max-connections 1 --max-mesh-peers 1000 --max-message 16M --max-rate 1"#,
    );
    let mut socket = server.websocket("/ws");
    let text = format!(r#"{{"type":"join","id":"A","x":"{}"}}"#, "x".repeat(1 << 20));
    send_text(&mut socket, &text);
    assert!(socket.read().unwrap().to_text().unwrap().contains("joined"));
    assert!(server.request(server.address, "/healthz").starts_with("HTTP/1.1 200 "));
    let full = TcpStream::connect(server.address).unwrap();
    assert!(tungstenite::client(format!("ws://{}/ws", server.address), full).is_err());
}

#[test]
fn first_signal_closes_peers_and_second_exits_immediately() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let (mut server, _stderr) = run(r#"exec "$0""#);
        let mut sockets = [server.websocket("/ws"), server.websocket("/ws/tea")];
        server.signal(signal);
        for socket in &mut sockets {
            let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("a Close") };
            assert_eq!(u16::from(frame.code), 1001);
            assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
        }
        assert_eq!(server.code(), Some(0));
    }
    // Without a second signal the exit takes two seconds. On a busy machine, one of several attempts takes less.
    let is_immediate = |_| {
        let (mut server, _stderr) = run(r#"exec "$0""#);
        let mut stalled = server.websocket("/ws");
        let began = Instant::now();
        server.signal(Signal::SIGTERM);
        eventually("the Close frame arrives", || matches!(stalled.get_mut().0.peek(&mut [0]), Ok(1)));
        server.signal(Signal::SIGTERM);
        assert_eq!(server.code(), Some(0));
        began.elapsed() < Duration::from_secs(2)
    };
    assert!((0..10).any(is_immediate));
    // A signal may arrive as soon as the address is printed.
    for _ in 0..20 {
        let (mut server, _stderr) = run(r#"exec "$0""#);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.code(), Some(0));
    }
}

#[test]
fn sigstop_and_sigcont_close_no_peer() {
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut socket = server.websocket("/ws");
    server.signal(Signal::SIGSTOP);
    send_text(&mut socket, r#"{"type":"connect","id":"A"}"#);
    server.signal(Signal::SIGCONT);
    assert_eq!(socket.read().unwrap(), Message::text(r#"{"type":"offer"}"#));
}

#[test]
fn sigusr1_sigusr2_and_sigpipe_are_ignored() {
    let (mut server, _stderr) = run(r#"exec "$0""#);
    let mut socket = server.websocket("/ws");
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE] {
        server.signal(signal);
    }
    send_text(&mut socket, r#"{"type":"connect","id":"A"}"#);
    assert_eq!(socket.read().unwrap(), Message::text(r#"{"type":"offer"}"#));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
}

#[test]
fn log_lists_connects_and_disconnects_and_cannot_be_forged() {
    let (mut server, mut stderr) = run(r#"exec "$0" --log trace"#);
    let mut socket = server.websocket("/ws/tea");
    let secret = "a=candidate-that-is-nobodys-business";
    for kind in ["connect", "offer", "candidateAdd", "hello"] {
        let text = format!(
            r#"{{"type":"{kind}","id":"\u2028\u202e\u009b31mERROR forged","sdp":"{secret}","candidate":"{secret}"}}"#
        );
        send_text(&mut socket, &text);
    }
    while !socket.read().unwrap().to_text().unwrap().contains("unknown_type") {}
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(!log.contains(secret) && !log.contains(['\u{2028}', '\u{202e}', '\u{9b}']), "{log}");
    for line in log.lines() {
        assert!(line.starts_with("20") && line.contains(" [noroshi"), "{line}");
    }
    let lines = |part: &str| log.lines().filter(|line| line.contains(part)).collect::<Vec<_>>();
    let id = r#"id "\u{2028}\u{202e}\u{9b}31mERROR forged""#;
    let registered =
        lines(" DEBUG ").into_iter().filter(|line| line.contains("registered")).collect::<Vec<_>>();
    assert_eq!(registered.len(), 1, "{log}");
    assert!(registered[0].contains("connection 1 from 127.0.0.1:") && registered[0].contains(id), "{log}");
    let ended = lines("ended after");
    assert_eq!(ended.len(), 1, "{log}");
    for part in ["connection 1 from 127.0.0.1:", "left", r#"room "tea""#, id] {
        assert!(ended[0].contains(part), "{log}");
    }
}

/// Returns where a process listens on IPv4, by its descriptors and the kernel's socket table (proc(5)).
fn listening_address(pid: u32) -> Option<SocketAddr> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let sockets: Vec<String> = descriptors
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.ok()?.path()).ok()?;
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let state = fields[3];
        let inode = fields.get(9)?;
        let (_, port) = fields[1].split_once(':')?;
        let is_it = state == "0A" && sockets.iter().any(|socket| socket == inode);
        is_it.then(|| ([127, 0, 0, 1], u16::from_str_radix(port, 16).unwrap()).into())
    })
}

#[test]
fn unwritable_log_does_not_stop_the_server() {
    let serves = |server: &Running| {
        for i in 0..50 {
            let mut socket = server.websocket("/ws");
            send_text(&mut socket, &format!(r#"{{"type":"join","id":"{}{i}"}}"#, "x".repeat(100)));
            assert!(socket.read().unwrap().to_text().unwrap().contains("joined"));
            socket.close(None).unwrap();
        }
        assert!(server.is_healthy());
    };
    // A pipe without a reader.
    let (server, stderr) = run(r#"exec "$0" --log debug"#);
    drop(stderr);
    serves(&server);
    drop(server);
    // A full disk, and no stderr. Both hide the listening address.
    for stderr in ["2>/dev/full", "2>&-", "0<&- >&- 2>&-"] {
        let script = format!(r#"exec "$0" --log debug -l 127.0.0.1:0 {stderr}"#);
        let child = Command::new("sh").args(["-c", &script, *NOROSHI]).spawn().unwrap();
        let mut address = None;
        eventually("it listens", || {
            address = listening_address(child.id());
            address.is_some()
        });
        let address = address.unwrap();
        let mut server = Running { child, address, metrics: address };
        serves(&server);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.code(), Some(0));
    }
    // An unread pipe is full after 64 KiB, and a blocking write would wait.
    let (server, stderr) = run(r#"exec "$0" --log debug"#);
    for _ in 0..6 {
        serves(&server);
    }
    drop(stderr);
}

#[test]
fn few_descriptors_cause_a_warning() {
    let (server, mut stderr) = run(r#"ulimit -n 64; exec "$0""#);
    let mut sockets: Vec<_> = (0..31).map(|_| server.websocket("/ws")).collect();
    assert!(server.request(server.address, "/ws").starts_with("HTTP/1.1 503 "));
    let waiting: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    assert!(server.request(server.metrics, "/metrics").contains("\nnoroshi_connections 31\n"));
    drop(waiting);
    sockets.truncate(10);
    assert!(server.is_healthy());
    server.websocket("/ws");
    drop(server);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(!log.contains("cannot accept"), "{log}");
    let (server, _stderr) = run(r#"ulimit -S -n 64; exec "$0" --max-connections 100"#);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("133"), "{files}");
}

#[test]
fn disconnected_peers_leave_nothing_behind() {
    let (server, _stderr) = run(r#"exec "$0""#);
    assert!(server.is_healthy());
    let before = server.descriptors();
    for round in 0..3 {
        let mut sockets: Vec<_> = (0..50).map(|i| server.websocket(&format!("/ws/{i}"))).collect();
        for (i, socket) in sockets.iter_mut().enumerate() {
            send_text(socket, &format!(r#"{{"type":"connect","id":"{i}"}}"#));
            socket.read().unwrap();
            if round == 0 {
                socket.close(None).unwrap();
                while socket.read().is_ok() {}
            }
        }
        let plain: Vec<_> = (0..50).map(|_| TcpStream::connect(server.address).unwrap()).collect();
        drop((sockets, plain));
        eventually("all descriptors are closed", || server.descriptors() <= before);
        for name in ["connections", "peers", "rooms"] {
            assert_eq!(server.metric(name), 0.0, "{name}");
        }
    }
}
