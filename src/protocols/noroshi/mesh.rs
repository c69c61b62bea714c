//! The mesh flow: every joined peer knows all others and addresses them by `target_id`.

use super::peer::Flow;
use super::{Noroshi, Slot, error};
use crate::protocol::Context;
use crate::protocols::noroshi::message::{Code, ErrorReply, ServerMessage};

impl Noroshi {
    /// Handles `join`: adds the peer to the mesh and announces it.
    ///
    /// A peer that has joined already only gets the reply again.
    ///
    /// # Errors
    /// [`Code::RoomFull`]: the mesh has `--max-mesh-peers` peers.
    pub(super) fn handle_join(&mut self, slot: Slot, context: &mut Context) -> Result<(), ErrorReply> {
        let room = self.peer(slot).room;
        if self.peer(slot).flow != Flow::Joined {
            if self.rooms[room].mesh.len() >= self.mesh_peers_max {
                return error(
                    Code::RoomFull,
                    "the mesh of this room has reached its maximum number of peers",
                );
            }
            self.leave_flow(slot, context);
            for other in self.list_nodes.iter(&self.rooms[room].mesh) {
                self.send_message(other, &ServerMessage::PeerJoined { id: self.id(slot) }, context);
            }
            self.list_nodes.push_back(&mut self.rooms[room].mesh, slot);
            self.peer_mut(slot).flow = Flow::Joined;
        }
        let mut peers = Vec::new();
        for other in self.list_nodes.iter(&self.rooms[room].mesh) {
            if other != slot {
                peers.push(self.id(other));
            }
        }
        let text = ServerMessage::Joined { id: self.id(slot), peers }.to_json();
        self.send_with_ice_servers(slot, text, context);
        Ok(())
    }

    /// Removes a peer from the mesh and announces that.
    pub(super) fn leave_mesh(&mut self, slot: Slot, context: &mut Context) {
        let room = self.peer(slot).room;
        self.list_nodes.remove(&mut self.rooms[room].mesh, slot);
        for other in self.list_nodes.iter(&self.rooms[room].mesh) {
            self.send_peer_left(slot, other, context);
        }
    }
}
