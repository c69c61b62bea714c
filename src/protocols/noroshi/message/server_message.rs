//! The messages of the server, and their JSON.

use super::ErrorReply;
use crate::json;

/// A message of the server: a reply, a notice, or a message that it forwards from another peer.
///
/// An SDP or candidate is a JSON text; it is sent as a string that contains this text.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are those of the JSON object")]
pub enum ServerMessage<'a> {
    /// Asks the offerer for an offer.
    RequestOffer,
    /// An offer. `target` is the peer to answer; `id` is the sender if a peer addressed the offer by
    /// `target_id`.
    Offer { sdp: &'a str, target: &'a str, id: Option<&'a str> },
    /// An answer and its sender.
    Answer { sdp: &'a str, id: &'a str },
    /// A candidate, or several joined by `|`, and their sender.
    Candidate { candidate: &'a str, id: &'a str },
    /// Confirms `join`. `peers` are the other peers of the mesh, oldest first.
    Joined { id: &'a str, peers: Vec<&'a str> },
    /// Another peer joined the mesh.
    PeerJoined { id: &'a str },
    /// The partner, the sender of the held offer, or a peer of the mesh left.
    PeerLeft { id: &'a str },
    /// Answers a ping.
    Pong,
    /// A message of the receiver was rejected. `target` is its `target_id`.
    Error { error: ErrorReply, target: Option<&'a str> },
}

impl ServerMessage<'_> {
    /// Returns the JSON text to send.
    pub fn to_json(&self) -> String {
        match *self {
            ServerMessage::RequestOffer => Object::new(r#"{"type":"offer""#, 0),
            ServerMessage::Offer { sdp, target, id } => {
                let object = Object::new(r#"{"type":"offer""#, sdp.len());
                object.string("sdp", sdp).string("target_id", target).string_if_some("id", id)
            }
            ServerMessage::Answer { sdp, id } => {
                Object::new(r#"{"type":"answer""#, sdp.len()).string("sdp", sdp).string("id", id)
            }
            ServerMessage::Candidate { candidate, id } => {
                let object = Object::new(r#"{"type":"candidate""#, candidate.len());
                object.string("candidate", candidate).string("id", id)
            }
            ServerMessage::Joined { id, ref peers } => {
                Object::new(r#"{"type":"joined""#, 0).string("id", id).strings("peers", peers)
            }
            ServerMessage::PeerJoined { id } => Object::new(r#"{"type":"peerJoined""#, 0).string("id", id),
            ServerMessage::PeerLeft { id } => Object::new(r#"{"type":"peerLeft""#, 0).string("id", id),
            ServerMessage::Pong => Object::new(r#"{"type":"pong""#, 0),
            ServerMessage::Error { error, target } => {
                let object = Object::new(r#"{"type":"error""#, error.message.len());
                let object = object.string("code", error.code.name()).string("message", error.message);
                object.string_if_some("target_id", target)
            }
        }
        .finish()
    }
}

/// A writer of a JSON object.
///
/// Written by hand, because an SDP is escaped from the text of the sender straight into a buffer that is
/// large enough: the usual message takes one allocation.
struct Object(Vec<u8>);

impl Object {
    /// Starts an object with `prefix`.
    ///
    /// `bytes` is the length of the longest string that follows. It determines the initial capacity.
    fn new(prefix: &str, bytes: usize) -> Object {
        // Escaping quotes and line ends makes a candidate a tenth longer, and an SDP a seventh.
        let capacity = 128 + bytes + bytes / 6;
        let mut json = Vec::with_capacity(capacity);
        json.extend_from_slice(prefix.as_bytes());
        Object(json)
    }

    fn string(mut self, key: &str, value: &str) -> Object {
        self.key(key);
        json::push_string(&mut self.0, value);
        self
    }

    fn string_if_some(self, key: &str, value: Option<&str>) -> Object {
        match value {
            Some(value) => self.string(key, value),
            None => self,
        }
    }

    fn strings(mut self, key: &str, values: &[&str]) -> Object {
        self.key(key);
        self.0.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            json::push_string(&mut self.0, value);
        }
        self.0.push(b']');
        self
    }

    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn finish(mut self) -> String {
        self.0.push(b'}');
        String::from_utf8(self.0).expect("only UTF-8 strings were written")
    }
}
