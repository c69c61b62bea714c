//! What the server says.

use super::Refusal;
use crate::json;

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
