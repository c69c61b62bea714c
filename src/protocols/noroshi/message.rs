//! The words on the wire: what a client may say ([`Request`]), what the server says ([`Reply`]).
//!
//! Everything read is borrowed from the message; `sdp` and `candidate` are kept as the JSON text that the sender
//! wrote and are never looked into. The protocol is in the README.

use std::borrow::Cow;

use crate::config::CANDIDATES_MAX;
use crate::id;
use crate::json;
use crate::named_enum::named_enum;

mod reply;

pub use reply::Reply;

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

named_enum! {
    /// A type of message, for counting.
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

named_enum! {
    /// The stable code of an error, for programs.
    pub enum Code {
        /// Not a JSON object.
        BadJson = "bad_json",
        /// A field is missing, or has the wrong type or length.
        BadMessage = "bad_message",
        /// The type is none of ours.
        UnknownType = "unknown_type",
        /// The connection speaks as another id.
        IdMismatch = "id_mismatch",
        /// The id belongs to a peer that is alive.
        IdTaken = "id_taken",
        /// The target is nobody else in this room.
        UnknownPeer = "unknown_peer",
        /// The target's queue is full.
        PeerBusy = "peer_busy",
        /// Another peer is the offerer.
        NotOfferer = "not_offerer",
        /// The offer was taken or replaced.
        OfferTaken = "offer_taken",
        /// The mesh is full.
        RoomFull = "room_full",
        /// Too many candidates would be stored.
        TooMany = "too_many",
        /// The message was dropped, because there were too many.
        RateLimited = "rate_limited",
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

/// Reads one message of a client.
///
/// # Errors
/// What is wrong with it, and the peer it names, if that much could be read.
pub fn parse(text: &str) -> Result<Request<'_>, (Refusal, Option<Cow<'_, str>>)> {
    let place = |key: &str| match key {
        "type" => Some(0),
        "id" => Some(1),
        "target_id" => Some(2),
        "sdp" => Some(3),
        "candidate" => Some(4),
        "candidates" => Some(5),
        _ => None,
    };
    let Some([kind, id, target_id, sdp, candidate, candidates]) = json::parse_fields(text, place) else {
        return Err((Refusal { code: Code::BadJson, message: "the message is not a JSON object" }, None));
    };
    let fields = Fields { kind, id, target_id, sdp, candidate, candidates };
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

/// The fields of a message that mean something, as they were written.
struct Fields<'a> {
    kind: Option<&'a str>,
    id: Option<&'a str>,
    target_id: Option<&'a str>,
    sdp: Option<&'a str>,
    candidate: Option<&'a str>,
    candidates: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// The sender and what it says.
    fn request(&self) -> Result<(Cow<'a, str>, Body<'a>), Refusal> {
        let bad = |message| Refusal { code: Code::BadMessage, message };
        let kind = self.kind.ok_or(bad("type is missing"))?;
        let kind = json::parse_string(kind).ok_or(bad("type is not a string"))?;
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            return Err(Refusal {
                code: Code::UnknownType,
                message: "the type is none that this server knows",
            });
        };
        let id = self.id.ok_or(bad("id is missing"))?;
        let id = json::parse_string(id)
            .filter(|id| id::is_valid(id))
            .ok_or(bad("id is not a string of 1 to 128 bytes of UTF-8 without control characters"))?;
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
        match json::parse_string(raw) {
            Some(id) if id.is_empty() => Ok(None),
            Some(id) if id::is_valid(&id) => Ok(Some(id)),
            _ => Err(Refusal {
                code: Code::BadMessage,
                message: "target_id is not a string of at most 128 bytes of UTF-8 without control characters",
            }),
        }
    }

    fn candidates(&self) -> Result<Candidates<'a>, Refusal> {
        let Some(raw) = self.candidates else {
            return Ok(Candidates::One(self.candidate.unwrap_or("null")));
        };
        let mut many = Vec::new();
        // One too many is enough to know: 16 MB of zeros would take 256 MB.
        let read = json::parse_array(raw, |element| {
            many.push(element);
            many.len() <= CANDIDATES_MAX
        });
        match read {
            Some(()) if (1..=CANDIDATES_MAX).contains(&many.len()) => Ok(Candidates::Many(many)),
            _ => Err(Refusal { code: Code::BadMessage, message: "candidates is not an array of 1 to 64" }),
        }
    }
}

#[cfg(test)]
mod tests;
