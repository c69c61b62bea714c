//! The messages of the protocol: what clients send ([`ClientMessage`]) and what the server sends ([`ServerMessage`]).
//!
//! A message borrows from the received text. `sdp` and `candidate` keep the JSON text that the sender wrote;
//! they are checked for syntax and never interpreted. `PROTOCOL.md` is the specification.

use std::borrow::Cow;

use crate::id;
use crate::json;
use crate::limits::CANDIDATES_MAX;
use crate::named_enum::named_enum;

mod server_message;

pub use server_message::ServerMessage;

/// A well-formed message of a client.
#[derive(Debug)]
pub enum ClientMessage<'a> {
    /// Asks for a reply. The sender needs no id.
    Ping {
        /// Whether the reply should have the ICE servers.
        wants_ice_servers: bool,
    },
    /// A message of a peer with an id.
    Signaling(SignalingMessage<'a>),
}

/// A well-formed message that takes part in signaling.
#[derive(Debug)]
pub struct SignalingMessage<'a> {
    /// The id of the sender.
    pub id: Cow<'a, str>,
    /// The `target_id`, if there is one.
    pub target: Option<Cow<'a, str>>,
    /// The type and its fields.
    pub body: Body<'a>,
}

/// The type of a message and its fields. An SDP is a JSON text.
#[derive(Debug)]
pub enum Body<'a> {
    /// Enter the pairing flow.
    Connect,
    /// An SDP offer, to the target, the partner or the room.
    Offer(&'a str),
    /// An SDP answer.
    Answer(&'a str),
    /// ICE candidates.
    Candidates(Candidates<'a>),
    /// Join the mesh.
    Join,
    /// Leave the pairing flow or the mesh, and stay connected.
    Leave,
}

/// One or several candidates, each a JSON text.
///
/// A single candidate, the most frequent message, needs no allocation.
#[derive(Debug)]
pub enum Candidates<'a> {
    /// The field `candidate`.
    One(&'a str),
    /// The field `candidates`: 1 to [`CANDIDATES_MAX`] elements.
    Many(Vec<&'a str>),
}

impl<'a> Candidates<'a> {
    /// Returns the number of candidates, at least one.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one candidate")]
    pub fn len(&self) -> usize {
        match self {
            Candidates::One(_) => 1,
            Candidates::Many(texts) => texts.len(),
        }
    }

    /// Iterates over the JSON texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        let texts = match self {
            Candidates::One(text) => std::slice::from_ref(text),
            Candidates::Many(texts) => texts.as_slice(),
        };
        texts.iter().copied()
    }
}

named_enum! {
    /// The type of a message.
    pub enum Kind {
        /// [`Body::Connect`]
        Connect = "connect",
        /// [`Body::Offer`]
        Offer = "offer",
        /// [`Body::Answer`]
        Answer = "answer",
        /// [`Body::Candidates`]
        CandidateAdd = "candidateAdd",
        /// [`Body::Join`]
        Join = "join",
        /// [`Body::Leave`]
        Leave = "leave",
        /// [`ClientMessage::Ping`]
        Ping = "ping",
    }
}

impl Body<'_> {
    /// Returns the type.
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

named_enum! {
    /// The stable code of an error reply, for programs.
    pub enum Code {
        /// The message is not a JSON object.
        BadJson = "bad_json",
        /// A field is missing, or has the wrong type or length.
        BadMessage = "bad_message",
        /// The type is not one of [`Kind`].
        UnknownType = "unknown_type",
        /// The connection or its token has another id.
        IdMismatch = "id_mismatch",
        /// A live peer has the id.
        IdTaken = "id_taken",
        /// No other peer of the room has the target id.
        UnknownPeer = "unknown_peer",
        /// The outbound queue of the target is full.
        PeerBusy = "peer_busy",
        /// Another peer is the offerer.
        NotOfferer = "not_offerer",
        /// The offer was already answered or replaced.
        OfferTaken = "offer_taken",
        /// The mesh is full.
        RoomFull = "room_full",
        /// More would be stored than the limits allow.
        TooMany = "too_many",
        /// The message was dropped by the rate limit.
        RateLimited = "rate_limited",
    }
}

/// Why a message is rejected: a code for programs, a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// Stable code for programs.
    pub code: Code,
    /// Text for people.
    pub message: &'static str,
}

