//! The messages of GStreamer's signalling protocol: parsing those of clients, and writing those of the server.
//!
//! A native client ends its pipeline when it receives a message that it cannot parse. Nothing that a client wrote is therefore
//! relayed before it is checked: `sdp` and `ice` are serialized again from their known fields, and `meta` is a value that common
//! JSON parsers accept. Strings with U+0000 are not relayed, because it ends a string in C.

use std::borrow::Cow;

use crate::json::{self, ObjectWriter};
use crate::limits::{GSTREAMER_META_BYTES_MAX, GSTREAMER_ROLES_MAX};

/// What a client does, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Offers media.
    Producer,
    /// Waits until a producer starts a session with it.
    Consumer,
    /// Receives the status of all peers.
    Listener,
}

/// The version of the protocol, which determines the message that a client gets at the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `endSession`.
    V1_0,
    /// `endSessionV1_1`, with the error.
    V1_1,
}

/// A message of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// Selects a version.
    SetProtocolVersion(Version),
    /// Sets the roles and the description of the sender.
    SetPeerStatus {
        /// In the order of the message, possibly repeated.
        roles: Box<[Role]>,
        /// JSON text. `null` if it is missing.
        meta: &'a str,
        /// The id of the peer. It has no meaning, except that a client that repeats its status with it does not want it repeated to
        /// listeners.
        peer_id: Option<Cow<'a, str>>,
    },
    /// Asks for the producers.
    List,
    /// Asks for the peers with the role `consumer`.
    ListConsumers,
    /// Starts a session with this peer.
    StartSession {
        /// Of the other peer.
        peer_id: Cow<'a, str>,
        /// JSON text of a string, or `null`.
        offer: &'a str,
    },
    /// Ends a session.
    EndSession {
        /// Of the session.
        session_id: Cow<'a, str>,
        /// JSON text of a string, or `null`.
        error: &'a str,
        /// Whether it is the message of version 1.1.
        is_v1_1: bool,
    },
    /// A description or a candidate for the other peer of a session.
    Peer {
        /// Of the session.
        session_id: Cow<'a, str>,
        /// What is relayed.
        content: Content<'a>,
    },
}

/// What a `peer` message relays. The texts are JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A description that is an offer.
    Offer(&'a str),
    /// A description that is an answer.
    Answer(&'a str),
    /// A candidate and the index of its media description.
    Candidate {
        /// A string.
        candidate: &'a str,
        /// A number.
        sdp_m_line_index: u32,
    },
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Producer => "producer",
            Role::Consumer => "consumer",
            Role::Listener => "listener",
        }
    }

    fn parse(value: &str) -> Option<Role> {
        match &*json::parse_string(value)? {
            "producer" => Some(Role::Producer),
            "consumer" => Some(Role::Consumer),
            "listener" => Some(Role::Listener),
            _ => None,
        }
    }
}

impl ClientMessage<'_> {
    /// Returns the value of the field `type`, for the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            ClientMessage::SetProtocolVersion(_) => "setProtocolVersion",
            ClientMessage::SetPeerStatus { .. } => "setPeerStatus",
            ClientMessage::List => "list",
            ClientMessage::ListConsumers => "listConsumers",
            ClientMessage::StartSession { .. } => "startSession",
            ClientMessage::EndSession { is_v1_1: false, .. } => "endSession",
            ClientMessage::EndSession { is_v1_1: true, .. } => "endSessionV1_1",
            ClientMessage::Peer { .. } => "peer",
        }
    }
}

/// The names of all messages of clients.
pub const NAMES: [&str; 8] = [
    "setProtocolVersion",
    "setPeerStatus",
    "list",
    "listConsumers",
    "startSession",
    "endSession",
    "endSessionV1_1",
    "peer",
];

