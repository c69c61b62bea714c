//! Reads the request head and sends the response.

use std::mem;

use super::buffers::{Buffers, SharedState};
use super::inbound::Scratch;
use super::{CloseReason, Event, Phase, Session, Stream};
use crate::http::{self, Response};
use crate::limits::{ALWAYS_HELD_BYTES, HEAD_BYTES_MAX, REGISTRATION_TIME_MAX};

impl<S: Stream> Session<S> {
    /// Takes bytes of the request head and yields it when it is complete.
    ///
    /// Input that cannot become a valid request is rejected at its first invalid byte, without waiting for the rest.
    pub(super) fn take_request_head(
        &mut self,
        scratch: &mut Scratch,
        shared: &mut SharedState,
    ) -> Option<Event<'static>> {
        let buffers = Buffers::acquire(&mut self.buffers, shared);
        let unread = scratch.unread.clone();
        let received_before = buffers.inbound.request_head.len();
        // One byte more than allowed is enough to know that the head is too large.
        let read = scratch.take(HEAD_BYTES_MAX + 1 - received_before);
        let is_small = received_before + read.len() <= ALWAYS_HELD_BYTES;
        let fits_memory = is_small || shared.budget.allows(2 * read.len());
        buffers.inbound.request_head.extend_from_slice(read);
        buffers.update_budget(&mut shared.budget);
        let head = &mut buffers.inbound.request_head;
        let response = match http::head_end(head, received_before) {
            _ if http::is_not_http(head) => http::malformed(head),
            Some(end) if end <= HEAD_BYTES_MAX => {
                let taken = end - received_before;
                scratch.unread = unread.start + taken..unread.end;
                head.truncate(end);
                return Some(Event::Request(mem::take(head)));
            }
            None if head.len() <= HEAD_BYTES_MAX && fits_memory => return None,
            None if !fits_memory => http::no_memory(head),
            _ => http::head_too_large(head),
        };
        self.reject(response, shared)
    }

    /// Sends a 408 response because the head did not arrive in time.
    pub(super) fn respond_timeout(&mut self, shared: &mut SharedState) {
        let head = match &self.buffers {
            Some(buffers) => &buffers.inbound.request_head[..],
            None => &[],
        };
        let response = http::timeout(head);
        self.reject(response, shared);
    }

    /// Sends the response to an invalid request.
    fn reject(&mut self, response: Response, shared: &mut SharedState) -> Option<Event<'static>> {
        let Response { status, bytes, reject_reason } = response;
        self.respond(bytes, shared);
        let reason = reject_reason?;
        Some(Event::Rejected(status, reason))
    }

    /// Sends a plain HTTP response and then closes the connection.
    pub fn respond(&mut self, response: Vec<u8>, shared: &mut SharedState) {
        self.begin_flushing(CloseReason::Http, shared.now);
        self.queue_response(response, shared);
    }

    /// Sends the response to an upgrade and switches to the WebSocket protocol.
    pub fn accept(&mut self, response: Vec<u8>, shared: &mut SharedState) {
        self.phase = Phase::Open;
        self.deadline = Some((shared.now + REGISTRATION_TIME_MAX).into());
        self.queue_response(response, shared);
    }

    fn queue_response(&mut self, response: Vec<u8>, shared: &mut SharedState) {
        let buffers = Buffers::acquire(&mut self.buffers, shared);
        buffers.inbound.request_head = Vec::new();
        buffers.queue.push_response(response, shared.now);
        buffers.update_budget(&mut shared.budget);
    }
}
