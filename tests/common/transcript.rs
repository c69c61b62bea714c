//! Parses and plays transcripts. `tests/transcripts/README.md` describes the format.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::time::Duration;

use noroshi::config::{Command, Config};
use noroshi::http::token::{Claims, Secrets};
use noroshi::protocol::Descriptor;
use noroshi::protocols;
use serde_json::Value;

use super::files::project_root;

/// The secret that signs the tokens of a transcript.
pub const SECRET: &[u8] = b"nobody signs with this but the tests";

/// An event that a peer receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    Text(String),
    Closed(u16),
}

/// The response to a request for something else than a WebSocket.
pub struct HttpResponse {
    pub status: u16,
    /// Names in lower case. `None`: there is no HTTP, and so no headers.
    pub headers: Option<Vec<(String, String)>>,
    pub body: String,
}

/// The origin of pages in transcripts that allow it.
pub const PAGE_ORIGIN: &str = "http://page.example";

/// A server that a transcript is played against. Each call returns after all its effects have happened.
pub trait Transport {
    fn open(&mut self, peer: &str, room: &str);
    /// Opens a WebSocket with a token of these claims.
    fn open_with_token(&mut self, peer: &str, room: &str, claims: &Claims);
    /// Opens a WebSocket at a path of any protocol.
    fn open_at(&mut self, peer: &str, path: &str);
    /// Returns the status of the response to a request. `None` without HTTP.
    fn status(&mut self, path: &str, is_upgrade: bool) -> Option<u16>;
    /// Returns the response to a plain request, which a page of this origin sends. `None`: it is not known without HTTP.
    fn request_resource(&mut self, method: &str, path: &str, origin: Option<&str>) -> Option<HttpResponse>;
    fn send(&mut self, peer: &str, text: &[u8], binary: bool);
    /// Stops reading and answering for this peer.
    fn stop_reading(&mut self, peer: &str);
    fn close(&mut self, peer: &str);
    /// Resets the peer's connection without a Close frame.
    fn reset(&mut self, peer: &str);
    fn advance_by(&mut self, time: Duration);
    fn advance(&mut self, seconds: u64) {
        self.advance_by(Duration::from_secs(seconds));
    }
    /// Returns the next event that this peer has received.
    fn next_received(&mut self, peer: &str) -> Option<Received>;
    /// Closes everything and asserts that nothing is left.
    fn finish(self: Box<Self>);
}

pub struct Transcript {
    pub name: String,
    pub config: Config,
    /// Whether it was recorded from the article's program, which sends fewer fields and escapes more characters.
    is_article: bool,
    /// Another protocol, in which `$name` stands for a name that the server chooses.
    protocol: Option<&'static Descriptor>,
    /// Whether Ayame's pings are listed in the transcript instead of being answered by the player.
    pings_by_hand: bool,
    lines: Vec<String>,
}