/// Parses a message. `None`: it is malformed, has a type that clients do not send, or would harm the client that receives it.
///
/// The last of several fields with the same name counts.
pub fn parse(text: &str) -> Option<ClientMessage<'_>> {
    let mut message_type = None;
    let mut peer_id = None;
    let mut session_id = None;
    let mut roles = None;
    let mut meta = "null";
    let mut version = None;
    let mut offer = "null";
    let mut error = "null";
    let mut sdp = None;
    let mut ice = None;
    json::parse_object(text, |name, value| match name {
        "type" => message_type = Some(value),
        "peerId" => peer_id = Some(value),
        "sessionId" => session_id = Some(value),
        "roles" => roles = Some(value),
        "meta" => meta = value,
        "version" => version = Some(value),
        "offer" => offer = value,
        "error" => error = value,
        "sdp" => sdp = Some(value),
        "ice" => ice = Some(value),
        _ => {}
    })?;
    match &*json::parse_string(message_type?)? {
        "setProtocolVersion" => parse_version(version?).map(ClientMessage::SetProtocolVersion),
        "setPeerStatus" => {
            let peer_id = match peer_id {
                None | Some("null") => None,
                Some(value) => Some(json::parse_string(value)?),
            };
            let roles = parse_roles(roles?)?;
            // A longer value is refused, whatever it is.
            if meta.len() <= GSTREAMER_META_BYTES_MAX && !is_relayable_meta(meta) {
                return None;
            }
            Some(ClientMessage::SetPeerStatus { roles, meta, peer_id })
        }
        "list" => Some(ClientMessage::List),
        "listConsumers" => Some(ClientMessage::ListConsumers),
        "startSession" => {
            if offer != "null" {
                check_description(offer)?;
            }
            Some(ClientMessage::StartSession { peer_id: json::parse_string(peer_id?)?, offer })
        }
        "endSession" => {
            let session_id = json::parse_string(session_id?)?;
            Some(ClientMessage::EndSession { session_id, error: "null", is_v1_1: false })
        }
        "endSessionV1_1" => {
            if error != "null" {
                check_text(error)?;
            }
            let session_id = json::parse_string(session_id?)?;
            Some(ClientMessage::EndSession { session_id, error, is_v1_1: true })
        }
        "peer" => {
            let session_id = json::parse_string(session_id?)?;
            let content = match (sdp, ice) {
                (Some(sdp), None) => parse_description(sdp)?,
                (None, Some(ice)) => parse_candidate(ice)?,
                _ => return None,
            };
            Some(ClientMessage::Peer { session_id, content })
        }
        _ => None,
    }
}

fn parse_version(value: &str) -> Option<Version> {
    match &*json::parse_string(value)? {
        "v1_0" => Some(Version::V1_0),
        "v1_1" => Some(Version::V1_1),
        _ => None,
    }
}

fn parse_roles(value: &str) -> Option<Box<[Role]>> {
    let mut roles = Vec::new();
    let mut are_valid = true;
    json::parse_array(value, |element| {
        match Role::parse(element) {
            Some(role) if roles.len() < GSTREAMER_ROLES_MAX => roles.push(role),
            _ => are_valid = false,
        }
        are_valid
    })?;
    are_valid.then(|| roles.into_boxed_slice())
}

fn parse_description(value: &str) -> Option<Content<'_>> {
    let mut kind = None;
    let mut sdp = None;
    json::parse_object(value, |name, value| match name {
        "type" => kind = Some(value),
        "sdp" => sdp = Some(value),
        _ => {}
    })?;
    let sdp = sdp?;
    check_description(sdp)?;
    match &*json::parse_string(kind?)? {
        "offer" => Some(Content::Offer(sdp)),
        "answer" => Some(Content::Answer(sdp)),
        _ => None,
    }
}

fn parse_candidate(value: &str) -> Option<Content<'_>> {
    let mut candidate = None;
    let mut index = None;
    json::parse_object(value, |name, value| match name {
        "candidate" => candidate = Some(value),
        "sdpMLineIndex" => index = Some(value),
        _ => {}
    })?;
    let candidate = candidate?;
    check_text(candidate)?;
    // The syntax of JSON is checked: what begins with a digit is a number without a leading zero.
    let sdp_m_line_index = index?.parse().ok()?;
    Some(Content::Candidate { candidate, sdp_m_line_index })
}

/// Returns whether all clients can parse a `meta`, and store its strings: C ends them at U+0000. JSON has that character only as
/// an escape sequence. A backslash before this text is rejected too.
fn is_relayable_meta(meta: &str) -> bool {
    !meta.contains(r"\u0000") && json::is_portable(meta)
}

/// Checks that a value is the string of a description without U+0000. An empty one ends the pipeline of a native client.
fn check_description(value: &str) -> Option<()> {
    let description = json::parse_string(value)?;
    let is_relayable = !description.is_empty() && !description.contains('\0');
    is_relayable.then_some(())
}

