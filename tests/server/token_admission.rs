//! Tokens at the upgrade, and the command line and reload of secrets.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::pipe::{REQUEST, TestSession};
use crate::common::process::{NOROSHI, Running, eventually, run};
use nix::sys::signal::Signal;
use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::LOG_LINE_BYTES_MAX;

const SECRET: &str = "a secret that is thirty-two bytes";
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn secrets() -> Secrets {
    Secrets::parse(SECRET.as_bytes()).unwrap()
}

fn token(room: Option<&str>, until: Duration) -> String {
    secrets().sign(&Claims { expires_at: until, room: room.map(Box::from), ..Claims::default() })
}

fn prefix_token(prefix: &str) -> String {
    secrets().sign(&Claims { expires_at: NOW, room_prefix: Some(prefix.into()), ..Claims::default() })
}

/// Requests an upgrade to this target with these headers. Returns the room, or the response and the log reason.
fn ask(target: &str, headers: &str) -> Result<String, (String, String)> {
    let mut session =
        TestSession::new(ListenerKind::Main, Config { token_secrets: Some(secrets()), ..Config::default() });
    session.wall = NOW;
    let request = REQUEST.replace("/ws/tea", target).replace("\r\n\r\n", &format!("\r\n{headers}\r\n"));
    session.feed(request.as_bytes());
    let sent = String::from_utf8(session.take_output()).unwrap();
    match session.rejected.take() {
        None => Ok(session.events.concat()),
        Some((_, why)) => Err((sent, why)),
    }
}

#[test]
fn token_in_the_header_takes_precedence_over_the_query() {
    let good = token(Some("tea"), NOW);
    let bad = token(Some("coffee"), NOW);
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (target, headers) in [
        (format!("/ws/tea?token={good}"), String::new()),
        (format!("/ws/tea?a=b&token={good}&c"), String::new()),
        (format!("/ws/tea?other=%ff&%74oken={}", good.replace('.', "%2e")), String::new()),
        ("/ws/tea".to_owned(), bearer(&good)),
        ("/ws/tea".to_owned(), format!("authorization: bearer  {good}\r\n")),
        (format!("/ws/tea?token={bad}"), bearer(&good)),
        ("/ws/tea?token=".to_owned(), bearer(&good)),
        // A proxy may require its own user name and password.
        (format!("/ws/tea?token={good}"), "Authorization: Basic YTpi\r\n".to_owned()),
        (format!("/ws/tea?token={good}"), "Authorization: Negotiate\r\n".to_owned()),
        (format!("/ws/tea?token={good}"), "Authorization:\r\n".to_owned()),
        (format!("/ws/tea?token={good}"), "Authorization: Basic YTpi\r\n".repeat(2)),
        (format!("/ws/tea?token={bad}"), format!("Authorization: Basic YTpi\r\n{}", bearer(&good))),
        (format!("/ws/tea?token={bad}"), format!("{}Authorization: Digest é\r\n", bearer(&good))),
    ] {
        assert_eq!(ask(&target, &headers).unwrap(), "+tea", "{target} {headers}");
    }
    for (target, headers, why) in [
        ("/ws/tea".to_owned(), String::new(), "missing token"),
        ("/ws/tea?token=".to_owned(), String::new(), "missing token"),
        (format!("/ws/tea?Token={good}"), String::new(), "missing token"),
        (format!("/ws/tea#token={good}"), String::new(), "missing token"),
        (format!("/ws/tea?token={good}&token={good}"), String::new(), "the token is invalid"),
        (format!("/ws/tea?token={good}"), bearer(&bad), "for another room"),
        (format!("/ws/tea?token={good}"), bearer("x"), "the token is invalid"),
        (format!("/ws/tea?token={good}"), bearer("é"), "the token is invalid"),
        (format!("/ws/tea?token={good}"), "Authorization: Bearer\r\n".to_owned(), "missing token"),
        ("/ws/tea".to_owned(), "Authorization: Basic YTpi\r\n".to_owned(), "missing token"),
        ("/ws/tea".to_owned(), bearer(&good).repeat(2), "the token is invalid"),
        (format!("/ws/tea?token={good}="), String::new(), "the token is invalid"),
    ] {
        let (answer, log_reason) = ask(&target, &headers).unwrap_err();
        assert!(
            answer.contains(why) && log_reason.contains(why),
            "{target} {headers}: {answer} {log_reason}"
        );
        assert!(!answer.contains(&good) && !log_reason.contains(&good[..20]), "{answer} {log_reason}");
    }
}

