//! Pings: a client asks whether the server handles its messages, or for new TURN credentials.
//!
//! A browser cannot send the pings of WebSocket (RFC 6455 section 5.5.2), so this is a message. It changes nothing, and is
//! answered whether or not its sender has an id: a client needs no knowledge of its state to send one.

use super::{Noroshi, Slot};
use crate::protocol::Context;
use crate::protocols::noroshi::message::{Kind, ServerMessage};
use crate::rate_limit::{Verdict, credits_for_bytes};

impl Noroshi {
    /// Answers a ping of `bytes` bytes.
    ///
    /// The reply has the ICE servers if they are wanted, configured, and the sender has an id: TURN credentials contain it.
    /// The sender is charged for them before the credentials are computed.
    pub(super) fn on_ping(
        &mut self,
        slot: Slot,
        wants_ice_servers: bool,
        bytes: usize,
        context: &mut Context,
    ) {
        let sends_ice_servers = wants_ice_servers && !self.ice.is_empty() && self.peer(slot).id().is_some();
        let reply_cost = if sends_ice_servers { self.pong_cost() } else { 0 };
        let credits = credits_for_bytes(bytes) + reply_cost;
        let verdict = context.charge(self.peers.conn(slot), credits, bytes);
        if verdict != Verdict::Pass {
            return self.on_rate_exceeded(slot, verdict, context);
        }
        self.message_counts[Kind::Ping as usize] += 1;
        let pong = ServerMessage::Pong;
        if sends_ice_servers {
            self.send_with_ice_servers(slot, pong.to_json(), context);
        } else {
            self.send_message(slot, &pong, context);
        }
    }
}