/// Parses one message of a client.
///
/// # Errors
/// The error reply, and the `target_id` of the message if that is valid.
pub fn parse(text: &str) -> Result<ClientMessage<'_>, (ErrorReply, Option<Cow<'_, str>>)> {
    let field_index = |key: &str| match key {
        "type" => Some(0),
        "id" => Some(1),
        "target_id" => Some(2),
        "sdp" => Some(3),
        "candidate" => Some(4),
        "candidates" => Some(5),
        "iceServers" => Some(6),
        _ => None,
    };
    let Some(fields) = json::parse_fields(text, field_index) else {
        return Err((ErrorReply { code: Code::BadJson, message: "expected a JSON object" }, None));
    };
    let [kind, id, target_id, sdp, candidate, candidates, ice_servers] = fields;
    let fields = Fields { kind, id, target_id, sdp, candidate, candidates, ice_servers };
    fields.message().map_err(|error| (error, fields.target_id().ok().flatten()))
}

/// The known fields of a message, each as the JSON text of its value.
struct Fields<'a> {
    kind: Option<&'a str>,
    id: Option<&'a str>,
    target_id: Option<&'a str>,
    sdp: Option<&'a str>,
    candidate: Option<&'a str>,
    candidates: Option<&'a str>,
    ice_servers: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn message(&self) -> Result<ClientMessage<'a>, ErrorReply> {
        let sdp = self.sdp.unwrap_or("null");
        let body = match self.kind()? {
            Kind::Ping => return Ok(ClientMessage::Ping { wants_ice_servers: self.wants_ice_servers()? }),
            Kind::Connect => Body::Connect,
            Kind::Offer => Body::Offer(sdp),
            Kind::Answer => Body::Answer(sdp),
            Kind::CandidateAdd => Body::Candidates(self.candidates()?),
            Kind::Join => Body::Join,
            Kind::Leave => Body::Leave,
        };
        let id = self.id()?;
        let target = match (self.target_id(), &body) {
            (Ok(target), _) => target,
            // These types ignore an invalid `target_id`.
            (Err(_), Body::Connect | Body::Join | Body::Leave) => None,
            (Err(error), _) => return Err(error),
        };
        Ok(ClientMessage::Signaling(SignalingMessage { id, target, body }))
    }

    fn kind(&self) -> Result<Kind, ErrorReply> {
        let raw = self.kind.ok_or(bad_message("type: expected a string, got nothing"))?;
        let name = json::parse_string(raw).ok_or(bad_message("type: expected a string"))?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or(ErrorReply {
            code: Code::UnknownType,
            message: "type: expected connect, offer, answer, candidateAdd, join, leave or ping",
        })
    }

    fn id(&self) -> Result<Cow<'a, str>, ErrorReply> {
        let raw = self.id.ok_or(bad_message("id: expected a string, got nothing"))?;
        match json::parse_string(raw) {
            Some(id) if id::is_valid(&id) => Ok(id),
            _ => Err(bad_message(
                "id: expected a string of 1 to 128 bytes of UTF-8 without control characters",
            )),
        }
    }

    /// Returns the target id. An empty string is a missing one.
    fn target_id(&self) -> Result<Option<Cow<'a, str>>, ErrorReply> {
        let Some(raw) = self.target_id else {
            return Ok(None);
        };
        match json::parse_string(raw) {
            Some(id) if id.is_empty() => Ok(None),
            Some(id) if id::is_valid(&id) => Ok(Some(id)),
            _ => Err(bad_message(
                "target_id: expected a string of at most 128 bytes of UTF-8 without control characters",
            )),
        }
    }

    fn candidates(&self) -> Result<Candidates<'a>, ErrorReply> {
        let Some(raw) = self.candidates else {
            return Ok(Candidates::One(self.candidate.unwrap_or("null")));
        };
        let mut texts = Vec::new();
        // Stops after one element too many: the elements of a message of 16 MB could take 256 MB.
        let parsed = json::parse_array(raw, |element| {
            texts.push(element);
            texts.len() <= CANDIDATES_MAX
        });
        if parsed.is_none() || !(1..=CANDIDATES_MAX).contains(&texts.len()) {
            return Err(bad_message("candidates: expected an array of 1 to 64 elements"));
        }
        Ok(Candidates::Many(texts))
    }

    fn wants_ice_servers(&self) -> Result<bool, ErrorReply> {
        match self.ice_servers {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(bad_message("iceServers: expected true or false")),
        }
    }
}

fn bad_message(message: &'static str) -> ErrorReply {
    ErrorReply { code: Code::BadMessage, message }
}

#[cfg(test)]
mod tests;
