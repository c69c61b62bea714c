//! Rate limit costs: the credits that a message costs beyond its size.
//!
//! The dispatcher charges each message by its size. Some messages make the server send notices to many peers,
//! or a long reply; their sender is charged for these too, before any state changes.
//! Section "Rate limit" of `scripts/deploy/README.md` has the rates.

use super::ids::IdCheck;
use super::peer::Flow;
use super::{Noroshi, Slot};
use crate::limits::ID_BYTES_MAX;
use crate::protocols::noroshi::message::Body;
use crate::rate_limit::{credits_for_bytes, credits_for_deliveries};

/// Upper bound in bytes of a notice like `{"type":"peerLeft","id":"…"}` without the id.
const NOTICE_BYTES: usize = 64;

/// Bytes that an id in a JSON array takes beyond its own: two quotes and a comma.
const ARRAY_ELEMENT_BYTES: usize = 3;

impl Noroshi {
    /// Returns the total cost of a message of `bytes` bytes, in credits.
    pub(super) fn message_cost(
        &self,
        slot: Slot,
        id_check: IdCheck,
        target: Option<&str>,
        body: &Body,
        bytes: usize,
    ) -> usize {
        let message_cost = match body {
            Body::Candidates(candidates) => credits_for_bytes(bytes).max(candidates.len()),
            _ => credits_for_bytes(bytes),
        };
        let output_cost = match id_check {
            IdCheck::Own | IdCheck::Free => self.output_cost(slot, target, body),
            IdCheck::TakeOver(holder) => {
                let output_cost = match body {
                    Body::Join => self.join_cost(slot, Some(holder)),
                    _ => self.output_cost(slot, target, body),
                };
                self.departure_cost(holder) + output_cost
            }
            // The output for a claim is charged when the claim succeeds.
            IdCheck::Claim(_) | IdCheck::Taken | IdCheck::Mismatch | IdCheck::RejectedBefore => 0,
        };
        message_cost + output_cost
    }

    /// Returns the cost of the output that a message causes.
    pub(super) fn output_cost(&self, slot: Slot, target: Option<&str>, body: &Body) -> usize {
        match body {
            Body::Connect => self.connect_cost(slot),
            Body::Join => self.join_cost(slot, None),
            Body::Leave => self.departure_cost(slot),
            Body::Answer(_) => self.answer_cost(slot, target),
            Body::Offer(_) | Body::Candidates(_) => 0,
        }
    }

    /// Returns the cost of a reply with the ICE servers.
    pub(super) fn pong_cost(&self) -> usize {
        credits_for_bytes(NOTICE_BYTES + self.ice.json_bytes_max())
    }

    /// Returns the cost of `connect`: leaving the mesh, and delivery of the current offer.
    fn connect_cost(&self, slot: Slot) -> usize {
        let peer = self.peer(slot);
        let departure_cost = match peer.flow {
            Flow::Offerer | Flow::Queued | Flow::Paired(_) => return 0,
            Flow::HoldingOffer(offer) if self.is_current(offer) => return 0,
            Flow::Joined => self.departure_cost(slot),
            Flow::HoldingOffer(_) | Flow::Idle => 0,
        };
        departure_cost + self.delivery_cost(peer.room)
    }

    /// Returns the cost of delivering an offer to the next peer.
    fn delivery_cost(&self, room: u32) -> usize {
        self.deliverable_offer(room).map_or(0, |offer| credits_for_bytes(offer.text.len()))
    }

    /// Returns the cost of `join`: notices to all others, and the list of their ids.
    ///
    /// `replaced` is a peer that leaves before, because its id is taken over.
    fn join_cost(&self, slot: Slot, replaced: Option<Slot>) -> usize {
        let peer = self.peer(slot);
        let mesh = &self.rooms[peer.room].mesh;
        let is_joined = peer.flow == Flow::Joined;
        let leaves_mesh = replaced.is_some_and(|replaced| self.peer(replaced).flow == Flow::Joined);
        let others = mesh.len() - usize::from(leaves_mesh);
        if !is_joined && others >= self.mesh_peers_max {
            return 0;
        }
        let mut id_bytes = 0;
        for other in self.list_nodes.iter(mesh) {
            id_bytes += self.id(other).len() + ARRAY_ELEMENT_BYTES;
        }
        let reply_cost = credits_for_bytes(NOTICE_BYTES + ID_BYTES_MAX + id_bytes);
        if is_joined {
            return reply_cost;
        }
        let notices_cost = credits_for_deliveries(others, NOTICE_BYTES + ID_BYTES_MAX);
        self.departure_cost(slot) + notices_cost + reply_cost
    }

    /// Returns the cost of `answer`: the stored candidates of the offerer, or another offer.
    ///
    /// The sender of an answer that pairs is sent the candidates. The sender of an answer to an outdated
    /// offer connects again and may be sent the current one.
    fn answer_cost(&self, slot: Slot, target: Option<&str>) -> usize {
        let peer = self.peer(slot);
        let offerer = match (self.resolve_target(slot, target), peer.flow) {
            (Ok(Some(target)), _) => target,
            (Ok(None), Flow::HoldingOffer(offer)) => offer.offerer,
            _ => return 0,
        };
        if let Flow::HoldingOffer(offer) = peer.flow
            && offer.offerer == offerer
            && !self.is_current(offer)
        {
            return self.delivery_cost(peer.room);
        }
        let (_, candidate_bytes) = self.peer(offerer).stored_candidates();
        if candidate_bytes == 0 { 0 } else { credits_for_bytes(candidate_bytes) }
    }

    /// Returns the cost of the departure of a peer: the `peerLeft` notices, and the offer of another peer that holders of
    /// its own offers are sent next.
    fn departure_cost(&self, slot: Slot) -> usize {
        let peer = self.peer(slot);
        let others = match peer.flow {
            Flow::Paired(_) => 1,
            Flow::Joined => self.rooms[peer.room].mesh.len() - 1,
            Flow::Idle | Flow::Offerer | Flow::Queued | Flow::HoldingOffer(_) => 0,
        };
        let holders = peer.offer_state.as_ref().map_or(0, |state| state.all_holders.len());
        let notices_cost = credits_for_deliveries(others + holders, NOTICE_BYTES + ID_BYTES_MAX);
        let is_offerer = self.rooms[peer.room].offerer == Some(slot);
        let next_offer = self.deliverable_offer(peer.room).filter(|_| !is_offerer);
        let offers_cost = next_offer.map_or(0, |offer| credits_for_deliveries(holders, offer.text.len()));
        notices_cost + offers_cost
    }
}
