//! Credits for the messages that the server sends because of a message.

use noroshi::protocol::Conn;
use noroshi::protocols::noroshi::message::Body;
use serde_json::json;

use super::super::context::{credits_for, credits_for_deliveries};
use super::{Model, State};

/// The longest notice about a peer: the longest id and the text around it.
const NOTICE_BYTES: usize = 200;

impl Model {
    /// Returns the credits for the effects of a message. `leaving` is a peer that it replaces.
    pub(super) fn cost_of_effects(
        &self,
        conn: Conn,
        target: Option<&str>,
        body: &Body,
        leaving: Option<Conn>,
    ) -> usize {
        match body {
            Body::Connect => self.cost_of_connect(conn),
            Body::Join => self.cost_of_join(conn, leaving),
            Body::Leave => self.cost_of_departure(conn),
            Body::Answer(_) => self.cost_of_answer(conn, target),
            Body::Offer(_) | Body::Candidates(_) => 0,
        }
    }

    /// All recipients of `peerLeft` receive the same text.
    pub(super) fn cost_of_departure(&self, conn: Conn) -> usize {
        let peer = &self.peers[&conn];
        let others = match peer.state {
            State::Paired(_) => 1,
            State::Joined => self.rooms[&peer.room].mesh.len() - 1,
            _ => 0,
        };
        // Peers that hold an offer of the leaving peer may be sent the offer of another one.
        let next_offer = self.offer_to_next(&peer.room).filter(|(owner, _)| *owner != conn);
        let offers = next_offer.map_or(0, |(owner, _)| {
            credits_for_deliveries(peer.holders.len(), self.offer_message(owner).to_string().len())
        });
        credits_for_deliveries(others + peer.holders.len(), NOTICE_BYTES) + offers
    }

    /// The answer to `connect` may be the current offer.
    fn cost_of_connect(&self, conn: Conn) -> usize {
        let room = &self.peers[&conn].room;
        let departure = match self.peers[&conn].state {
            State::Offerer | State::Waiting | State::Paired(_) => return 0,
            State::HoldingOffer(owner, number) if self.current_offer(room) == Some((owner, number)) => {
                return 0;
            }
            State::Joined => self.cost_of_departure(conn),
            _ => 0,
        };
        departure + self.cost_of_next_offer(room)
    }

    fn cost_of_next_offer(&self, room: &str) -> usize {
        let Some((owner, _)) = self.offer_to_next(room) else { return 0 };
        credits_for(self.offer_message(owner).to_string().len())
    }

    /// All members of the mesh receive a notice, and the new member receives the list of members.
    fn cost_of_join(&self, conn: Conn, leaving: Option<Conn>) -> usize {
        let peer = &self.peers[&conn];
        let mut others = self.rooms[&peer.room].mesh.clone();
        others.retain(|other| *other != conn && Some(*other) != leaving);
        let ids: Vec<_> = others.iter().map(|other| &self.peers[other].id).collect();
        let answer =
            credits_for(json!({"type": "joined", "id": "x".repeat(128), "peers": ids}).to_string().len());
        if let State::Joined = peer.state {
            return answer;
        }
        if others.len() >= self.mesh_peers_max {
            return 0;
        }
        self.cost_of_departure(conn) + credits_for_deliveries(others.len(), NOTICE_BYTES) + answer
    }

    /// The reply to `answer` may be the candidates stored with the offer, or another offer if it is too late.
    fn cost_of_answer(&self, conn: Conn, target: Option<&str>) -> usize {
        let peer = &self.peers[&conn];
        let offerer = match (self.target(conn, target), &peer.state) {
            (Ok(Some(target_conn)), _) => target_conn,
            (Ok(None), State::HoldingOffer(owner, _)) => *owner,
            _ => return 0,
        };
        if let State::HoldingOffer(owner, number) = peer.state
            && owner == offerer
            && self.current_offer(&peer.room) != Some((owner, number))
        {
            return self.cost_of_next_offer(&peer.room);
        }
        match self.peers[&offerer].stored_candidates.iter().map(String::len).sum() {
            0 => 0,
            bytes => credits_for(bytes),
        }
    }
}
