//! The words on the wire: what a client may say ([`Request`]), what the server says ([`Reply`]).
//!
//! Everything read is borrowed from the message; `sdp` and `candidate` are kept as the JSON text that the sender
//! wrote and are never looked into. The protocol is in the README.

use std::borrow::Cow;

use crate::config::{CANDIDATES_MAX, ID_BYTES_MAX, RATE_BLOCK_BYTES};
use crate::json;

/// A well-formed message of a client.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who says it.
    pub id: Cow<'a, str>,
    /// Whom it names, if anybody.
    pub target: Option<Cow<'a, str>>,
    /// What it says.
    pub body: Body<'a>,
}

/// What a client says. An SDP is its JSON text.
#[derive(Debug)]
pub enum Body<'a> {
    /// Pair me.
    Connect,
    /// Here is my offer.
    Offer(&'a str),
    /// Here is my answer.
    Answer(&'a str),
    /// Here are candidates of mine.
    Candidates(Candidates<'a>),
    /// I join the mesh.
    Join,
    /// I leave my pair or the mesh, but stay connected.
    Leave,
}

/// One candidate, or the elements of a `candidates` array: JSON texts.
#[derive(Debug)]
pub enum Candidates<'a> {
    /// From `candidate`.
    One(&'a str),
    /// From `candidates`: 1 to [`CANDIDATES_MAX`].
    Many(Vec<&'a str>),
}

impl<'a> Candidates<'a> {
    /// How many.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        match self {
            Candidates::One(_) => 1,
            Candidates::Many(texts) => texts.len(),
        }
    }

    /// Their JSON texts, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        let (one, many) = match self {
            Candidates::One(text) => (Some(*text), &[][..]),
            Candidates::Many(texts) => (None, &texts[..]),
        };
        one.into_iter().chain(many.iter().copied())
    }
}

/// A type of message, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `connect`
    Connect,
    /// `offer`
    Offer,
    /// `answer`
    Answer,
    /// `candidateAdd`
    CandidateAdd,
    /// `join`
    Join,
    /// `leave`
    Leave,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 6] =
        [Kind::Connect, Kind::Offer, Kind::Answer, Kind::CandidateAdd, Kind::Join, Kind::Leave];

    /// The `type` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Offer => "offer",
            Kind::Answer => "answer",
            Kind::CandidateAdd => "candidateAdd",
            Kind::Join => "join",
            Kind::Leave => "leave",
        }
    }
}

impl Body<'_> {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Connect => Kind::Connect,
            Body::Offer(_) => Kind::Offer,
            Body::Answer(_) => Kind::Answer,
            Body::Candidates(_) => Kind::CandidateAdd,
            Body::Join => Kind::Join,
            Body::Leave => Kind::Leave,
        }
    }
}

/// The stable code of an error, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Not a JSON object.
    BadJson,
    /// A field is missing, or has the wrong type or length.
    BadMessage,
    /// The type is none of ours.
    UnknownType,
    /// The connection speaks as another id.
    IdMismatch,
    /// The id belongs to a peer that is alive.
    IdTaken,
    /// The target is nobody else in this room.
    UnknownPeer,
    /// The target's queue is full.
    PeerBusy,
    /// Another peer is the offerer.
    NotOfferer,
    /// The offer was taken or replaced.
    OfferTaken,
    /// The mesh is full.
    RoomFull,
    /// Too many candidates would be stored.
    TooMany,
    /// The message was dropped, because there were too many.
    RateLimited,
}

impl Code {
    /// All of them, in the order of their numbers.
    pub const ALL: [Code; 12] = [
        Code::BadJson,
        Code::BadMessage,
        Code::UnknownType,
        Code::IdMismatch,
        Code::IdTaken,
        Code::UnknownPeer,
        Code::PeerBusy,
        Code::NotOfferer,
        Code::OfferTaken,
        Code::RoomFull,
        Code::TooMany,
        Code::RateLimited,
    ];

