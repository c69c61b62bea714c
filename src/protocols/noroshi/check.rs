//! What must be true of the hub between any two inputs.

use std::collections::BTreeMap;

use super::peer::{Flow, Peer, Who};
use super::{Noroshi, Slot};
use crate::config::{CANDIDATES_MAX, CLAIMANTS_MAX, STORED_BYTES_MAX};

impl Noroshi {
    pub(super) fn check_all(&self) {
        let mut alarms = Vec::new();
        let mut orders = BTreeMap::new();
        let mut members = vec![0; self.rooms.capacity()];
        for (slot, peer) in self.peers.iter() {
            members[peer.room as usize] += 1;
            self.check_peer(slot, peer);
            assert!(peer.claimants.is_none() || peer.id().is_some(), "only who has an id is probed");
            for holder in self.holders(peer) {
                orders.insert(holder, ('h', slot));
            }
            for claimant in peer.claimants.iter().flat_map(|claimants| self.links.iter(claimants)) {
                orders.insert(claimant, ('c', slot));
            }
        }
        assert!(self.handshakes.peers().all(|slot| self.peer(slot).id().is_some()), "who leaves, leaves all");
        assert_eq!(self.names.len(), self.rooms.len());
        for (key, room) in &self.rooms {
            let key = key as u32;
            assert!(
                room.members > 0 && room.members == members[key as usize],
                "a room goes with its last member"
            );
            assert!(room.mesh.len() <= self.mesh_peers_max && !room.moved);
            orders.extend(self.links.iter(&room.line).map(|slot| (slot, ('l', key))));
            orders.extend(self.links.iter(&room.mesh).map(|slot| (slot, ('m', key))));
            let offerer = room.offerer.map(|slot| self.peer(slot));
            assert!(offerer.is_none_or(|offerer| offerer.flow == Flow::Offerer && offerer.room == key));
            assert!(offerer.is_some() || room.line.is_empty(), "somebody waits and nobody was asked");
            let lies_around = offerer.and_then(Peer::offer).is_some_and(|offer| offer.held == 0);
            assert!(!lies_around || room.line.is_empty(), "an offer lies around");
            assert_eq!(room.patience.is_some(), !room.line.is_empty());
            alarms.extend(room.patience.map(|due| (due, key)));
        }
        // Each is in the order that it says it is in, and in no other.
        let expected = self.peers.iter().filter_map(|(slot, peer)| match (&peer.who, peer.flow) {
            (Who::Claimant(claimant), _) => Some((slot, ('c', claimant.holder))),
            (_, Flow::Waiting) => Some((slot, ('l', peer.room))),
            (_, Flow::Joined) => Some((slot, ('m', peer.room))),
            (_, Flow::Handed(hold)) => Some((slot, ('h', hold.owner))),
            _ => None,
        });
        assert_eq!(orders, expected.collect());
        alarms.sort();
        assert!(self.alarms.iter().eq(&alarms));
        assert!(self.peers.iter().all(|(_, peer)| {
            peer.claimants.as_ref().is_none_or(|claimants| claimants.len() <= CLAIMANTS_MAX)
        }));
        assert_eq!(self.ids.len(), self.peers.iter().filter(|(_, peer)| peer.id().is_some()).count());
    }

    fn holders(&self, peer: &Peer) -> Vec<Slot> {
        peer.offering.iter().flat_map(|offering| self.links.iter(&offering.holders)).collect()
    }

    fn check_peer(&self, slot: Slot, peer: &Peer) {
        match peer.id() {
            Some(id) => assert_eq!(self.holder(peer.room, id), Some(slot)),
            None => assert!(peer.flow == Flow::Idle && peer.offering.is_none() && peer.claimants.is_none()),
        }
        if let Flow::Paired(partner) = peer.flow {
            assert_eq!(self.peer(partner).flow, Flow::Paired(slot));
        }
        assert_eq!(
            self.rooms[peer.room as usize].offerer == Some(slot),
            peer.flow == Flow::Offerer,
            "a room knows its offerer"
        );
        let Some(offering) = &peer.offering else { return };
        if let Some(offer) = &offering.offer {
            let holds = |holder: &Slot| matches!(self.peer(*holder).flow, Flow::Handed(hold) if hold.offer == offer.number);
            assert_eq!(offer.held, self.holders(peer).iter().filter(|holder| holds(holder)).count());
            assert!(peer.flow == Flow::Offerer && (offer.handed || offer.held == 0));
        }
        assert_eq!(offering.candidates_memory.is_some(), !offering.candidates.is_empty());
        assert!(offering.candidate_count <= CANDIDATES_MAX);
        assert!(offering.candidates.len() < STORED_BYTES_MAX + CANDIDATES_MAX);
        let is_met = matches!(peer.flow, Flow::Paired(_) | Flow::Joined);
        assert!(!is_met || offering.candidates.is_empty());
    }
}