#[test]
fn each_token_error_has_its_status_and_reason() {
    let other = Secrets::parse(b"another secret of more than thirty-two bytes").unwrap();
    let foreign = other.sign(&Claims { expires_at: NOW, ..Claims::default() });
    let old = token(None, NOW - Duration::from_secs(31));
    for (target, status, error, sentence) in [
        ("/ws/tea", 401, "invalid_token", "missing token"),
        ("/ws/tea?token=x", 401, "invalid_token", "the token is invalid"),
        (&format!("/ws/tea?token={foreign}"), 401, "invalid_token", "matches none of"),
        (&format!("/ws/tea?token={old}"), 401, "invalid_token", "has expired"),
        (
            &format!("/ws/Tea?token={}", token(Some("tea"), NOW)),
            403,
            "insufficient_scope",
            "for another room",
        ),
        (
            &format!("/ws/tea?token={}", token(Some("tea*"), NOW)),
            403,
            "insufficient_scope",
            "for another room",
        ),
        (&format!("/ws/te?token={}", prefix_token("tea")), 403, "insufficient_scope", "for another room"),
        (&format!("/ws?token={}", token(Some("tea"), NOW)), 403, "insufficient_scope", "for another room"),
    ] {
        let (answer, why) = ask(target, "").unwrap_err();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(&format!("\r\nWWW-Authenticate: Bearer error=\"{error}\"\r\n")), "{answer}");
        assert!(answer.contains(sentence) && why.contains(sentence), "{answer} {why}");
    }
    for (target, prefix) in [("/ws/teapot", "tea"), ("/ws/tea", ""), ("/ws", "")] {
        let target = format!("{target}?token={}", prefix_token(prefix));
        assert!(ask(&target, "").is_ok(), "{target} {prefix}");
    }
    assert!(ask(&format!("/ws?token={}", token(Some(""), NOW)), "").is_ok());
    // A page whose origin is allowed can read why its upgrade was rejected.
    let (answer, _) = ask("/ws/tea", "Origin: http://h\r\n").unwrap_err();
    assert!(
        answer.starts_with("HTTP/1.1 401 ")
            && answer.contains("\r\nAccess-Control-Allow-Origin: http://h\r\n")
    );
    // Other errors are reported before those of tokens.
    assert!(ask("/ws/%2e", "").unwrap_err().0.starts_with("HTTP/1.1 400 "));
    assert!(ask("/ws/tea", "Origin: https://a.example\r\n").unwrap_err().0.starts_with("HTTP/1.1 403 "));
}

