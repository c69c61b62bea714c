//! Sending: messages of the server, errors, and messages forwarded from peer to peer.

use super::{Noroshi, Slot, error};
use crate::protocol::Context;
use crate::protocols::noroshi::message::{Code, ErrorReply, ServerMessage};

impl Noroshi {
    pub(super) fn send_message(&self, to: Slot, message: &ServerMessage, context: &mut Context) {
        context.send(self.peers.conn(to), message.to_json());
    }

    /// Sends a message with the STUN and TURN servers added.
    ///
    /// Messages after which the client creates an `RTCPeerConnection` carry them. The token of the peer limits
    /// how long its TURN credentials are valid.
    pub(super) fn send_with_ice_servers(&self, to: Slot, text: String, context: &mut Context) {
        let peer = self.peer(to);
        let token_expires_at = peer.token_claims.as_ref().map(|claims| claims.expires_at);
        let text = self.ice.append_to(text, self.id(to), context.wall, token_expires_at);
        context.send(self.peers.conn(to), text);
    }

    pub(super) fn send_peer_left(&self, leaver: Slot, to: Slot, context: &mut Context) {
        self.send_message(to, &ServerMessage::PeerLeft { id: self.id(leaver) }, context);
    }

    /// Sends an error reply and counts it.
    pub(super) fn send_error(
        &mut self,
        to: Slot,
        error: ErrorReply,
        target: Option<&str>,
        context: &mut Context,
    ) {
        self.error_counts[error.code as usize] += 1;
        self.send_message(to, &ServerMessage::Error { error, target }, context);
    }

    /// Forwards messages of a peer, all of them or none.
    ///
    /// # Errors
    /// [`Code::PeerBusy`]: they do not fit into the outbound queue of the receiver.
    pub(super) fn forward<T>(&self, to: Slot, texts: T, context: &mut Context) -> Result<(), ErrorReply>
    where
        T: AsRef<[String]> + IntoIterator<Item = String>,
    {
        if context.forward(self.peers.conn(to), texts) {
            return Ok(());
        }
        error(Code::PeerBusy, "the outbound queue of the target peer is full; try again later")
    }
}
