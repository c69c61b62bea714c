//! The messages of PeerJS: parsing those of clients, and writing those of the server.
//!
//! A payload is opaque. It is forwarded as the JSON text that the sender wrote.

use std::borrow::Cow;

use crate::json::{self, ObjectWriter};

/// A message of a client that the server handles.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// A liveness signal, which has no other effect.
    Heartbeat,
    /// A message for the peer with this id.
    Relay {
        /// Its type.
        kind: Kind,
        /// The id of the receiver. Not empty, but it may be longer than any id.
        destination: Cow<'a, str>,
        /// JSON text. `None`: the message has no payload.
        payload: Option<&'a str>,
    },
    /// The client releases its id: a `LEAVE` without a receiver.
    Leave,
}

/// The types of messages that are relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Begins a data connection or a media call.
    Offer,
    /// Answers an offer.
    Answer,
    /// An ICE candidate.
    Candidate,
    /// The sender has closed its connections to the receiver.
    Leave,
}

impl Kind {
    /// Returns the value of the field `type`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Offer => "OFFER",
            Kind::Answer => "ANSWER",
            Kind::Candidate => "CANDIDATE",
            Kind::Leave => "LEAVE",
        }
    }

    /// Returns whether the sender waits for a reaction, so that it is told if the message cannot be delivered.
    ///
    /// A candidate follows an offer or an answer, for which the sender is told.
    pub fn is_awaited(self) -> bool {
        matches!(self, Kind::Offer | Kind::Answer)
    }
}

/// Parses a message. `None`: it is malformed, or has a type that clients do not send.
///
/// The last of several fields with the same name counts, as for `JSON.parse`.
pub fn parse(text: &str) -> Option<ClientMessage<'_>> {
    let mut kind = None;
    let mut destination = None;
    let mut payload = None;
    json::parse_object(text, |name, value| match name {
        "type" => kind = Some(value),
        "dst" => destination = Some(value),
        "payload" => payload = Some(value),
        _ => {}
    })?;
    let destination = match destination {
        None | Some("null") => Cow::Borrowed(""),
        Some(value) => json::parse_string(value)?,
    };
    let kind = match json::parse_string(kind?)?.as_ref() {
        "HEARTBEAT" => return Some(ClientMessage::Heartbeat),
        "LEAVE" if destination.is_empty() => return Some(ClientMessage::Leave),
        "LEAVE" => Kind::Leave,
        "OFFER" => Kind::Offer,
        "ANSWER" => Kind::Answer,
        "CANDIDATE" => Kind::Candidate,
        _ => return None,
    };
    if destination.is_empty() {
        return None;
    }
    Some(ClientMessage::Relay { kind, destination, payload })
}

/// The id is registered.
pub const OPEN: &str = r#"{"type":"OPEN"}"#;
/// The id belongs to another connection. The connection is closed after this.
pub const ID_TAKEN: &str = r#"{"type":"ID-TAKEN","payload":{"msg":"ID is taken"}}"#;

/// Returns the message that refuses a connection, which is closed after it.
///
/// The client throws an exception if `payload.msg` is missing.
pub fn error(sentence: &str) -> String {
    ObjectWriter::new(r#"{"type":"ERROR","payload":{"msg":"#, sentence.len())
        .string(sentence)
        .text("}")
        .finish()
}

/// Returns the message that tells `source` that the peer `destination` is absent.
///
/// The absent peer is the `src` of this message.
pub fn expire(source: &str, destination: &str) -> String {
    let message = ObjectWriter::new(r#"{"type":"EXPIRE","src":"#, source.len() + destination.len());
    message.string(destination).text(r#","dst":"#).string(source).finish()
}

/// Returns a message as it is relayed from `source` to `destination`.
pub fn relayed(kind: Kind, source: &str, destination: &str, payload: Option<&str>) -> String {
    let bytes = source.len() + destination.len() + payload.map_or(0, str::len);
    let mut message = ObjectWriter::new(r#"{"type":""#, bytes)
        .text(kind.name())
        .text(r#"","src":"#)
        .string(source)
        .text(r#","dst":"#)
        .string(destination);
    if let Some(payload) = payload {
        message = message.text(r#","payload":"#).text(payload);
    }
    message.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay<'a>(kind: Kind, destination: &'a str, payload: Option<&'a str>) -> Option<ClientMessage<'a>> {
        Some(ClientMessage::Relay { kind, destination: destination.into(), payload })
    }

    #[test]
    fn messages_are_parsed_in_any_notation() {
        for (text, expected) in [
            (r#"{"type":"HEARTBEAT"}"#, Some(ClientMessage::Heartbeat)),
            (r#"{"type":"HEARTBEAT","dst":"b"}"#, Some(ClientMessage::Heartbeat)),
            (
                r#"{"type":"OFFER","payload":{"a": 1},"dst":"b"}"#,
                relay(Kind::Offer, "b", Some(r#"{"a": 1}"#)),
            ),
            (r#" {"\u0074ype":"\u0041NSWER","dst":"\u0062"} "#, relay(Kind::Answer, "b", None)),
            (
                r#"{"type":"x","dst":"a","payload":1,"type":"CANDIDATE","dst":"b","payload":null}"#,
                relay(Kind::Candidate, "b", Some("null")),
            ),
            (r#"{"type":"LEAVE","dst":"b"}"#, relay(Kind::Leave, "b", None)),
            (r#"{"type":"LEAVE"}"#, Some(ClientMessage::Leave)),
            (r#"{"type":"LEAVE","dst":""}"#, Some(ClientMessage::Leave)),
            (r#"{"type":"LEAVE","dst":"b","dst":null}"#, Some(ClientMessage::Leave)),
            (r#"{"type":"LEAVE","dst":17}"#, None),
            (r#"{"type":"OFFER"}"#, None),
            (r#"{"type":"OFFER","dst":""}"#, None),
            (r#"{"type":"OFFER","dst":["b"]}"#, None),
            (r#"{"type":"offer","dst":"b"}"#, None),
            (r#"{"type":"OPEN","dst":"b"}"#, None),
            (r#"{"type":"EXPIRE","dst":"b"}"#, None),
            (r#"{"type":17,"dst":"b"}"#, None),
            (r#"{"dst":"b"}"#, None),
            ("{}", None),
            ("[]", None),
            ("null", None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn messages_of_the_server_are_json() {
        assert_eq!(error("a \"b\""), r#"{"type":"ERROR","payload":{"msg":"a \"b\""}}"#);
        assert_eq!(expire("me", "a\"b"), r#"{"type":"EXPIRE","src":"a\"b","dst":"me"}"#);
        assert_eq!(
            relayed(Kind::Offer, "me", "you", Some("{ }")),
            r#"{"type":"OFFER","src":"me","dst":"you","payload":{ }}"#
        );
        assert_eq!(relayed(Kind::Leave, "me", "you", None), r#"{"type":"LEAVE","src":"me","dst":"you"}"#);
    }
}