#[test]
fn log_names_both_rooms_of_a_token_for_another_room() {
    for (room, room_prefix, target, expected) in [
        (Some("tea"), None, "/ws/coffee", r#"it was used for room "coffee", but permits room "tea""#),
        (Some("tea"), None, "/ws", r#"it was used for room "", but permits room "tea""#),
        (None, Some("tea-"), "/ws/tea", r#"it was used for room "tea", but permits room_prefix "tea-""#),
        (
            Some("tea-1"),
            Some("tea-"),
            "/ws/tea-2",
            r#"it was used for room "tea-2", but permits room "tea-1" and room_prefix "tea-""#,
        ),
        (
            Some("a\"\u{202e}\n"),
            None,
            "/ws/tea",
            r#"it was used for room "tea", but permits room "a\"\u{202e}\n""#,
        ),
    ] {
        let token = secrets().sign(&Claims {
            expires_at: NOW,
            room: room.map(Box::from),
            room_prefix: room_prefix.map(Box::from),
            ..Claims::default()
        });
        let (answer, why) = ask(&format!("{target}?token={token}"), "").unwrap_err();
        assert_eq!(why, format!("the token is for another room: {expected}"));
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "the token is for another room\n", "the client does not get what the token permits");
    }
}

// ---- The program ----

/// A file that is removed when the value is dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let file = std::env::temp_dir().join(format!("noroshi-{}-{name}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        File(file)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn noroshi(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(*NOROSHI).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn token_command_prints_tokens() {
    let file = File::new("print", &format!("# a comment\n{SECRET}\n"));
    let path = file.0.to_str().unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for (args, room, id, ttl) in [
        (&["--room", "tea", "--id", "alice", "--ttl", "2h"][..], Some("tea"), Some("alice"), 7200),
        (&["--room=tea*", "--ttl=90s"], Some("tea*"), None, 90),
        (&["--id", "狼煙", "--ttl", "7d"], None, Some("狼煙"), 7 * 86_400),
        (&[], None, None, 3600),
    ] {
        let (code, token, stderr) = noroshi(&[&["token", "--secret-file", path], args].concat());
        assert_eq!((code, &*stderr), (Some(0), ""));
        let claims = secrets().verify(token.trim_end(), now()).unwrap();
        assert_eq!(claims.room_prefix, None);
        assert_eq!((claims.room.as_deref(), claims.id.as_deref()), (room, id));
        let left = claims.expires_at.saturating_sub(now()).as_secs();
        assert!((ttl - 20..=ttl).contains(&left), "{left}");
    }
    let (_, token, _) = noroshi(&["token", "--secret-file", path, "--room-prefix", "tea-"]);
    let claims = secrets().verify(token.trim_end(), now()).unwrap();
    assert_eq!((claims.room_prefix.as_deref(), claims.room), (Some("tea-"), None));
    let short = File::new("short", "short\n");
    let empty = File::new("empty", "\n");
    for (args, named) in [
        (&["token"][..], "--secret-file"),
        (&["token", "--secret-file", "/no/where"], "/no/where"),
        (&["token", "--secret-file", short.0.to_str().unwrap()], "at least 32 bytes"),
        (&["token", "--secret-file", path, "--ttl", "1y"], "--ttl: expected a time"),
        (&["token", "--secret-file", path, "--ttl", "0s"], "--ttl: expected a time"),
        (&["token", "--secret-file", path, "--id", ""], "--id: expected an id"),
        (&["token", "--secret-file", path, "--id", "a\nb"], "--id: expected an id"),
        (&["token", "--secret-file", path, "--id", "\u{7f}"], "--id: expected an id"),
        (&["token", "--secret-file", path, "--listen", "x"], "--listen"),
        (&["--token-secret-file", "/no/where"], "/no/where"),
        (&["--token-secret-file", short.0.to_str().unwrap()], "at least 32 bytes"),
        (&["--token-secret-file", empty.0.to_str().unwrap()], "no secret"),
        (&["--token-secret-file", "/dev/null"], "expected a regular file, got a device"),
    ] {
        let (code, stdout, stderr) = noroshi(args);
        assert_eq!((code, &*stdout), (Some(2), ""), "{stderr}");
        assert!(stderr.contains(named) && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }
}

fn status(server: &Running, token: &str) -> u16 {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let target = format!("/ws/tea?token={token}");
    stream.write_all(REQUEST.replace("/ws/tea", &target).as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

#[test]
fn log_line_of_a_token_for_another_room_is_limited() {
    let file = File::new("other-room", SECRET);
    let (mut server, mut stderr) = run(&format!(r#"exec "$0" --token-secret-file {}"#, file.0.display()));
    let expires_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    for room in ["coffee", &"x\n".repeat(600)] {
        assert_eq!(status(&server, &token(Some(room), expires_at)), 403);
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    let lines: Vec<&str> =
        log.lines().filter_map(|line| line.split_once("was refused: 403, ")).map(|(_, why)| why).collect();
    let sentence = r#"the token is for another room: it was used for room "tea", but permits room "#;
    assert_eq!(lines.len(), 2, "{log}");
    assert_eq!(lines[0], format!(r#"{sentence}"coffee""#));
    assert!(lines[1].starts_with(&format!(r#"{sentence}"x\nx\n"#)), "{log}");
    assert!(lines[1].ends_with(" [truncated]") && lines[1].len() < LOG_LINE_BYTES_MAX, "{log}");
}

#[test]
fn secrets_are_rotated_while_a_thousand_peers_are_connected() {
    let file = File::new("rotated", SECRET);
    let flags = format!("--token-secret-file {}", file.0.display());
    let (mut server, mut stderr) = run(&format!(r#"exec "$0" --log trace {flags}"#));
    let new = "a new secret that has thirty-two bytes";
    let newest = "the newest secret, with more than 32 bytes";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let claims =
        Claims { expires_at: now + Duration::from_secs(3600), room: Some("tea".into()), ..Claims::default() };
    let [first, second, third] =
        [SECRET, new, newest].map(|secret| Secrets::parse(secret.as_bytes()).unwrap().sign(&claims));
    let clients: Vec<_> = (0..1000).map(|_| server.websocket(&format!("/ws/tea?token={first}"))).collect();
    assert_eq!(status(&server, &second), 401);
    let mut log = String::new();
    let mut rotate = |text: &str, word: &str| {
        std::fs::write(&file.0, text).unwrap();
        server.signal(Signal::SIGHUP);
        let mut line = String::new();
        while !line.contains("SIGHUP") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0);
            log.push_str(&line);
        }
        assert!(line.contains(word), "{line}");
    };
    rotate(&format!("{new}\n{SECRET}\n"), "reloaded");
    assert_eq!([&first, &second, &third].map(|token| status(&server, token)), [101, 101, 401]);
    rotate("too short", "at least 32 bytes");
    assert_eq!([&first, &second, &third].map(|token| status(&server, token)), [101, 101, 401]);
    rotate(&format!("{newest}\n{new}\n"), "reloaded");
    assert_eq!([&first, &second, &third].map(|token| status(&server, token)), [401, 101, 101]);
    eventually("only the clients are connected", || server.metric("connections") == 1000.0);
    assert_eq!(server.metric("refused_tokens_total{reason=\"signature\"}"), 4.0);
    assert_eq!(server.metric("refused_tokens_total{reason=\"missing\"}"), 0.0);
    drop(clients);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    stderr.read_to_string(&mut log).unwrap();
    assert!(
        log.contains("refused: 401, the token's signature matches none of the server's secrets"),
        "{log}"
    );
    for secret in [&first[..20], &second[second.len() - 20..], SECRET, new, newest, "token="] {
        assert!(!log.contains(secret), "{secret}");
    }
}