    /// The `code` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Code::BadJson => "bad_json",
            Code::BadMessage => "bad_message",
            Code::UnknownType => "unknown_type",
            Code::IdMismatch => "id_mismatch",
            Code::IdTaken => "id_taken",
            Code::UnknownPeer => "unknown_peer",
            Code::PeerBusy => "peer_busy",
            Code::NotOfferer => "not_offerer",
            Code::OfferTaken => "offer_taken",
            Code::RoomFull => "room_full",
            Code::TooMany => "too_many",
            Code::RateLimited => "rate_limited",
        }
    }
}

/// Why a message is refused: a code for programs, a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: &'static str,
}

/// How often a message counts towards the rate, by its size.
pub fn blocks(text: &str) -> usize {
    text.len().div_ceil(RATE_BLOCK_BYTES).max(1)
}

/// Reads one message of a client.
///
/// # Errors
/// What is wrong with it, and the peer it names, if that much could be read.
pub fn parse(text: &str) -> Result<Request<'_>, (Refusal, Option<Cow<'_, str>>)> {
    let mut fields = Fields::default();
    if json::object(text, |key, value| fields.set(key, value)).is_none() {
        return Err((Refusal { code: Code::BadJson, message: "the message is not a JSON object" }, None));
    }
    let target = fields.target_id();
    match (fields.request(), target) {
        (Ok((id, body)), Ok(target)) => Ok(Request { id, target, body }),
        // What has no target does not mind what is in its place.
        (Ok((id, body @ (Body::Connect | Body::Join | Body::Leave))), Err(_)) => {
            Ok(Request { id, target: None, body })
        }
        (Ok(_), Err(refusal)) => Err((refusal, None)),
        (Err(refusal), target) => Err((refusal, target.ok().flatten())),
    }
}

/// The fields of a message that mean something, as they were written. `null` is a missing field.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a str>,
    id: Option<&'a str>,
    target_id: Option<&'a str>,
    sdp: Option<&'a str>,
    candidate: Option<&'a str>,
    candidates: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn set(&mut self, key: &str, value: &'a str) {
        let field = match key {
            "type" => &mut self.kind,
            "id" => &mut self.id,
            "target_id" => &mut self.target_id,
            "sdp" => &mut self.sdp,
            "candidate" => &mut self.candidate,
            "candidates" => &mut self.candidates,
            _ => return,
        };
        *field = Some(value).filter(|value| *value != "null");
    }

    /// The sender and what it says.
    fn request(&self) -> Result<(Cow<'a, str>, Body<'a>), Refusal> {
        let bad = |message| Refusal { code: Code::BadMessage, message };
        let kind = self.kind.ok_or(bad("type is missing"))?;
        let kind = json::string(kind).ok_or(bad("type is not a string"))?;
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            return Err(Refusal {
                code: Code::UnknownType,
                message: "the type is none that this server knows",
            });
        };
        let id = self.id.ok_or(bad("id is missing"))?;
        let id = json::string(id)
            .filter(|id| (1..=ID_BYTES_MAX).contains(&id.len()))
            .ok_or(bad("id is not a string of 1 to 128 bytes of UTF-8"))?;
        let sdp = self.sdp.unwrap_or("null");
        let body = match kind {
            Kind::Connect => Body::Connect,
            Kind::Offer => Body::Offer(sdp),
            Kind::Answer => Body::Answer(sdp),
            Kind::CandidateAdd => Body::Candidates(self.candidates()?),
            Kind::Join => Body::Join,
            Kind::Leave => Body::Leave,
        };
        Ok((id, body))
    }

    fn target_id(&self) -> Result<Option<Cow<'a, str>>, Refusal> {
        let Some(raw) = self.target_id else {
            return Ok(None);
        };
        match json::string(raw) {
            Some(id) if id.is_empty() => Ok(None),
            Some(id) if id.len() <= ID_BYTES_MAX => Ok(Some(id)),
            _ => Err(Refusal {
                code: Code::BadMessage,
                message: "target_id is not a string of at most 128 bytes of UTF-8",
            }),
        }
    }

    fn candidates(&self) -> Result<Candidates<'a>, Refusal> {
        let Some(raw) = self.candidates else {
            return Ok(Candidates::One(self.candidate.unwrap_or("null")));
        };
        let mut many = Vec::new();
        // One too many is enough to know: 16 MB of zeros would take 256 MB.
        let read = json::array(raw, |element| {
            many.push(element);
            many.len() <= CANDIDATES_MAX
        });
        match read {
            Some(()) if (1..=CANDIDATES_MAX).contains(&many.len()) => Ok(Candidates::Many(many)),
            _ => Err(Refusal { code: Code::BadMessage, message: "candidates is not an array of 1 to 64" }),
        }
    }
}

