//! Meshes: who joined a room knows all who did, and everybody addresses everybody.

use super::peer::Flow;
use super::{Noroshi, Slot, refused};
use crate::protocols::Context;
use crate::protocols::noroshi::message::{Code, Refusal, Reply};

impl Noroshi {
    pub(super) fn join(&mut self, slot: Slot, turn: &mut Context) -> Result<(), Refusal> {
        let room = self.peer(slot).room as usize;
        if self.peer(slot).flow != Flow::Joined {
            if self.rooms[room].mesh.len() >= self.mesh_peers_max {
                return refused(Code::RoomFull, "as many peers have joined this room as may");
            }
            self.depart(slot, turn);
            for other in self.links.iter(&self.rooms[room].mesh) {
                self.tell(other, &Reply::PeerJoined { id: self.id(slot) }, turn);
            }
            self.links.push_back(&mut self.rooms[room].mesh, slot);
            self.peer_mut(slot).flow = Flow::Joined;
        }
        let others = self.links.iter(&self.rooms[room].mesh).filter(|other| *other != slot);
        let peers = others.map(|other| self.id(other)).collect();
        let text = Reply::Joined { id: self.id(slot), peers }.text();
        self.tell_with_ice(slot, text, turn);
        Ok(())
    }

    pub(super) fn leave_mesh(&mut self, slot: Slot, turn: &mut Context) {
        let room = self.peer(slot).room as usize;
        self.links.remove(&mut self.rooms[room].mesh, slot);
        for other in self.links.iter(&self.rooms[room].mesh) {
            self.tell_left(slot, other, turn);
        }
    }
}
