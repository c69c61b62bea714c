//! Conversations as text, and how they are played. The format is described in `tests/transcripts/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use noroshi::config::{Command, Config};
use noroshi::protocol::ProtocolId;
use noroshi::token::{Claims, Secrets};
use serde_json::Value;

/// What the tokens of a transcript are signed with.
pub const SECRET: &[u8] = b"nobody signs with this but the tests";

/// What a peer hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Text(String),
    Closed(u16),
}

/// Something a transcript can be played against. After each call, whatever it causes has happened.
pub trait Wire {
    fn open(&mut self, who: &str, room: &str);
    /// The same with a token that says this.
    fn admit(&mut self, who: &str, room: &str, claims: &Claims);
    /// The same at a path of another protocol.
    fn open_at(&mut self, who: &str, path: &str);
    /// The status with which a request is answered, where there is HTTP.
    fn status(&mut self, path: &str, is_upgrade: bool) -> Option<u16>;
    fn say(&mut self, who: &str, text: &[u8], binary: bool);
    /// From now on this peer reads and answers nothing.
    fn deafen(&mut self, who: &str);
    fn leave(&mut self, who: &str);
    /// Its connection is cut, without a goodbye.
    fn cut(&mut self, who: &str);
    fn pass(&mut self, seconds: u64);
    /// The next thing that this peer heard, if there is one.
    fn next(&mut self, who: &str) -> Option<Heard>;
    /// Ends all that is still open and proves that nothing is left.
    fn finish(self: Box<Self>);
}

pub struct Transcript {
    pub name: String,
    pub config: Config,
    /// Recorded from the article's program, which says less and escapes more.
    article: bool,
    /// Of another protocol, which has its own names: `$name` stands for one.
    dialect: Option<ProtocolId>,
    /// Whether Ayame's pings are lines, and not answered by the player.
    pings_by_hand: bool,
    lines: Vec<String>,
}

