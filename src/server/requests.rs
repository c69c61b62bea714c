//! Handles requests: gets the decision from `admission`, and carries it out.
//!
//! A session yields the head of a request as bytes. The server parses it, finds the client's address, counts it, and
//! accepts the connection as a WebSocket or responds.

use super::Server;
use super::admission::{self, Decision, LimitCheck, Policy};
use super::connections::Connections;
use crate::http::{self, ListenerKind, NO_HEADERS, Response};
use crate::limits::ALWAYS_HELD_BYTES;
use crate::protocol::Target;

impl Server {
    /// Handles the request with this head.
    pub(super) fn handle_request(&mut self, slot: usize, head: &[u8]) {
        let response = match self.parse_and_decide(slot, head) {
            Decision::Upgrade { bytes, target, claims } => {
                let endpoint = &target.protocol.endpoint;
                self.connections.with_session(slot, |session, shared| {
                    session.accept(bytes, shared);
                    if endpoint.has_large_queues {
                        session.enlarge_queue();
                    }
                    if endpoint.ends_without_close_frame {
                        session.end_without_close_frame();
                    }
                });
                self.connections.upgrade(slot);
                let conn = self.connections.entries[slot].conn;
                let times = self.times();
                return self.dispatcher.connect(
                    times,
                    conn,
                    &target,
                    claims.as_deref(),
                    &mut self.connections,
                );
            }
            Decision::Respond(response) => response,
            Decision::Operator(request) => self.respond_to_operator(&request),
            Decision::Resource(request) => {
                let resource = self.dispatcher.respond(request.protocol, &request.path, &request.query);
                request.render(resource.as_ref())
            }
        };
        let response = self.within_memory(slot, head, response);
        let Response { status, bytes, reject_reason } = response;
        self.connections.with_session(slot, |session, shared| session.respond(bytes, shared));
        if let Some(reason) = reject_reason {
            self.connections.record_rejection(slot, status, &reason);
        }
    }

    /// Parses a request head, counts the client address that a trusted proxy reports, and decides on the request.
    fn parse_and_decide(&mut self, slot: usize, head: &[u8]) -> Decision {
        let entry = &self.connections.entries[slot];
        let (listener, peer) = (entry.listener, entry.address);
        let mut headers = NO_HEADERS;
        let request = match admission::parse_head(head, &mut headers, listener) {
            Ok(request) => request,
            Err(response) => return Decision::Respond(response),
        };
        if listener == ListenerKind::Main && self.connections.shared.config.is_trusted_proxy(peer) {
            match self.policy(listener).reported_address(&request) {
                Ok(Some(address)) => self.connections.count_address(slot, address),
                Ok(None) => {}
                Err(response) => return Decision::Respond(response),
            }
        }
        self.policy(listener).decide(&request, |target| self.check_limits(slot, target))
    }

    fn policy(&self, listener: ListenerKind) -> Policy<'_> {
        let Connections { shared, wall, .. } = &self.connections;
        Policy { listener, config: &shared.config, dispatcher: &self.dispatcher, unix_time: *wall }
    }

    /// Returns whether the limits allow another WebSocket for this target.
    fn check_limits(&self, slot: usize, target: Option<&Target>) -> LimitCheck {
        let is_known = |target: &Target| self.dispatcher.room_exists(target);
        let has_capacity = |target: &Target| self.dispatcher.has_capacity(target);
        let address = self.connections.entries[slot].address;
        if self.connections.is_draining && !target.is_some_and(is_known) {
            LimitCheck::Draining
        } else if self.connections.are_full() {
            LimitCheck::ServerFull
        } else if self.connections.per_ip.excess(address) > 0 {
            LimitCheck::AddressFull
        } else if !target.is_none_or(has_capacity) {
            LimitCheck::RoomFull
        } else {
            LimitCheck::Allowed
        }
    }

    /// Replaces a response that the memory limit does not allow. The operator listener may always use some memory.
    fn within_memory(&self, slot: usize, head: &[u8], response: Response) -> Response {
        let bytes = response.bytes.len();
        let is_main = self.connections.entries[slot].listener == ListenerKind::Main;
        if is_main && bytes > ALWAYS_HELD_BYTES && !self.connections.shared.budget.allows(bytes) {
            return http::no_memory(head);
        }
        response
    }
}
