//! Who is a connection, and conflicts between connections that use the same id.
//!
//! The upgrade names the id. If another connection holds it, the server decides whether both are the same client: without
//! required tokens, a client repeats the `token` that it chose when it reconnects; with them, the token may name the id. The
//! same client takes the id over at once. For any other client, the holder is probed, as in noroshi's own protocol: if the
//! holder shows life, all claimants get `ID-TAKEN`; otherwise the first of them gets the id. A claimant is not read while it
//! waits, so that TCP holds back what it sends.

use std::hash::BuildHasher;
use std::time::Duration;

use super::{PeerJs, Slot};
use crate::http::query::Query;
use crate::http::token::TokenError;
use crate::limits::{ID_BYTES_MAX, ROOM_TEXT_BYTES_MAX};

/// What the query of an upgrade says.
pub struct Identity {
    pub key: String,
    pub id: String,
    pub proof: Proof,
}

/// Why a connection may use an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// No tokens are required. The client chose a token with this hash, and repeats it when it reconnects.
    ChosenToken(u64),
    /// Its token is valid for this id and no other.
    TokenForId,
    /// Its token is valid for any id.
    TokenForAnyId,
}

impl Proof {
    /// Returns whether a connection takes over the id from a holder: both are the same client.
    pub fn takes_over(self, holder: Proof) -> bool {
        match self {
            Proof::ChosenToken(_) => self == holder,
            Proof::TokenForId => true,
            Proof::TokenForAnyId => false,
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A parameter is missing or not valid, as this sentence says.
    Parameters(&'static str),
    Token(TokenError),
}

/// The sentence of the original server.
const MISSING: &str = "No id, token, or key supplied to websocket server";
const KEY_EXPECTED: &str = "key: expected 1 to 256 bytes of UTF-8";
const ID_EXPECTED: &str = "id: expected 1 to 128 bytes of UTF-8";
const TOKEN_EXPECTED: &str = "token: expected UTF-8";
const _: () = assert!(ROOM_TEXT_BYTES_MAX == 256 && ID_BYTES_MAX == 128);

impl PeerJs {
    /// Reads the query of an upgrade, and verifies the token if tokens are required.
    pub(super) fn identify(&self, query: &Query, unix_time: Duration) -> Result<Identity, Refusal> {
        let key = parameter(query, "key", KEY_EXPECTED)?;
        let id = parameter(query, "id", ID_EXPECTED)?;
        let token = parameter(query, "token", TOKEN_EXPECTED)?;
        if key.is_empty() || id.is_empty() || (token.is_empty() && self.token_secrets.is_none()) {
            return Err(Refusal::Parameters(MISSING));
        }
        if key.len() > ROOM_TEXT_BYTES_MAX {
            return Err(Refusal::Parameters(KEY_EXPECTED));
        }
        if id.len() > ID_BYTES_MAX {
            return Err(Refusal::Parameters(ID_EXPECTED));
        }
        let proof = match &self.token_secrets {
            None => Proof::ChosenToken(self.hasher.hash_one(token)),
            Some(secrets) => {
                let claims = secrets.admit(&token, &key, &id, unix_time).map_err(Refusal::Token)?;
                match claims.id {
                    Some(_) => Proof::TokenForId,
                    None => Proof::TokenForAnyId,
                }
            }
        };
        Ok(Identity { key, id, proof })
    }

    /// Returns the peer with this id in a room.
    pub(super) fn find_peer(&self, room: u32, id: &str) -> Option<Slot> {
        let has_id = |slot: &Slot| {
            let peer = &self.peers[*slot];
            peer.room == room && *peer.id == *id
        };
        self.peers_by_id.find(self.hasher.hash_one((room, id)), has_id).copied()
    }

    /// Adds a registered peer to the table of ids.
    pub(super) fn insert_id(&mut self, slot: Slot) {
        let PeerJs { peers_by_id, peers, hasher, .. } = self;
        let hash = |slot: &Slot| hasher.hash_one((peers[*slot].room, &*peers[*slot].id));
        peers_by_id.insert_unique(hash(&slot), slot, hash);
    }

    /// Removes a registered peer from the table of ids.
    pub(super) fn remove_id(&mut self, slot: Slot) {
        let peer = &self.peers[slot];
        let hash = self.hasher.hash_one((peer.room, &*peer.id));
        let entry = self.peers_by_id.find_entry(hash, |entry| *entry == slot);
        entry.expect("a registered peer is in the table").remove();
    }
}

/// Returns the value of a parameter, of which the last one counts. Empty: it is missing.
fn parameter(query: &Query, name: &str, expected: &'static str) -> Result<String, Refusal> {
    match query.values(name).last() {
        None => Ok(String::new()),
        Some(value) => value.map_err(|_| Refusal::Parameters(expected)),
    }
}