/// All transcripts, in the order of their names.
pub fn all() -> Vec<Transcript> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
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
        let Ok(Command::Run(mut config)) = Config::parse(flags) else { panic!("{name}: flags") };
        if text.lines().any(|line| line == "# tokens") {
            config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
        }
        let dialect = [("ayame", ProtocolId::Ayame), ("matchbox", ProtocolId::Matchbox)];
        let dialect = dialect.into_iter().find(|(folder, _)| name.starts_with(folder)).map(|(_, it)| it);
        match dialect {
            Some(ProtocolId::Ayame) => config.ayame = Some("/signaling".to_owned()),
            Some(ProtocolId::Matchbox) => config.matchbox = Some(String::new()),
            _ => {}
        }
        let pings_by_hand = text.lines().any(|line| line == "# pings: by hand");
        let said = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let lines = text.lines().filter(said).map(str::to_owned).collect();
        Transcript { article: name.starts_with("article"), name, config, dialect, pings_by_hand, lines }
    }

    pub fn play(&self, mut wire: Box<dyn Wire>) {
        let mut everybody = BTreeSet::new();
        let mut names = Names::default();
        for line in &self.lines {
            let at = format!("{}: {line}", self.name);
            let mut words = line.splitn(3, ' ');
            let (who, verb, rest) =
                (words.next().unwrap(), words.next().expect(&at), words.next().unwrap_or(""));
            match (verb, self.dialect) {
                ("@", _) => {
                    let (request, statuses) = rest.rsplit_once(' ').expect(&at);
                    let path = request.strip_prefix("GET ").expect(&at);
                    is_one_of(statuses, wire.status(path, false), &at);
                    continue;
                }
                ("+!", _) => {
                    let (path, statuses) = rest.rsplit_once(' ').expect(&at);
                    is_one_of(statuses, wire.status(&format!("/{path}"), true), &at);
                    continue;
                }
                _ => _ = everybody.insert(who),
            }
            match (verb, self.dialect) {
                ("+", Some(ProtocolId::Ayame)) => wire.open_at(who, &format!("/signaling{rest}")),
                ("+", Some(ProtocolId::Matchbox)) => wire.open_at(who, &format!("/{rest}")),
                ("+", _) => match rest.split_once("as ") {
                    Some((room, id)) if self.config.token_secrets.is_some() => {
                        let id = Some(id).filter(|id| *id != "*").map(Box::from);
                        // The year 2096.
                        let until = Duration::from_secs(4_000_000_000);
                        wire.admit(
                            who,
                            room.trim_end(),
                            &Claims { expires_at: until, id, ..Claims::default() },
                        );
                    }
                    _ => wire.open(who, rest),
                },
                (">", _) => wire.say(who, names.fill(rest).as_bytes(), false),
                (">b", _) => wire.say(who, names.fill(rest).as_bytes(), true),
                ("!", _) => wire.deafen(who),
                ("-", _) => wire.leave(who),
                ("-!", _) => wire.cut(who),
                ("~", _) => wire.pass(rest.parse().expect(&at)),
                ("x", _) => match self.hear(&mut *wire, who) {
                    Some(Heard::Closed(code)) if rest != "*" => is_one_of(rest, Some(code), &at),
                    Some(Heard::Closed(_)) => {}
                    other => panic!("{at}\nbut heard {other:?}"),
                },
                ("<0", _) => assert_eq!(self.hear(&mut *wire, who), None, "{at}"),
                ("<=", _) => {
                    assert_eq!(self.hear(&mut *wire, who), Some(Heard::Text(rest.to_owned())), "{at}")
                }
                ("<", _) => match self.wait(&mut *wire, who, rest) {
                    Some(Heard::Text(heard)) if self.dialect.is_some() => {
                        names.compare(&at, rest, &heard, self.dialect == Some(ProtocolId::Matchbox));
                    }
                    Some(Heard::Text(heard)) => self.compare(&at, rest, &heard),
                    other => panic!("{at}\nbut heard {other:?}"),
                },
                _ => panic!("{at}: no such line"),
            }
        }
        for who in everybody {
            assert_eq!(self.hear(&mut *wire, who), None, "{}: {who} heard more than is listed", self.name);
        }
        wire.finish();
    }

    /// The next thing that a peer hears, for which it waits if that is a ping.
    fn wait(&self, wire: &mut dyn Wire, who: &str, expected: &str) -> Option<Heard> {
        for _ in 0..28 {
            let heard = self.hear(wire, who);
            if heard.is_some() || !self.pings_by_hand || !expected.contains("ping") {
                return heard;
            }
            wire.pass(1);
        }
        self.hear(wire, who)
    }

    /// The next thing that a peer hears. Pings of Ayame are answered, if they are not lines.
    fn hear(&self, wire: &mut dyn Wire, who: &str) -> Option<Heard> {
        let ping = Heard::Text(r#"{"type":"ping"}"#.to_owned());
        loop {
            match wire.next(who) {
                Some(heard) if heard == ping && !self.pings_by_hand => {
                    wire.say(who, br#"{"type":"pong"}"#, false);
                }
                heard => return heard,
            }
        }
    }

    fn compare(&self, at: &str, expected: &str, heard: &str) {
        let (Value::Object(expected), Value::Object(mut heard)) =
            (serde_json::from_str(expected).expect(at), serde_json::from_str(heard).expect(at))
        else {
            panic!("{at}: not an object")
        };
        if expected.get("message").is_some_and(|message| message == "*") {
            assert!(heard["message"].as_str().is_some_and(|text| !text.is_empty()), "{at}");
            heard["message"] = "*".into();
        }
        if !self.article {
            assert_eq!(expected, heard, "{at}");
            return;
        }
        for (key, value) in &expected {
            if key == "sdp" || key == "candidate" {
                assert_eq!(texts(value), texts(&heard[key]), "{at}");
            } else {
                assert_eq!(value, &heard[key], "{at}");
            }
        }
    }
}

/// The JSON texts, joined by `|`, that a string holds.
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

/// What `$name` stands for, and `$PAD(n)`: n letters.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// A text with the values of the names in it.
    fn fill(&self, text: &str) -> String {
        let mut parts = text.split('$');
        let mut filled = parts.next().unwrap().to_owned();
        for part in parts {
            if let Some((count, rest)) = part.strip_prefix("PAD(").and_then(|part| part.split_once(')')) {
                filled.push_str(&"x".repeat(count.parse().unwrap()));
                filled.push_str(rest);
                continue;
            }
            let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
            filled
                .push_str(self.0.get(&part[..end]).unwrap_or_else(|| panic!("{text}: ${part} is not known")));
            filled.push_str(&part[end..]);
        }
        filled
    }

    /// Every field counts. A name that is not yet known is what is heard, which is what no other name is.
    fn compare(&mut self, at: &str, expected: &str, heard: &str, are_uuids: bool) {
        let expected: Value = serde_json::from_str(expected).expect(at);
        let heard: Value = serde_json::from_str(heard).expect(at);
        self.compare_values(at, &expected, &heard, are_uuids);
    }

    fn compare_values(&mut self, at: &str, expected: &Value, heard: &Value, are_uuids: bool) {
        match (expected, heard) {
            (Value::String(it), _) if it == "*" => {}
            (Value::String(it), Value::String(heard)) if it.starts_with('$') && !it.starts_with("$PAD") => {
                match self.0.get(&it[1..]) {
                    Some(known) => assert_eq!(known, heard, "{at}"),
                    None => {
                        assert!(
                            self.0.values().all(|known| known != heard),
                            "{at}: {heard} is somebody else"
                        );
                        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-';
                        assert!(
                            !are_uuids || (heard.len() == 36 && heard.bytes().all(is_digit)),
                            "{at}: {heard}"
                        );
                        self.0.insert(it[1..].to_owned(), heard.clone());
                    }
                }
            }
            (Value::Object(expected), Value::Object(heard)) => {
                assert!(expected.keys().eq(heard.keys()), "{at}\nbut heard {heard:?}");
                for (key, value) in expected {
                    self.compare_values(at, value, &heard[key], are_uuids);
                }
            }
            (Value::String(it), heard) => assert_eq!(heard, &Value::String(self.fill(it)), "{at}"),
            (expected, heard) => assert_eq!(expected, heard, "{at}"),
        }
    }
}