/// Returns all transcripts, ordered by name.
pub fn all() -> Vec<Transcript> {
    let mut found = Vec::new();
    let root = project_root().join("tests/transcripts");
    for folder in root.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for file in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.strip_prefix(&root).unwrap().display().to_string();
            found.push(Transcript::parse(name, &std::fs::read_to_string(&file).unwrap()));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Transcript {
    pub fn parse(name: String, text: &str) -> Transcript {
        let flags = text.lines().filter_map(|line| line.strip_prefix("# flags:"));
        let flags = flags.flat_map(str::split_whitespace).map(OsString::from);
        let Ok(Command::Run(mut config)) = Config::parse(&protocols::endpoints(protocols::ALL), flags) else {
            panic!("{name}: flags")
        };
        if text.lines().any(|line| line == "# tokens") {
            config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
        }
        // The folder names the protocol, without hyphens.
        let mut mountable = protocols::ALL.iter().filter(|it| !it.endpoint.is_always_on);
        let folder = |it: &Descriptor| format!("{}/", it.endpoint.name.replace('-', ""));
        let protocol = mountable.find(|it| name.starts_with(&folder(it))).copied();
        if let Some(protocol) = protocol {
            let path = protocol.endpoint.default_path.trim_end_matches('/');
            config.mount(&protocol.endpoint, path.to_owned());
        }
        let pings_by_hand = text.lines().any(|line| line == "# pings: by hand");
        let is_event = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let lines = text.lines().filter(is_event).map(str::to_owned).collect();
        Transcript { is_article: name.starts_with("article"), name, config, protocol, pings_by_hand, lines }
    }

    pub fn play(&self, mut transport: Box<dyn Transport>) {
        let mut peers = BTreeSet::new();
        let mut names = Names::default();
        let mut last_response = None;
        let origin = (!self.config.allow_origins.is_empty()).then_some(PAGE_ORIGIN);
        for line in &self.lines {
            let at = format!("{}: {line}", self.name);
            let mut words = line.splitn(3, ' ');
            let peer = words.next().unwrap();
            let verb = words.next().expect(&at);
            let rest = words.next().unwrap_or("");
            match (verb, self.protocol) {
                ("@", _) => {
                    let (request, statuses) = rest.rsplit_once(' ').expect(&at);
                    let (method, path) = request.split_once(' ').expect(&at);
                    last_response = transport.request_resource(method, path, origin);
                    is_one_of(statuses, last_response.as_ref().map(|response| response.status), &at);
                    continue;
                }
                ("@h", _) => {
                    let headers = last_response.as_ref().and_then(|response| response.headers.as_ref());
                    if let Some(headers) = headers {
                        let (name, values) = rest.split_once(' ').expect(&at);
                        has_header(headers, name, &values.replace("$origin", PAGE_ORIGIN), &at);
                    }
                    continue;
                }
                ("@=", _) => {
                    if let Some(response) = &last_response {
                        names.compare_body(&at, rest, &response.body);
                    }
                    continue;
                }
                ("+!", _) => {
                    let (path, statuses) = rest.rsplit_once(' ').expect(&at);
                    let path = names.fill(path);
                    is_one_of(statuses, transport.status(&format!("/{path}"), true), &at);
                    continue;
                }
                _ => _ = peers.insert(peer),
            }
            match (verb, self.protocol) {
                ("+", Some(protocol)) => {
                    let endpoint = &protocol.endpoint;
                    let path = endpoint.default_path.trim_end_matches('/');
                    let slash = if endpoint.has_rooms_below { "/" } else { "" };
                    transport.open_at(peer, &format!("{path}{slash}{}", names.fill(rest)));
                }
                ("+", _) => match rest.split_once("as ") {
                    Some((room, id)) if self.config.token_secrets.is_some() => {
                        let id = Some(id).filter(|id| *id != "*").map(Box::from);
                        // In the year 2096.
                        let until = Duration::from_secs(4_000_000_000);
                        transport.open_with_token(
                            peer,
                            room.trim_end(),
                            &Claims { expires_at: until, id, ..Claims::default() },
                        );
                    }
                    _ => transport.open(peer, rest),
                },
                (">", _) => transport.send(peer, names.fill(rest).as_bytes(), false),
                (">b", _) => transport.send(peer, names.fill(rest).as_bytes(), true),
                ("!", _) => transport.stop_reading(peer),
                ("-", _) => transport.close(peer),
                ("-!", _) => transport.reset(peer),
                ("~", _) => transport.advance_by(Duration::from_secs_f64(rest.parse().expect(&at))),
                ("x", _) => match self.receive(&mut *transport, peer) {
                    Some(Received::Closed(code)) if rest != "*" => is_one_of(rest, Some(code), &at),
                    Some(Received::Closed(_)) => {}
                    other => panic!("{at}\nbut received {other:?}"),
                },
                ("<0", _) => assert_eq!(self.receive(&mut *transport, peer), None, "{at}"),
                ("<=", _) => {
                    assert_eq!(
                        self.receive(&mut *transport, peer),
                        Some(Received::Text(rest.to_owned())),
                        "{at}"
                    )
                }
                ("<" | "<~", _) => match self.receive_or_wait(&mut *transport, peer, rest) {
                    Some(Received::Text(received)) if self.protocol.is_some() => {
                        let are_uuids =
                            self.protocol.is_some_and(|protocol| protocol.endpoint.name == "matchbox");
                        names.compare(
                            &at,
                            rest,
                            &received,
                            Comparison { are_uuids, is_partial: verb == "<~" },
                        );
                    }
                    Some(Received::Text(received)) => self.compare(&at, rest, &received),
                    other => panic!("{at}\nbut received {other:?}"),
                },
                _ => panic!("{at}: unknown verb"),
            }
        }
        for peer in peers {
            assert_eq!(
                self.receive(&mut *transport, peer),
                None,
                "{}: {peer} received more than is listed",
                self.name
            );
        }
        transport.finish();
    }

    /// Returns the next event of a peer. If a ping is expected, advances the clock until it is due.
    fn receive_or_wait(&self, transport: &mut dyn Transport, peer: &str, expected: &str) -> Option<Received> {
        for _ in 0..28 {
            let received = self.receive(transport, peer);
            if received.is_some() || !self.pings_by_hand || !expected.contains("ping") {
                return received;
            }
            transport.advance(1);
        }
        self.receive(transport, peer)
    }

    /// Returns the next event of a peer. Answers Ayame's pings unless they are listed.
    fn receive(&self, transport: &mut dyn Transport, peer: &str) -> Option<Received> {
        let ping = Received::Text(r#"{"type":"ping"}"#.to_owned());
        loop {
            match transport.next_received(peer) {
                Some(received) if received == ping && !self.pings_by_hand => {
                    transport.send(peer, br#"{"type":"pong"}"#, false);
                }
                received => return received,
            }
        }
    }

    fn compare(&self, at: &str, expected: &str, received: &str) {
        let (Value::Object(expected), Value::Object(mut received)) =
            (serde_json::from_str(expected).expect(at), serde_json::from_str(received).expect(at))
        else {
            panic!("{at}: not an object")
        };
        if expected.get("message").is_some_and(|message| message == "*") {
            assert!(received["message"].as_str().is_some_and(|text| !text.is_empty()), "{at}");
            received["message"] = "*".into();
        }
        if !self.is_article {
            assert_eq!(expected, received, "{at}");
            return;
        }
        for (key, value) in &expected {
            if key == "sdp" || key == "candidate" {
                assert_eq!(texts(value), texts(&received[key]), "{at}");
            } else {
                assert_eq!(value, &received[key], "{at}");
            }
        }
    }
}

/// Splits a string into the JSON texts that it joins with `|`.
fn texts(value: &Value) -> Vec<Value> {
    let mut rest = value.as_str().expect("sdp and candidate are strings");
    let mut texts = Vec::new();
    loop {
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter();
        texts.push(stream.next().expect("a JSON text").expect("valid JSON"));
        match rest[stream.byte_offset()..].strip_prefix('|') {
            Some(more) => rest = more,
            None => return texts,
        }
    }
}

fn is_one_of(expected: &str, found: Option<u16>, at: &str) {
    let is_it = |found: u16| expected.split('|').any(|it| it.parse() == Ok(found));
    assert!(found.is_none_or(is_it), "{at}: {found:?}");
}

/// Asserts that a response has a header with one of these values, or does not have it (`-`).
fn has_header(headers: &[(String, String)], name: &str, values: &str, at: &str) {
    let found = headers.iter().find(|(found, _)| found == name).map_or("-", |(_, value)| value);
    assert!(values.split('|').any(|value| value == found), "{at}: {found}");
}

/// Returns a token with these claims: `sub`, `room` and `room_prefix`. It expires in the year 2096.
fn sign(claims: &str) -> String {
    let claims: Value = serde_json::from_str(claims).expect(claims);
    let text = |name: &str| claims.get(name).map(|value| value.as_str().expect(name).into());
    let claims = Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        room: text("room"),
        room_prefix: text("room_prefix"),
        id: text("sub"),
    };
    Secrets::parse(SECRET).unwrap().sign(&claims)
}

/// How a received message is compared.
#[derive(Clone, Copy, Default)]
struct Comparison {
    /// Whether a value that the server chooses must be a UUID.
    are_uuids: bool,
    /// Whether received objects may have further fields.
    is_partial: bool,
}

/// Values of `$name`. `$PAD(n)` stands for n letters.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// Replaces the names in a text by their values.
    fn fill(&self, text: &str) -> String {
        let mut parts = text.split('$');
        let mut filled = parts.next().unwrap().to_owned();
        for part in parts {
            if let Some((count, rest)) = part.strip_prefix("PAD(").and_then(|part| part.split_once(')')) {
                filled.push_str(&"x".repeat(count.parse().unwrap()));
                filled.push_str(rest);
                continue;
            }
            if let Some((claims, rest)) = part.strip_prefix("JWT(").and_then(|part| part.split_once(')')) {
                filled.push_str(&sign(claims));
                filled.push_str(rest);
                continue;
            }
            let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
            filled.push_str(self.0.get(&part[..end]).unwrap_or_else(|| panic!("{text}: ${part} is unknown")));
            filled.push_str(&part[end..]);
        }
        filled
    }

    /// Compares the body of an HTTP response: JSON, a name or a text.
    fn compare_body(&mut self, at: &str, expected: &str, body: &str) {
        if expected.starts_with(['{', '[']) {
            self.compare(at, expected, body, Comparison::default());
        } else if expected.starts_with('$') {
            self.compare_values(at, &expected.into(), &body.into(), Comparison::default());
        } else {
            assert_eq!(expected, body, "{at}");
        }
    }

    /// Compares every field. A name that is still unknown takes the received value, which must differ from all other
    /// names.
    fn compare(&mut self, at: &str, expected: &str, received: &str, comparison: Comparison) {
        let expected: Value = serde_json::from_str(expected).expect(at);
        let received: Value = serde_json::from_str(received).expect(at);
        self.compare_values(at, &expected, &received, comparison);
    }

    fn compare_values(&mut self, at: &str, expected: &Value, received: &Value, comparison: Comparison) {
        match (expected, received) {
            (Value::String(it), _) if it == "*" => {}
            (Value::String(it), Value::String(received))
                if it.starts_with('$') && !it.starts_with("$PAD") =>
            {
                match self.0.get(&it[1..]) {
                    Some(known) => assert_eq!(known, received, "{at}"),
                    None => {
                        assert!(
                            self.0.values().all(|known| known != received),
                            "{at}: {received} is the name of another peer"
                        );
                        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-';
                        assert!(
                            !comparison.are_uuids || (received.len() == 36 && received.bytes().all(is_digit)),
                            "{at}: {received}"
                        );
                        self.0.insert(it[1..].to_owned(), received.clone());
                    }
                }
            }
            (Value::Object(expected), Value::Object(received)) => {
                let has_keys = match comparison.is_partial {
                    true => expected.keys().all(|key| received.contains_key(key)),
                    false => expected.keys().eq(received.keys()),
                };
                assert!(has_keys, "{at}\nbut received {received:?}");
                for (key, value) in expected {
                    self.compare_values(at, value, &received[key], comparison);
                }
            }
            (Value::Array(expected), Value::Array(received)) => {
                assert_eq!(expected.len(), received.len(), "{at}\nbut received {received:?}");
                for (expected, received) in expected.iter().zip(received) {
                    self.compare_values(at, expected, received, comparison);
                }
            }
            (Value::String(it), received) => assert_eq!(received, &Value::String(self.fill(it)), "{at}"),
            (expected, received) => assert_eq!(expected, received, "{at}"),
        }
    }
}
