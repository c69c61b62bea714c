//! Prices: the credits that a message costs for what the server says because of it.
//!
//! A message is paid for by its size before the hub sees it. Some messages make the server tell many peers something, or
//! answer with a long text; their senders pay for that, too, before anything changes. See "Limits" in the README.

use super::ids::Identity;
use super::peer::Flow;
use super::{Noroshi, Slot};
use crate::config::ID_BYTES_MAX;
use crate::protocols::noroshi::message::Body;
use crate::rate_limit::{credits_for_bytes, credits_for_deliveries};

/// Bytes of `{"type":"peerLeft","id":"…"}` and its like around the id.
const NOTICE_BYTES: usize = 64;

impl Noroshi {
    /// Returns the credits that a message costs in all; `bytes` is its size.
    pub(super) fn price(
        &self,
        slot: Slot,
        identity: Identity,
        target: Option<&str>,
        body: &Body,
        bytes: usize,
    ) -> usize {
        let incoming = match body {
            Body::Candidates(candidates) => credits_for_bytes(bytes).max(candidates.len()),
            _ => credits_for_bytes(bytes),
        };
        let outgoing = match identity {
            Identity::Own | Identity::New => self.consequences(slot, target, body),
            Identity::TakesOver(holder) => {
                let consequences = match body {
                    Body::Join => self.price_of_join(slot, Some(holder)),
                    _ => self.consequences(slot, target, body),
                };
                self.departure(holder) + consequences
            }
            // A claim that succeeds is charged for the consequences of its message then.
            Identity::Claims(_) | Identity::Taken | Identity::Foreign | Identity::RefusedBefore => 0,
        };
        incoming + outgoing
    }

    /// Returns the credits for what a message of a registered peer makes the server say.
    pub(super) fn consequences(&self, slot: Slot, target: Option<&str>, body: &Body) -> usize {
        match body {
            Body::Connect => self.price_of_connect(slot),
            Body::Join => self.price_of_join(slot, None),
            Body::Leave => self.departure(slot),
            Body::Answer(_) => self.price_of_answer(slot, target),
            Body::Offer(_) | Body::Candidates(_) => 0,
        }
    }

    /// A peer that connects may leave a mesh, and may be handed the current offer.
    fn price_of_connect(&self, slot: Slot) -> usize {
        let peer = self.peer(slot);
        let departure = match peer.flow {
            Flow::Offerer | Flow::Waiting | Flow::Paired(_) => return 0,
            Flow::Handed(hold) if self.stands(hold) => return 0,
            Flow::Joined => self.departure(slot),
            Flow::Handed(_) | Flow::Idle => 0,
        };
        departure + self.price_of_next_offer(peer.room)
    }

    /// Returns the credits for the offer that the next peer that connects is handed.
    fn price_of_next_offer(&self, room: u32) -> usize {
        self.offer_to_next(room).map_or(0, |offer| credits_for_bytes(offer.text.len()))
    }

    /// A peer that joins is announced to all others, and told who they are. `replaced` is a peer that leaves before.
    fn price_of_join(&self, slot: Slot, replaced: Option<Slot>) -> usize {
        let peer = self.peer(slot);
        let mesh = &self.rooms[peer.room as usize].mesh;
        let is_joined = peer.flow == Flow::Joined;
        let is_place_left = replaced.is_some_and(|replaced| self.peer(replaced).flow == Flow::Joined);
        let joined = mesh.len() - usize::from(is_place_left);
        if !is_joined && joined >= self.mesh_peers_max {
            return 0;
        }
        let ids = self.links.iter(mesh).map(|other| self.id(other).len() + 3).sum::<usize>();
        let answer = credits_for_bytes(NOTICE_BYTES + ID_BYTES_MAX + ids);
        if is_joined {
            return answer;
        }
        let announcement = credits_for_deliveries(joined, NOTICE_BYTES + ID_BYTES_MAX);
        self.departure(slot) + announcement + answer
    }

    /// A peer whose answer makes a pair is told the candidates that the offerer has stored. A peer whose answer is too late
    /// connects again.
    fn price_of_answer(&self, slot: Slot, target: Option<&str>) -> usize {
        let peer = self.peer(slot);
        let offerer = match (self.target(slot, target), peer.flow) {
            (Ok(Some(named)), _) => named,
            (Ok(None), Flow::Handed(hold)) => hold.owner,
            _ => return 0,
        };
        if let Flow::Handed(hold) = peer.flow
            && hold.owner == offerer
            && !self.stands(hold)
        {
            return self.price_of_next_offer(peer.room);
        }
        let (_, bytes) = self.peer(offerer).stored();
        if bytes == 0 { 0 } else { credits_for_bytes(bytes) }
    }

    /// Returns the credits for telling all concerned that a peer has left.
    fn departure(&self, slot: Slot) -> usize {
        let peer = self.peer(slot);
        let others = match peer.flow {
            Flow::Paired(_) => 1,
            Flow::Joined => self.rooms[peer.room as usize].mesh.len() - 1,
            Flow::Idle | Flow::Offerer | Flow::Waiting | Flow::Handed(_) => 0,
        };
        let holders = peer.offering.as_ref().map_or(0, |offering| offering.holders.len());
        credits_for_deliveries(others + holders, NOTICE_BYTES + ID_BYTES_MAX)
    }
}