/// Checks that a value is a string without U+0000.
fn check_text(value: &str) -> Option<()> {
    let has_nul = json::parse_string(value)?.contains('\0');
    (!has_nul).then_some(())
}

// ---- Messages of the server. ----

/// The first message to a peer.
pub fn welcome(peer_id: &str) -> String {
    ObjectWriter::new(r#"{"type":"welcome","peerId":"#, peer_id.len()).string(peer_id).finish()
}

/// Tells listeners the roles and the description of a peer. No roles: it may have left.
pub fn peer_status_changed(peer_id: &str, roles: &[Role], meta: &str) -> String {
    let mut message =
        ObjectWriter::new(r#"{"type":"peerStatusChanged","roles":["#, peer_id.len() + meta.len());
    for (index, role) in roles.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        message = message.text(comma).text("\"").text(role.name()).text("\"");
    }
    message.text(r#"],"meta":"#).text(meta).text(r#","peerId":"#).string(peer_id).finish()
}

/// Begins the answer to `list`. [`list_entry`] follows for each producer, and [`LIST_END`].
pub const LIST_BEGIN: &str = r#"{"type":"list","producers":["#;
/// Begins the answer to `listConsumers`, like [`LIST_BEGIN`].
pub const LIST_CONSUMERS_BEGIN: &str = r#"{"type":"listConsumers","consumers":["#;
/// Ends a list.
pub const LIST_END: &str = "]}";

/// Returns the entry of a peer in a list.
pub fn list_entry(peer_id: &str, meta: &str) -> String {
    ObjectWriter::new(r#"{"id":"#, peer_id.len() + meta.len())
        .string(peer_id)
        .text(r#","meta":"#)
        .text(meta)
        .finish()
}

/// Tells a consumer that a session has started.
pub fn session_started(producer_id: &str, session_id: &str) -> String {
    let message =
        ObjectWriter::new(r#"{"type":"sessionStarted","peerId":"#, producer_id.len() + session_id.len());
    message.string(producer_id).text(r#","sessionId":"#).string(session_id).finish()
}

/// Asks a producer for a session.
pub fn start_session(consumer_id: &str, session_id: &str, offer: &str) -> String {
    let bytes = consumer_id.len() + session_id.len() + offer.len();
    let message = ObjectWriter::new(r#"{"type":"startSession","peerId":"#, bytes);
    message
        .string(consumer_id)
        .text(r#","sessionId":"#)
        .string(session_id)
        .text(r#","offer":"#)
        .text(offer)
        .finish()
}

/// Tells a peer that a session has ended. `error` is JSON text, which version 1.0 does not have.
pub fn end_session(version: Version, session_id: &str, error: &str) -> String {
    let bytes = session_id.len() + error.len();
    match version {
        Version::V1_0 => {
            ObjectWriter::new(r#"{"type":"endSession","sessionId":"#, bytes).string(session_id).finish()
        }
        Version::V1_1 => {
            let message = ObjectWriter::new(r#"{"type":"endSessionV1_1","sessionId":"#, bytes);
            message.string(session_id).text(r#","error":"#).text(error).finish()
        }
    }
}

/// Returns what is relayed to the other peer of a session.
pub fn peer(session_id: &str, content: &Content<'_>) -> String {
    let message = |bytes| {
        ObjectWriter::new(r#"{"type":"peer","sessionId":"#, session_id.len() + bytes).string(session_id)
    };
    match content {
        Content::Offer(sdp) => {
            message(sdp.len()).text(r#","sdp":{"type":"offer","sdp":"#).text(sdp).text("}").finish()
        }
        Content::Answer(sdp) => {
            message(sdp.len()).text(r#","sdp":{"type":"answer","sdp":"#).text(sdp).text("}").finish()
        }
        Content::Candidate { candidate, sdp_m_line_index } => {
            let message = message(candidate.len()).text(r#","ice":{"candidate":"#).text(candidate);
            message.text(r#","sdpMLineIndex":"#).text(&sdp_m_line_index.to_string()).text("}").finish()
        }
    }
}

/// Tells a peer why its request was refused.
pub fn error(details: &str) -> String {
    ObjectWriter::new(r#"{"type":"error","details":"#, details.len()).string(details).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_in_any_notation() {
        let status = |roles: &[Role], meta, peer_id: Option<&'static str>| {
            let peer_id = peer_id.map(Cow::Borrowed);
            Some(ClientMessage::SetPeerStatus { roles: roles.into(), meta, peer_id })
        };
        let start = |offer| Some(ClientMessage::StartSession { peer_id: "b".into(), offer });
        let end = |error, is_v1_1| Some(ClientMessage::EndSession { session_id: "s".into(), error, is_v1_1 });
        let peer = |content| Some(ClientMessage::Peer { session_id: "s".into(), content });
        let candidate = |candidate, sdp_m_line_index| Content::Candidate { candidate, sdp_m_line_index };
        let seventeen_roles =
            format!(r#"{{"type":"setPeerStatus","roles":["listener"{}]}}"#, r#","listener""#.repeat(16));
        for (text, expected) in [
            (r#" {"\u0074ype":"l\u0069st"} "#, Some(ClientMessage::List)),
            (r#"{"x":[{}],"type":"list"}"#, Some(ClientMessage::List)),
            (r#"{"type":"x","type":"listConsumers"}"#, Some(ClientMessage::ListConsumers)),
            (
                r#"{"type":"setProtocolVersion","version":"v1_1"}"#,
                Some(ClientMessage::SetProtocolVersion(Version::V1_1)),
            ),
            (
                r#"{"type":"setProtocolVersion","version":"v1_0"}"#,
                Some(ClientMessage::SetProtocolVersion(Version::V1_0)),
            ),
            (r#"{"type":"setProtocolVersion","version":"v2_0"}"#, None),
            (r#"{"type":"setProtocolVersion"}"#, None),
            (r#"{"type":"setPeerStatus","roles":[]}"#, status(&[], "null", None)),
            (
                r#"{"type":"setPeerStatus","roles":["listener","producer","listener"],"meta":{"a": 1},"peerId":"p"}"#,
                status(&[Role::Listener, Role::Producer, Role::Listener], r#"{"a": 1}"#, Some("p")),
            ),
            (
                r#"{"type":"setPeerStatus","roles":["c\u006fnsumer"],"meta":7,"peerId":null}"#,
                status(&[Role::Consumer], "7", None),
            ),
            (r#"{"type":"setPeerStatus"}"#, None),
            (r#"{"type":"setPeerStatus","roles":null}"#, None),
            (r#"{"type":"setPeerStatus","roles":"producer"}"#, None),
            (r#"{"type":"setPeerStatus","roles":["producer","admin"]}"#, None),
            (r#"{"type":"setPeerStatus","roles":["admin","producer"]}"#, None),
            (r#"{"type":"setPeerStatus","roles":[7]}"#, None),
            (r#"{"type":"setPeerStatus","roles":[],"peerId":7}"#, None),
            (r#"{"type":"setPeerStatus","roles":[],"meta":"\ud800"}"#, None),
            (r#"{"type":"setPeerStatus","roles":[],"meta":[1e400]}"#, None),
            (&seventeen_roles, None),
            (r#"{"type":"startSession","peerId":"b"}"#, start("null")),
            (r#"{"type":"startSession","peerId":"b","offer":null}"#, start("null")),
            (r#"{"type":"startSession","peerId":"b","offer":"v=0\r\n"}"#, start(r#""v=0\r\n""#)),
            (r#"{"type":"startSession","peerId":"b","offer":""}"#, None),
            (r#"{"type":"startSession","peerId":"b","offer":"\u0000"}"#, None),
            (r#"{"type":"startSession","peerId":"b","offer":"\udc00"}"#, None),
            (r#"{"type":"startSession","peerId":"b","offer":{}}"#, None),
            (r#"{"type":"startSession","peerId":7}"#, None),
            (r#"{"type":"startSession"}"#, None),
            (r#"{"type":"endSession","sessionId":"s","error":7}"#, end("null", false)),
            (r#"{"type":"endSessionV1_1","sessionId":"s"}"#, end("null", true)),
            (r#"{"type":"endSessionV1_1","sessionId":"s","error":"no"}"#, end(r#""no""#, true)),
            (r#"{"type":"endSessionV1_1","sessionId":"s","error":7}"#, None),
            (r#"{"type":"endSession"}"#, None),
            (
                r#"{"type":"peer","sessionId":"s","sdp":{"x":1,"sdp":"o","type":"offer"}}"#,
                peer(Content::Offer(r#""o""#)),
            ),
            (
                r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer","sdp":"a\n"}}"#,
                peer(Content::Answer(r#""a\n""#)),
            ),
            (r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer","sdp":""}}"#, None),
            (r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer","sdp":"a\u0000"}}"#, None),
            (r#"{"type":"peer","sessionId":"s","sdp":{"type":"pranswer","sdp":"a"}}"#, None),
            (r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer","sdp":null}}"#, None),
            (r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer"}}"#, None),
            (r#"{"type":"peer","sessionId":"s","sdp":"v=0"}"#, None),
            (
                r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMid":"0","sdpMLineIndex":4294967295}}"#,
                peer(candidate(r#""c""#, u32::MAX)),
            ),
            (
                r#"{"type":"peer","sessionId":"s","ice":{"candidate":"","sdpMLineIndex":0}}"#,
                peer(candidate(r#""""#, 0)),
            ),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":4294967296}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":-0}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":1.0}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":"1"}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c"}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":{"candidate":null,"sdpMLineIndex":0}}"#, None),
            (r#"{"type":"peer","sessionId":"s","ice":null}"#, None),
            (
                r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":0},"sdp":{"type":"offer","sdp":"o"}}"#,
                None,
            ),
            (r#"{"type":"peer","sessionId":"s"}"#, None),
            (r#"{"type":"newPeer"}"#, None),
            (r#"{"type":"welcome","peerId":"x"}"#, None),
            (r#"{"type":7}"#, None),
            ("{}", None),
            ("[]", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn every_message_has_a_name_of_the_list() {
        let texts = [
            r#"{"type":"setProtocolVersion","version":"v1_1"}"#,
            r#"{"type":"setPeerStatus","roles":[]}"#,
            r#"{"type":"list"}"#,
            r#"{"type":"listConsumers"}"#,
            r#"{"type":"startSession","peerId":"b"}"#,
            r#"{"type":"endSession","sessionId":"s"}"#,
            r#"{"type":"endSessionV1_1","sessionId":"s"}"#,
            r#"{"type":"peer","sessionId":"s","sdp":{"type":"offer","sdp":"o"}}"#,
        ];
        for (text, name) in texts.iter().zip(NAMES) {
            assert_eq!(parse(text).unwrap().name(), name, "{text}");
        }
    }

    #[test]
    fn messages_of_the_server_are_json() {
        let quote = "a \"b\"";
        for (message, expected) in [
            (welcome(quote), r#"{"type":"welcome","peerId":"a \"b\""}"#),
            (
                peer_status_changed(quote, &[Role::Listener, Role::Producer], "7"),
                r#"{"type":"peerStatusChanged","roles":["listener","producer"],"meta":7,"peerId":"a \"b\""}"#,
            ),
            (
                peer_status_changed("p", &[], "null"),
                r#"{"type":"peerStatusChanged","roles":[],"meta":null,"peerId":"p"}"#,
            ),
            (list_entry(quote, "{}"), r#"{"id":"a \"b\"","meta":{}}"#),
            (session_started(quote, "s"), r#"{"type":"sessionStarted","peerId":"a \"b\"","sessionId":"s"}"#),
            (
                start_session(quote, "s", "null"),
                r#"{"type":"startSession","peerId":"a \"b\"","sessionId":"s","offer":null}"#,
            ),
            (end_session(Version::V1_0, "s", r#""no""#), r#"{"type":"endSession","sessionId":"s"}"#),
            (
                end_session(Version::V1_1, "s", r#""no""#),
                r#"{"type":"endSessionV1_1","sessionId":"s","error":"no"}"#,
            ),
            (
                peer("s", &Content::Offer(r#""o""#)),
                r#"{"type":"peer","sessionId":"s","sdp":{"type":"offer","sdp":"o"}}"#,
            ),
            (
                peer("s", &Content::Answer(r#""a""#)),
                r#"{"type":"peer","sessionId":"s","sdp":{"type":"answer","sdp":"a"}}"#,
            ),
            (
                peer("s", &Content::Candidate { candidate: r#""c""#, sdp_m_line_index: 1 }),
                r#"{"type":"peer","sessionId":"s","ice":{"candidate":"c","sdpMLineIndex":1}}"#,
            ),
            (error(quote), r#"{"type":"error","details":"a \"b\""}"#),
        ] {
            assert_eq!(message, expected);
        }
    }
}
