//! The state of one peer: its registration (which id it has) and its flow (what it is doing).

use super::Slot;
use crate::http::token::Claims;
use crate::memory_budget::Reservation;
use crate::protocol::Conn;
use crate::protocols::list::List;

/// Each connection has one. This fails to compile if [`Peer`] grows.
const _: () = assert!(size_of::<Option<(Conn, Peer)>>() <= 72);

pub struct Peer {
    /// Index of its room.
    pub room: u32,
    pub registration: Registration,
    pub flow: Flow,
    /// Boxed, because most peers have no offer most of the time.
    pub offer_state: Option<Box<OfferState>>,
    /// The connections that claim the id of this peer, oldest first. While it is set, this peer is being
    /// probed.
    pub claimants: Option<Box<List>>,
    /// The claims of its token, if the server requires tokens.
    pub token_claims: Option<Box<Claims>>,
}

/// Which id a connection has.
pub enum Registration {
    /// It has no id yet.
    Unregistered,
    /// It has no id yet, and its claim of this one was rejected.
    IdRejected(Box<str>),
    /// It claims an id that another peer holds, and is not read until the probe of that peer ends.
    Claimant(Box<Claimant>),
    /// It has an id.
    Registered {
        id: Box<str>,
        /// Whether its last offer was rejected. Candidates without a target belong to that offer and are
        /// discarded. This flag is here because it fits beside the discriminant, and would take 8 bytes in
        /// [`Peer`].
        is_offer_rejected: bool,
    },
}

/// The activity of a peer. A connection without an id is always [`Flow::Idle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It takes part in neither pairing nor the mesh.
    Idle,
    /// It is the offerer of its room: it was asked for an offer, or its offer is the current one.
    Offerer,
    /// It is in the queue of its room.
    Queued,
    /// It was sent an offer and has not answered. The offer may be outdated.
    HoldingOffer(DeliveredOffer),
    /// It is paired with this peer.
    Paired(Slot),
    /// It is in the mesh of its room.
    Joined,
}

/// Identifies an offer that was delivered to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveredOffer {
    /// The peer that made the offer.
    pub offerer: Slot,
    /// [`Offer::number`].
    pub number: u32,
}

/// The offer of a peer, its holders, and stored candidates.
#[derive(Default)]
pub struct OfferState {
    /// The offer that the room delivers to the next peers.
    pub current: Option<Offer>,
    /// The number of the latest offer. It starts again from 0 with a new [`OfferState`], which has no
    /// holders.
    pub last_number: u32,
    /// Peers that hold an offer of this peer, current or outdated, and have not answered it.
    pub all_holders: List,
    /// Candidates for the current offer or the next one, joined by `|`.
    pub candidates: String,
    pub candidate_count: usize,
    /// Memory reserved for `candidates`.
    pub candidates_memory: Option<Reservation>,
}

/// An offer to the whole room.
pub struct Offer {
    /// Tells the offers of one peer apart.
    pub number: u32,
    /// The complete message to deliver.
    pub text: String,
    /// Number of peers that hold this offer and have not answered it.
    pub current_holders: usize,
    /// Whether it was ever delivered to a peer.
    pub is_delivered: bool,
    /// Memory reserved for `text`.
    #[expect(dead_code, reason = "dropping it releases the memory")]
    pub memory: Reservation,
}

/// A pending claim of an id.
pub struct Claimant {
    /// The peer that holds the id.
    pub holder: Slot,
    /// The `target_id` of the claiming message, which an error reply repeats.
    pub target: Option<Box<str>>,
    /// The claiming message. It is processed when the claim succeeds.
    pub message: Box<str>,
    /// Memory reserved for this claim.
    #[expect(dead_code, reason = "dropping it releases the memory")]
    pub memory: Reservation,
}

impl Peer {
    pub fn new(room: u32, token_claims: Option<&Claims>) -> Peer {
        Peer {
            room,
            registration: Registration::Unregistered,
            flow: Flow::Idle,
            offer_state: None,
            claimants: None,
            token_claims: token_claims.cloned().map(Box::new),
        }
    }

    /// Returns the id of a registered peer.
    pub fn id(&self) -> Option<&str> {
        match &self.registration {
            Registration::Registered { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Returns whether its last offer was rejected.
    pub fn is_offer_rejected(&self) -> bool {
        matches!(self.registration, Registration::Registered { is_offer_rejected: true, .. })
    }

    /// Records whether the last offer of a registered peer was rejected.
    pub fn set_offer_rejected(&mut self, is_rejected: bool) {
        if let Registration::Registered { is_offer_rejected, .. } = &mut self.registration {
            *is_offer_rejected = is_rejected;
        }
    }

    /// Returns the name of the state for `/rooms`.
    pub fn state(&self) -> &'static str {
        match (&self.registration, self.flow) {
            (Registration::Unregistered | Registration::IdRejected(_), _) => "nameless",
            (Registration::Claimant(_), _) => "claimant",
            (_, Flow::Idle) => "idle",
            (_, Flow::Offerer) => "offerer",
            (_, Flow::Queued) => "waiting",
            (_, Flow::HoldingOffer(_)) => "handed",
            (_, Flow::Paired(_)) => "paired",
            (_, Flow::Joined) => "joined",
        }
    }

    /// Checks whether the token, if one is required, allows this id.
    pub fn may_use_id(&self, id: &str) -> bool {
        let token_id = self.token_claims.as_ref().and_then(|claims| claims.id.as_deref());
        token_id.is_none_or(|token_id| token_id == id)
    }

    /// Checks whether the token is for one id.
    ///
    /// Other connections cannot claim the id of this peer then, and this peer takes it over from another
    /// connection.
    pub fn has_token_for_id(&self) -> bool {
        self.token_claims.as_ref().is_some_and(|claims| claims.id.is_some())
    }

    pub fn current_offer(&self) -> Option<&Offer> {
        self.offer_state.as_ref()?.current.as_ref()
    }

    /// Returns the number of stored candidates and their bytes without separators.
    pub fn stored_candidates(&self) -> (usize, usize) {
        let Some(state) = &self.offer_state else {
            return (0, 0);
        };
        let separators = state.candidate_count.saturating_sub(1);
        (state.candidate_count, state.candidates.len() - separators)
    }

    pub fn discard_candidates(&mut self) {
        if let Some(state) = &mut self.offer_state {
            state.candidates = String::new();
            state.candidate_count = 0;
            state.candidates_memory = None;
            self.free_unused_offer_state();
        }
    }

    /// Frees the offer state if it is empty.
    ///
    /// Idle peers, which are most, use no memory for it then.
    pub fn free_unused_offer_state(&mut self) {
        let is_unused = self.offer_state.as_ref().is_some_and(|state| {
            state.current.is_none() && state.all_holders.is_empty() && state.candidates.is_empty()
        });
        if is_unused {
            self.offer_state = None;
        }
    }
}
