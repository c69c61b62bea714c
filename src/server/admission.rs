//! Decides on every request: one place for origins, tokens, limits, memory, rooms and a drain.
//!
//! A session yields the head of a request as bytes. The server parses it, finds the client's address, counts it, finds
//! where the request leads, checks what the limits allow, and accepts the connection as a WebSocket or responds. Pages,
//! health checks, `/metrics` and `/rooms` take the same way.

use std::net::IpAddr;

use super::Server;
use crate::http::{self, Admission, ListenerKind, NO_HEADERS, Request, Response, Route};
use crate::limits::ALWAYS_HELD_BYTES;
use crate::protocol::{Input, Target};

impl Server {
    /// Answers the request with this head.
    pub(super) fn admit(&mut self, slot: usize, head: &[u8]) {
        let answer = self.decide(slot, head);
        let answer = self.within_memory(slot, head, answer);
        match answer {
            Response::Upgrade { bytes, target, claims } => {
                self.connections.with_session(slot, |session, shared| session.accept(bytes, shared));
                self.connections.upgrade(slot);
                let conn = self.connections.entries[slot].conn;
                self.dispatch(Input::Connected(conn, &target, claims.as_deref()));
            }
            Response::Plain { status, reject_reason, bytes } => {
                self.connections.with_session(slot, |session, shared| session.respond(bytes, shared));
                if let Some(reason) = reject_reason {
                    self.connections.refuse(slot, status, &reason);
                }
            }
            // What an operator asks is answered by `decide`.
            Response::Admin(_) => {}
        }
    }

    fn decide(&mut self, slot: usize, head: &[u8]) -> Response {
        let entry = &self.connections.entries[slot];
        let (listener, peer) = (entry.listener, entry.address);
        let mut headers = NO_HEADERS;
        let request = match Request::parse(head, &mut headers, listener) {
            Ok(request) => request,
            Err(response) => return response,
        };
        let config = &self.connections.shared.config;
        if listener == ListenerKind::Main && config.is_trusted_proxy(peer) {
            match request.reported_address(config) {
                Ok(Some(address)) => self.count(slot, address),
                Ok(None) => {}
                Err(response) => return response,
            }
        }
        let config = &self.connections.shared.config;
        let route = request.route(config);
        let admission = self.admission(slot, &route);
        match request.respond(route, admission, config, self.connections.wall) {
            Response::Admin(question) => self.answer_operator(&question),
            answer => answer,
        }
    }

    /// Counts a connection for the client address that a trusted proxy reports.
    fn count(&mut self, slot: usize, address: IpAddr) {
        let entry = &mut self.connections.entries[slot];
        entry.address = address.into();
        entry.is_counted = true;
        self.connections.per_ip.add(address.into());
    }

    /// Returns whether the limits allow another WebSocket for this route.
    fn admission(&self, slot: usize, route: &Route) -> Admission {
        let is_known = |target: &Target| self.dispatcher.knows_room(target);
        let has_room = |target: &Target| self.dispatcher.has_place(target);
        let address = self.connections.entries[slot].address;
        let target = route.target();
        if self.connections.is_draining && !target.is_some_and(is_known) {
            Admission::Draining
        } else if self.connections.are_full() {
            Admission::ServerFull
        } else if self.connections.per_ip.excess(address) > 0 {
            Admission::AddressFull
        } else if !target.is_none_or(has_room) {
            Admission::RoomFull
        } else {
            Admission::Allowed
        }
    }

    /// Replaces a response that the memory limit does not allow. The metrics listener may use some memory always.
    fn within_memory(&self, slot: usize, head: &[u8], answer: Response) -> Response {
        let Response::Plain { bytes, .. } = &answer else { return answer };
        let bytes = bytes.len();
        let is_main = self.connections.entries[slot].listener == ListenerKind::Main;
        if is_main && bytes > ALWAYS_HELD_BYTES && !self.connections.shared.budget.allows(bytes) {
            return http::no_memory(head);
        }
        answer
    }
}
