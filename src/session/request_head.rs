//! The first phase of a session: the head of a request comes in, and is answered.

use super::buffers::{Shared, Work};
use super::inbound::Scratch;
use super::{Event, Phase, Session, Stream};
use crate::http::{self, Answer, ListenerKind, Place};
use crate::limits::{ALWAYS_HELD_BYTES, FIRST_MESSAGE_TIME_MAX, HEAD_BYTES_MAX};
use crate::protocols::Dispatcher;

impl<S: Stream> Session<S> {
    /// Takes the head of the request, and answers it if that was all.
    pub(super) fn take_head(
        &mut self,
        scratch: &mut Scratch,
        shared: &mut Shared,
        dispatcher: &Dispatcher,
    ) -> Option<Event<'static>> {
        let work = Work::begin(&mut self.work, shared);
        let unread = scratch.unread.clone();
        let searched = work.inbound.begun.len();
        // A byte more than allowed is enough to know that the head is too large.
        let read = scratch.take(HEAD_BYTES_MAX + 1 - searched);
        let fits = searched + read.len() <= ALWAYS_HELD_BYTES || shared.budget.allows(2 * read.len());
        work.inbound.begun.extend_from_slice(read);
        work.charge(&mut shared.budget);
        let head = &work.inbound.begun;
        let answer = match http::head_end(head, searched) {
            _ if http::is_impossible(head) => http::malformed(head),
            Some(end) if end <= HEAD_BYTES_MAX => {
                scratch.unread = unread.start + end - searched..unread.end;
                let Shared { config, crowd, full, draining, wall, .. } = shared;
                let is_trusted = self.door == ListenerKind::Main && config.trusts(self.address);
                http::answer(&head[..end], self.door, config, is_trusted, *wall, |forwarded, target| {
                    if let Some(ip) = forwarded {
                        self.address = ip.into();
                        self.counted = true;
                        crowd.add(self.address);
                    }
                    match crowd.excess(self.address) {
                        _ if *draining && target.is_none_or(|target| !dispatcher.knows_room(target)) => {
                            Place::Draining
                        }
                        _ if *full => Place::Full,
                        1.. => Place::Crowded,
                        0 if target.is_some_and(|target| !dispatcher.has_place(target)) => Place::NoRoom,
                        0 => Place::Free,
                    }
                })
            }
            None if head.len() <= HEAD_BYTES_MAX && fits => return None,
            None if !fits => http::no_memory(head),
            _ => http::head_too_large(head),
        };
        let is_too_much = |answer: &Answer| {
            let Answer::Plain { response, .. } = answer else { return false };
            let bytes = response.len();
            self.door == ListenerKind::Main && bytes > ALWAYS_HELD_BYTES && !shared.budget.allows(bytes)
        };
        let answer = if is_too_much(&answer) { http::no_memory(head) } else { answer };
        self.answer(answer, shared)
    }

    /// Says that the head did not come in time.
    pub(super) fn miss_head(&mut self, shared: &mut Shared) {
        let head = self.work.as_ref().map_or(&[][..], |work| &work.inbound.begun);
        self.answer(http::timeout(head), shared);
    }

    /// Answers the request.
    pub fn answer(&mut self, answer: Answer, shared: &mut Shared) -> Option<Event<'static>> {
        let (response, event) = match answer {
            Answer::Upgrade { response, target, claims } => {
                self.phase = Phase::Open;
                self.deadline = Some((shared.now + FIRST_MESSAGE_TIME_MAX).into());
                (response, Some(Event::Upgraded(target, claims)))
            }
            Answer::Plain { status, refused, response } => {
                self.finish(super::End::Http, shared.now);
                (response, refused.map(|refusal| Event::Refused(status, refusal)))
            }
            Answer::Ask(question) => return Some(Event::Asked(question)),
        };
        let work = Work::begin(&mut self.work, shared);
        work.inbound.begun = Vec::new();
        work.queue.respond(response, shared.now);
        work.charge(&mut shared.budget);
        event
    }
}
