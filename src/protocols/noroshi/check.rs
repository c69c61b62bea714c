//! Invariants that hold between any two inputs. Tests check them after every input.

use std::collections::BTreeMap;

use super::peer::{Flow, Peer, Registration};
use super::{Noroshi, Slot};
use crate::limits::{CANDIDATES_MAX, CLAIMANTS_MAX, STORED_BYTES_MAX};

/// The linked list that a peer is in.
#[derive(Debug, PartialEq)]
enum ListOf {
    /// The queue of this room.
    Queue(u32),
    /// The mesh of this room.
    Mesh(u32),
    /// The holders of the offers of this peer.
    Holders(Slot),
    /// The claimants of the id of this peer.
    Claimants(Slot),
}

impl Noroshi {
    pub(super) fn check_invariants(&self) {
        for (slot, peer) in self.peers.iter() {
            self.check_peer(slot, peer);
        }
        self.check_rooms();
        self.check_lists();
        assert!(
            self.handshakes.peers().all(|slot| self.peer(slot).id().is_some()),
            "only registered peers have pending handshakes"
        );
        let registered = self.peers.iter().filter(|(_, peer)| peer.id().is_some()).count();
        assert_eq!(self.peers_by_id.len(), registered);
    }

    fn check_peer(&self, slot: Slot, peer: &Peer) {
        match peer.id() {
            Some(id) => assert_eq!(self.find_peer(peer.room, id), Some(slot)),
            None => {
                assert!(peer.flow == Flow::Idle, "an unregistered peer is in no flow");
                assert!(peer.offer_state.is_none(), "an unregistered peer has no offer");
                assert!(peer.claimants.is_none(), "an unregistered peer is not probed");
            }
        }
        if let Flow::Paired(partner) = peer.flow {
            assert_eq!(self.peer(partner).flow, Flow::Paired(slot));
        }
        assert_eq!(
            self.rooms[peer.room].offerer == Some(slot),
            peer.flow == Flow::Offerer,
            "the room and its offerer refer to each other"
        );
        let claimant_count = peer.claimants.as_ref().map_or(0, |claimants| claimants.len());
        assert!(claimant_count <= CLAIMANTS_MAX);
        self.check_offer_state(peer);
    }

    fn check_offer_state(&self, peer: &Peer) {
        let Some(state) = &peer.offer_state else {
            return;
        };
        if let Some(offer) = &state.current {
            let holders = self.all_holders(peer).into_iter();
            let held_numbers = holders.filter_map(|holder| match self.peer(holder).flow {
                Flow::HoldingOffer(held) => Some(held.number),
                _ => None,
            });
            let current_holders = held_numbers.filter(|number| *number == offer.number).count();
            assert_eq!(offer.current_holders, current_holders);
            assert!(peer.flow == Flow::Offerer, "only the offerer has a current offer");
            assert!(offer.is_delivered || offer.current_holders == 0);
        }
        assert_eq!(state.candidates_memory.is_some(), !state.candidates.is_empty());
        assert!(state.candidate_count <= CANDIDATES_MAX);
        assert!(state.candidates.len() < STORED_BYTES_MAX + CANDIDATES_MAX);
        let stores_no_candidates = matches!(peer.flow, Flow::Paired(_) | Flow::Joined);
        assert!(!stores_no_candidates || state.candidates.is_empty());
    }

    fn check_rooms(&self) {
        self.rooms.check();
        let mut member_counts = BTreeMap::new();
        for (_, peer) in self.peers.iter() {
            *member_counts.entry(peer.room).or_default() += 1;
        }
        let mut timers = Vec::new();
        for (index, room) in self.rooms.iter() {
            assert!(room.member_count > 0, "a room is removed with its last member");
            assert_eq!(Some(&room.member_count), member_counts.get(&index));
            assert!(room.mesh.len() <= self.mesh_peers_max);
            assert!(!room.has_progressed, "the deadline is updated after progress");
            let offerer = room.offerer.map(|slot| self.peer(slot));
            if let Some(offerer) = offerer {
                assert!(offerer.flow == Flow::Offerer && offerer.room == index);
            }
            if !room.queue.is_empty() {
                assert!(offerer.is_some(), "a room with a queue has an offerer");
                let offer = offerer.and_then(Peer::current_offer);
                assert!(
                    offer.is_none_or(|offer| offer.current_holders > 0),
                    "a peer holds the current offer while peers are queued"
                );
            }
            assert_eq!(room.deadline.is_some(), !room.queue.is_empty());
            timers.extend(room.deadline.map(|deadline| (deadline, index)));
        }
        timers.sort();
        assert!(self.timers.iter().eq(&timers));
    }

    /// Checks that each peer is in exactly the list that its state implies.
    fn check_lists(&self) {
        let mut lists = BTreeMap::new();
        for (slot, peer) in self.peers.iter() {
            for holder in self.all_holders(peer) {
                lists.insert(holder, ListOf::Holders(slot));
            }
            for claimant in peer.claimants.iter().flat_map(|claimants| self.list_nodes.iter(claimants)) {
                lists.insert(claimant, ListOf::Claimants(slot));
            }
        }
        for (index, room) in self.rooms.iter() {
            for slot in self.list_nodes.iter(&room.queue) {
                lists.insert(slot, ListOf::Queue(index));
            }
            for slot in self.list_nodes.iter(&room.mesh) {
                lists.insert(slot, ListOf::Mesh(index));
            }
        }
        let mut expected = BTreeMap::new();
        for (slot, peer) in self.peers.iter() {
            let list = match (&peer.registration, peer.flow) {
                (Registration::Claimant(claimant), _) => Some(ListOf::Claimants(claimant.holder)),
                (_, Flow::Queued) => Some(ListOf::Queue(peer.room)),
                (_, Flow::Joined) => Some(ListOf::Mesh(peer.room)),
                (_, Flow::HoldingOffer(offer)) => Some(ListOf::Holders(offer.offerer)),
                _ => None,
            };
            if let Some(list) = list {
                expected.insert(slot, list);
            }
        }
        assert_eq!(lists, expected);
    }

    fn all_holders(&self, peer: &Peer) -> Vec<Slot> {
        match &peer.offer_state {
            Some(state) => self.list_nodes.iter(&state.all_holders).collect(),
            None => Vec::new(),
        }
    }
}
