//! What peers are told.

use super::{Noroshi, Slot, refused};
use crate::protocols::Turn;
use crate::protocols::noroshi::message::{Code, Refusal, Reply};

impl Noroshi {
    /// Says something of the server's own.
    pub(super) fn tell(&self, to: Slot, reply: &Reply, turn: &mut Turn) {
        turn.send(self.peers.conn(to), reply.text());
    }

    /// The same where a peer connects to another after it.
    pub(super) fn tell_with_ice(&self, to: Slot, text: String, turn: &mut Turn) {
        let peer = self.peer(to);
        let until = peer.claims.as_ref().map(|claims| claims.expires_at);
        turn.send(self.peers.conn(to), self.ice.append_to(text, self.id(to), turn.wall, until));
    }

    pub(super) fn tell_left(&self, who: Slot, to: Slot, turn: &mut Turn) {
        self.tell(to, &Reply::PeerLeft { id: self.id(who) }, turn);
    }

    pub(super) fn refuse(&mut self, slot: Slot, refusal: Refusal, target: Option<&str>, turn: &mut Turn) {
        self.errors[refusal.code as usize] += 1;
        self.tell(slot, &Reply::Error { refusal, target }, turn);
    }

    /// Passes on what a peer said, all of it or nothing.
    pub(super) fn forward<T>(&self, to: Slot, texts: T, turn: &mut Turn) -> Result<(), Refusal>
    where
        T: AsRef<[String]> + IntoIterator<Item = String>,
    {
        if turn.forward(self.peers.conn(to), texts) {
            return Ok(());
        }
        refused(Code::PeerBusy, "the queue of that peer is full; try again later")
    }
}