/// What the server says. An SDP or candidate is a JSON text and goes out as a string that holds it.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are those of the wire")]
pub enum Reply<'a> {
    /// Send an offer.
    Ask,
    /// An offer, and whom to answer. With `id` where a peer addressed it, without where the room handed it.
    Offer { sdp: &'a str, target: &'a str, id: Option<&'a str> },
    /// An answer, and whose.
    Answer { sdp: &'a str, id: &'a str },
    /// A candidate, or several joined by `|`, and whose.
    Candidate { candidate: &'a str, id: &'a str },
    /// You are in the mesh, with these.
    Joined { id: &'a str, peers: Vec<&'a str> },
    /// A peer came into the mesh.
    PeerJoined { id: &'a str },
    /// A peer is gone.
    PeerLeft { id: &'a str },
    /// Your message was refused.
    Error { refusal: Refusal, target: Option<&'a str> },
}

impl Reply<'_> {
    /// The JSON text to send.
    pub fn text(&self) -> String {
        match *self {
            Reply::Ask => Object::new(r#"{"type":"offer""#, 0),
            Reply::Offer { sdp, target, id } => {
                let object = Object::new(r#"{"type":"offer""#, sdp.len());
                object.string("sdp", sdp).string("target_id", target).string_if("id", id)
            }
            Reply::Answer { sdp, id } => {
                Object::new(r#"{"type":"answer""#, sdp.len()).string("sdp", sdp).string("id", id)
            }
            Reply::Candidate { candidate, id } => {
                let object = Object::new(r#"{"type":"candidate""#, candidate.len());
                object.string("candidate", candidate).string("id", id)
            }
            Reply::Joined { id, ref peers } => {
                Object::new(r#"{"type":"joined""#, 0).string("id", id).strings("peers", peers)
            }
            Reply::PeerJoined { id } => Object::new(r#"{"type":"peerJoined""#, 0).string("id", id),
            Reply::PeerLeft { id } => Object::new(r#"{"type":"peerLeft""#, 0).string("id", id),
            Reply::Error { refusal, target } => {
                let object = Object::new(r#"{"type":"error""#, refusal.message.len());
                let object = object.string("code", refusal.code.name()).string("message", refusal.message);
                object.string_if("target_id", target)
            }
        }
        .finish()
    }
}

/// A message, with the servers for ICE if there are any: the JSON of `iceServers`.
pub fn with_ice_servers(mut text: String, servers: &str) -> String {
    if !servers.is_empty() {
        text.pop();
        text.push_str(",\"iceServers\":");
        text.push_str(servers);
        text.push('}');
    }
    text
}

/// A JSON object in the making.
struct Object(Vec<u8>);

impl Object {
    /// One that begins with this and will have a string of this size.
    fn new(begin: &str, bytes: usize) -> Object {
        // With quotes and line ends escaped, a candidate grows by a tenth, and an SDP by a seventh.
        let mut text = Vec::with_capacity(128 + bytes + bytes / 6);
        text.extend_from_slice(begin.as_bytes());
        Object(text)
    }

    fn string(mut self, key: &str, value: &str) -> Object {
        self.key(key);
        json::push_string(&mut self.0, value);
        self
    }

    fn string_if(self, key: &str, value: Option<&str>) -> Object {
        match value {
            Some(value) => self.string(key, value),
            None => self,
        }
    }

    fn strings(mut self, key: &str, values: &[&str]) -> Object {
        self.key(key);
        for (i, value) in values.iter().enumerate() {
            self.0.push(if i == 0 { b'[' } else { b',' });
            json::push_string(&mut self.0, value);
        }
        self.0.extend_from_slice(if values.is_empty() { b"[]" } else { b"]" });
        self
    }

    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn finish(mut self) -> String {
        self.0.push(b'}');
        String::from_utf8(self.0).expect("strings were written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (Code, Option<String>) {
        let (refusal, target) = parse(text).expect_err(text);
        (refusal.code, target.map(Cow::into_owned))
    }

    fn offered(text: &str) -> String {
        match parse(text).expect(text).body {
            Body::Offer(sdp) => sdp.to_owned(),
            body => panic!("{text}: {body:?}"),
        }
    }

    #[test]
    fn what_is_no_json_object() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "[]",
            "null",
            "1",
            "\"x\"",
            "{}{}",
            "{} x",
            "{\"a\":}",
            "{'a':1}",
            "\u{feff}{}",
        ] {
            assert_eq!(refused(text).0, Code::BadJson, "{text:?}");
        }
        // A raw control character in a string is no JSON (RFC 8259 section 7).
        assert_eq!(refused("{\"type\":\"connect\",\"id\":\"a\nb\"}").0, Code::BadJson);
    }

    #[test]
    fn fields_are_checked_in_order() {
        for (text, code) in [
            ("{}", Code::BadMessage),
            (r#"{"type":null}"#, Code::BadMessage),
            (r#"{"type":1}"#, Code::BadMessage),
            (r#"{"type":"\ud800"}"#, Code::BadMessage),
            (r#"{"type":"hello"}"#, Code::UnknownType),
            (r#"{"type":"Connect","id":"A"}"#, Code::UnknownType),
            (r#"{"type":"connect"}"#, Code::BadMessage),
            (r#"{"type":"connect","id":null}"#, Code::BadMessage),
            (r#"{"type":"connect","id":""}"#, Code::BadMessage),
            (r#"{"type":"connect","id":1}"#, Code::BadMessage),
            (r#"{"type":"connect","id":["A"]}"#, Code::BadMessage),
            (r#"{"type":"connect","id":"\ud800"}"#, Code::BadMessage),
            (r#"{"type":"answer","id":"A","target_id":1}"#, Code::BadMessage),
            (r#"{"type":"candidateAdd","id":"A","candidates":{}}"#, Code::BadMessage),
            (r#"{"type":"candidateAdd","id":"A","candidates":[]}"#, Code::BadMessage),
        ] {
            assert_eq!(refused(text), (code, None), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_target_where_there_is_a_valid_one() {
        assert_eq!(refused(r#"{"type":"answer","target_id":"Z"}"#), (Code::BadMessage, Some("Z".into())));
        assert_eq!(refused(r#"{"type":"hello","target_id":"Z"}"#), (Code::UnknownType, Some("Z".into())));
    }

    #[test]
    fn ids_are_counted_in_bytes_after_unescaping() {
        let id = |id: &str| parse(&format!(r#"{{"type":"join","id":"{id}"}}"#)).map(|r| r.id.len()).ok();
        assert_eq!(id(&"x".repeat(128)), Some(128));
        assert_eq!(id(&"x".repeat(129)), None);
        assert_eq!(id(&"\\u0041".repeat(128)), Some(128));
        assert_eq!(id(&"狼".repeat(42)), Some(126));
        assert_eq!(id(&"狼".repeat(43)), None);
        assert_eq!(id("\\u0000"), Some(1));
    }

    #[test]
    fn keys_may_be_escaped_repeated_and_unknown() {
        assert_eq!(offered(r#"{"\u0074ype":"offer","id":"A","sdp":1}"#), "1");
        assert_eq!(offered(r#"{"type":"hello","type":"offer","id":1,"id":"A","sdp":1,"sdp":2}"#), "2");
        assert_eq!(offered(r#"{"type":"offer","id":"A","sdp":1,"sdp":null}"#), "null");
        assert_eq!(offered(r#"{"type":"offer","id":"A","\ud800":"\udfff","x":1e999,"sdp":0}"#), "0");
        assert_eq!(offered(r#"{"type":"offer","id":"A","target_id":null}"#), "null");
    }

    #[test]
    fn what_belongs_to_the_peers_is_kept_as_it_was_written() {
        for sdp in [
            r#"{"b":1,"a":2,"b":3}"#,
            r#"[ 1.0 , 1e400, -0 ,"\ud800\u0041/\/" ]"#,
            r#""v=0\r\n <&> 日本 \u2028""#,
            "{\n\t\"type\" : \"offer\" }",
        ] {
            let text = format!(r#"{{"type":"offer","id":"A","sdp": {sdp} }}"#);
            assert_eq!(offered(&text), sdp);
            let sent = Reply::Answer { sdp, id: "A" }.text();
            let heard: serde_json::Value = serde_json::from_str(&sent).unwrap();
            assert_eq!(heard["sdp"], sdp);
        }
    }

    #[test]
    fn depth_is_no_limit() {
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        assert_eq!(offered(&format!(r#"{{"type":"offer","id":"A","x":{deep},"sdp":{deep}}}"#)), deep);
        assert_eq!(refused(&"[".repeat(60_000)).0, Code::BadJson);
        assert_eq!(refused(&"{\"a\":".repeat(12_000)).0, Code::BadJson);
    }

    #[test]
    fn candidates_win_over_candidate() {
        let texts = |text: &str| match parse(text).unwrap().body {
            Body::Candidates(candidates) => {
                assert_eq!(candidates.iter().count(), candidates.len());
                candidates.iter().map(str::to_owned).collect::<Vec<_>>()
            }
            body => panic!("{body:?}"),
        };
        assert_eq!(texts(r#"{"type":"candidateAdd","id":"A"}"#), ["null"]);
        assert_eq!(texts(r#"{"type":"candidateAdd","id":"A","candidate":{"a": 1}}"#), [r#"{"a": 1}"#]);
        assert_eq!(
            texts(r#"{"type":"candidateAdd","id":"A","candidates":[null, 1,"x"],"candidate":2}"#),
            ["null", "1", "\"x\""]
        );
        let many = |n: usize| {
            format!(r#"{{"type":"candidateAdd","id":"A","candidates":[0{}]}}"#, ",0".repeat(n - 1))
        };
        assert_eq!(texts(&many(64)).len(), 64);
        assert_eq!(refused(&many(65)).0, Code::BadMessage);
    }

    #[test]
    fn replies_as_they_are_sent() {
        let refusal = Refusal { code: Code::UnknownPeer, message: "nobody" };
        for (reply, text) in [
            (Reply::Ask, r#"{"type":"offer"}"#),
            (
                Reply::Offer { sdp: "\"o\"", target: "A", id: None },
                r#"{"type":"offer","sdp":"\"o\"","target_id":"A"}"#,
            ),
            (
                Reply::Offer { sdp: "1", target: "A", id: Some("A") },
                r#"{"type":"offer","sdp":"1","target_id":"A","id":"A"}"#,
            ),
            (Reply::Answer { sdp: "null", id: "\n" }, r#"{"type":"answer","sdp":"null","id":"\n"}"#),
            (
                Reply::Candidate { candidate: "1|2", id: "A" },
                r#"{"type":"candidate","candidate":"1|2","id":"A"}"#,
            ),
            (
                Reply::Joined { id: "A", peers: vec!["B", "\""] },
                r#"{"type":"joined","id":"A","peers":["B","\""]}"#,
            ),
            (Reply::PeerJoined { id: "A" }, r#"{"type":"peerJoined","id":"A"}"#),
            (Reply::PeerLeft { id: "A" }, r#"{"type":"peerLeft","id":"A"}"#),
            (
                Reply::Error { refusal, target: Some("Z") },
                r#"{"type":"error","code":"unknown_peer","message":"nobody","target_id":"Z"}"#,
            ),
            (
                Reply::Error { refusal, target: None },
                r#"{"type":"error","code":"unknown_peer","message":"nobody"}"#,
            ),
        ] {
            assert_eq!(reply.text(), text);
        }
    }
}
