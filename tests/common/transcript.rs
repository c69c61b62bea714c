//! Conversations as text, and how they are played. The format is described in `tests/transcripts/README.md`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use noroshi::config::{Command, Config};
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
    fn say(&mut self, who: &str, text: &[u8], binary: bool);
    /// From now on this peer reads and answers nothing.
    fn deafen(&mut self, who: &str);
    fn leave(&mut self, who: &str);
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
        let said = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let lines = text.lines().filter(said).map(str::to_owned).collect();
        Transcript { article: name.starts_with("article"), name, config, lines }
    }

    pub fn play(&self, mut wire: Box<dyn Wire>) {
        let mut everybody = BTreeSet::new();
        for line in &self.lines {
            let at = format!("{}: {line}", self.name);
            let mut words = line.splitn(3, ' ');
            let (who, verb, rest) =
                (words.next().unwrap(), words.next().expect(&at), words.next().unwrap_or(""));
            everybody.insert(who);
            match verb {
                "+" => match rest.split_once("as ") {
                    Some((room, id)) if self.config.token_secrets.is_some() => {
                        let id = Some(id).filter(|id| *id != "*").map(Box::from);
                        // The year 2096.
                        let until = Duration::from_secs(4_000_000_000);
                        wire.admit(who, room.trim_end(), &Claims { until, room: None, id });
                    }
                    _ => wire.open(who, rest),
                },
                ">" => wire.say(who, rest.as_bytes(), false),
                ">b" => wire.say(who, rest.as_bytes(), true),
                "!" => wire.deafen(who),
                "-" => wire.leave(who),
                "~" => wire.pass(rest.parse().expect(&at)),
                "x" => assert_eq!(wire.next(who), Some(Heard::Closed(rest.parse().expect(&at))), "{at}"),
                "<" => match wire.next(who) {
                    Some(Heard::Text(heard)) => self.compare(&at, rest, &heard),
                    other => panic!("{at}\nbut heard {other:?}"),
                },
                _ => panic!("{at}: no such line"),
            }
        }
        for who in everybody {
            assert_eq!(wire.next(who), None, "{}: {who} heard more than is listed", self.name);
        }
        wire.finish();
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
