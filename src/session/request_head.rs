//! The first phase of a session: the head of a request comes in, and is handed to the server.

use super::buffers::{Shared, Work};
use super::inbound::Scratch;
use super::{Event, Phase, Session, Stream};
use crate::http::{self, Response};
use crate::limits::{ALWAYS_HELD_BYTES, FIRST_MESSAGE_TIME_MAX, HEAD_BYTES_MAX};

impl<S: Stream> Session<S> {
    /// Takes the head of the request. Yields it when it is complete, or rejects what cannot become one.
    pub(super) fn take_head(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Option<Event<'static>> {
        let work = Work::begin(&mut self.work, shared);
        let unread = scratch.unread.clone();
        let searched = work.inbound.begun.len();
        // A byte more than allowed is enough to know that the head is too large.
        let read = scratch.take(HEAD_BYTES_MAX + 1 - searched);
        let fits = searched + read.len() <= ALWAYS_HELD_BYTES || shared.budget.allows(2 * read.len());
        work.inbound.begun.extend_from_slice(read);
        work.charge(&mut shared.budget);
        let head = &mut work.inbound.begun;
        let answer = match http::head_end(head, searched) {
            _ if http::is_not_http(head) => http::malformed(head),
            Some(end) if end <= HEAD_BYTES_MAX => {
                scratch.unread = unread.start + end - searched..unread.end;
                head.truncate(end);
                return Some(Event::Request(std::mem::take(head)));
            }
            None if head.len() <= HEAD_BYTES_MAX && fits => return None,
            None if !fits => http::no_memory(head),
            _ => http::head_too_large(head),
        };
        self.reject(answer, shared)
    }

    /// Answers a request whose head did not come in time.
    pub(super) fn miss_head(&mut self, shared: &mut Shared) {
        let head = self.work.as_ref().map_or(&[][..], |work| &work.inbound.begun);
        self.reject(http::timeout(head), shared);
    }

    /// Answers what is no request.
    fn reject(&mut self, answer: Response, shared: &mut Shared) -> Option<Event<'static>> {
        let Response::Plain { status, reject_reason, bytes } = answer else { return None };
        self.respond(bytes, shared);
        reject_reason.map(|reason| Event::Rejected(status, reason))
    }

    /// Sends the response to a request, and ends the session.
    pub fn respond(&mut self, response: Vec<u8>, shared: &mut Shared) {
        self.finish(super::End::Http, shared.now);
        self.queue_response(response, shared);
    }

    /// Sends the response to an upgrade. From now on the session speaks WebSocket.
    pub fn accept(&mut self, response: Vec<u8>, shared: &mut Shared) {
        self.phase = Phase::Open;
        self.deadline = Some((shared.now + FIRST_MESSAGE_TIME_MAX).into());
        self.queue_response(response, shared);
    }

    fn queue_response(&mut self, response: Vec<u8>, shared: &mut Shared) {
        let work = Work::begin(&mut self.work, shared);
        work.inbound.begun = Vec::new();
        work.queue.respond(response, shared.now);
        work.charge(&mut shared.budget);
    }
}
