//! What the hub knows of a peer. Two questions: who is it, and what is it doing?

use super::Slot;
use crate::memory_budget::Reservation;
use crate::protocols::list::List;
use crate::token::Claims;

pub struct Peer {
    /// Its room.
    pub room: u32,
    /// Its last offer was refused: candidates without a target belong to that offer, and are dropped.
    pub refused: bool,
    pub who: Who,
    pub flow: Flow,
    /// Boxed, because most peers have no offer most of the time.
    pub offering: Option<Box<Offering>>,
    /// Those who claim its id: it is being probed, and any sign of life will do.
    pub claimants: Option<Box<List>>,
    /// What its token says, where one is needed.
    pub claims: Option<Box<Claims>>,
}

/// Who it is.
pub enum Who {
    /// It has no id yet.
    Nameless,
    /// It has no id yet, and was refused this one. Boxed twice, so that a peer without it is no larger.
    Refused(Box<Box<str>>),
    /// It claims an id that another peer holds, and is not read until that peer's probe ends.
    Claimant(Box<Claimant>),
    /// It has this id.
    Registered(Box<str>),
}

/// What it is doing. Whoever is not registered is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// In no flow.
    Idle,
    /// It was asked for an offer, or its offer stands.
    Offerer,
    /// In the line.
    Waiting,
    /// It was handed an offer, which may have been taken or replaced since.
    Handed(Hold),
    /// It has a partner.
    Paired(Slot),
    /// In the mesh.
    Joined,
}

/// Who holds whose offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub owner: Slot,
    /// The number of the offer.
    pub offer: u32,
}

#[derive(Default)]
pub struct Offering {
    /// The offer that stands.
    pub offer: Option<Offer>,
    /// Its offers so far. Nothing holds one of them when this is gone.
    pub offers: u32,
    /// Those who were handed an offer of this peer, standing or not, and have not answered it.
    pub holders: List,
    /// Candidates for the offer that stands or is to come, joined by `|`.
    pub candidates: String,
    /// How many they are.
    pub candidate_count: usize,
    /// The memory of the candidates.
    pub candidates_memory: Option<Reservation>,
}

pub struct Offer {
    /// An offer is known by itself, and not by its owner.
    pub number: u32,
    /// The message that hands it out.
    pub text: String,
    /// How many of the holders hold this one.
    pub held: usize,
    /// Whether anybody was ever handed it.
    pub handed: bool,
    /// The memory of the text.
    #[expect(dead_code, reason = "it is released when it is dropped")]
    pub memory: Reservation,
}

pub struct Claimant {
    /// The peer that holds the id.
    pub holder: Slot,
    /// The `target_id` in its message, which an error names.
    pub target: Option<Box<str>>,
    /// The message that claims the id. It is handled when the claim succeeds.
    pub first: Box<str>,
    /// The memory of the message.
    #[expect(dead_code, reason = "it is released when it is dropped")]
    pub memory: Reservation,
}

impl Peer {
    pub fn new(room: u32, claims: Option<&Claims>) -> Peer {
        Peer {
            room,
            refused: false,
            who: Who::Nameless,
            flow: Flow::Idle,
            offering: None,
            claimants: None,
            claims: claims.cloned().map(Box::new),
        }
    }

    /// Its id, if it has one.
    pub fn id(&self) -> Option<&str> {
        match &self.who {
            Who::Registered(id) => Some(id),
            _ => None,
        }
    }

    /// What it is doing, in a word of the README's.
    pub fn state(&self) -> &'static str {
        match (&self.who, self.flow) {
            (Who::Nameless | Who::Refused(_), _) => "nameless",
            (Who::Claimant(_), _) => "claimant",
            (_, Flow::Idle) => "idle",
            (_, Flow::Offerer) => "offerer",
            (_, Flow::Waiting) => "waiting",
            (_, Flow::Handed(_)) => "handed",
            (_, Flow::Paired(_)) => "paired",
            (_, Flow::Joined) => "joined",
        }
    }

    /// Whether its token, where one is needed, is for this id, or for any.
    pub fn may_speak_as(&self, id: &str) -> bool {
        self.claims.as_ref().and_then(|claims| claims.id.as_deref()).is_none_or(|own| own == id)
    }

    /// Whether its token is for one id, which then is its own, whoever else may come.
    pub fn owns_its_id(&self) -> bool {
        self.claims.as_ref().is_some_and(|claims| claims.id.is_some())
    }

    /// Its offer that stands.
    pub fn offer(&self) -> Option<&Offer> {
        self.offering.as_ref()?.offer.as_ref()
    }

    /// How many candidates are stored, and their bytes without the separators.
    pub fn stored(&self) -> (usize, usize) {
        self.offering.as_ref().map_or((0, 0), |offering| {
            let separators = offering.candidate_count.saturating_sub(1);
            (offering.candidate_count, offering.candidates.len() - separators)
        })
    }

    pub fn drop_candidates(&mut self) {
        if let Some(offering) = &mut self.offering {
            offering.candidates = String::new();
            offering.candidate_count = 0;
            offering.candidates_memory = None;
            self.tidy();
        }
    }

    /// Most peers have nothing on offer, and shall not pay for it.
    pub fn tidy(&mut self) {
        self.offering.take_if(|offering| {
            offering.offer.is_none() && offering.holders.is_empty() && offering.candidates.is_empty()
        });
    }
}
