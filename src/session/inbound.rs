//! What comes in: the head of the request, then frames, and the messages in them.

use std::io::ErrorKind;
use std::mem;
use std::ops::Range;

use tungstenite::Message;
use tungstenite::error::Error;

use super::end::End;
use super::shared::{Scratch, Shared};
use super::work::begin;
use super::{Phase, Session, Stream};
use crate::config::{
    ALWAYS_HELD_BYTES, CODEC_BYTES, DRAIN_BYTES_MAX, FIRST_MESSAGE_TIME_MAX, HEAD_BYTES_MAX,
};
use crate::frame::{self, Header};
use crate::http::{self, Answer, Door, Place, Refusal};
use crate::token::Claims;

/// What a session has to say to the server.
#[derive(Debug)]
pub enum Event<'a> {
    /// It speaks WebSocket from now on, in this room, and its token, where one is needed, says this.
    Upgraded(String, Option<Claims>),
    /// It asked for a WebSocket and was answered with this status, and why.
    Refused(u16, Refusal),
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
}

/// What was taken from the scratch.
enum Taken {
    /// A message that lies there, unmasked, and whether it is text.
    There(Range<usize>, bool),
    /// A message that the codec has put there.
    Message,
    /// Something else.
    Other,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The scratch is full: there may be more, and no event will say so.
    More,
    /// A short read, which proves that the kernel has no more (epoll(7)).
    Drained,
    /// There is nothing now.
    Empty,
    /// Nothing will ever come again.
    Ended,
}

impl<S: Stream> Session<S> {
    /// Reads once, as much as the scratch holds. [`Session::next`] is to be called until it has no more.
    pub fn fill(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Fill {
        let read = loop {
            match self.stream.read(&mut scratch.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(n) if n > 0 => {
                scratch.unread = 0..n;
                shared.metrics.bytes_in += n as u64;
                self.heard = shared.now.into();
                self.pinged = None;
                self.drained = n < scratch.bytes.len();
                if self.drained { Fill::Drained } else { Fill::More }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.drained = true;
                Fill::Empty
            }
            end => {
                // Who shuts its write side may still read: what is under way to it is sent.
                self.ended = true;
                if end.is_err() || self.phase != Phase::Ending {
                    self.over(End::Lost);
                }
                Fill::Ended
            }
        }
    }

    /// Takes the next event out of what was read. `None`: all of it is taken.
    pub fn next<'a>(&mut self, scratch: &'a mut Scratch, shared: &mut Shared) -> Option<Event<'a>> {
        while !scratch.unread.is_empty() {
            match self.phase {
                Phase::Head => {
                    if let Some(event) = self.take_head(scratch, shared) {
                        return Some(event);
                    }
                }
                Phase::Open | Phase::Closing => match self.take_frame(scratch, shared) {
                    Ok(Taken::There(range, is_text)) if self.is_open() => {
                        let bytes = &scratch.bytes[range];
                        if !is_text {
                            return Some(Event::Binary(bytes));
                        }
                        let text = std::str::from_utf8(bytes).ok();
                        if text.is_none() {
                            // Nothing that comes after it matters.
                            scratch.unread = 0..0;
                            self.fail(End::NotUtf8, shared);
                        }
                        return text.map(Event::Text);
                    }
                    Ok(Taken::Message) if self.is_open() => {
                        return match &scratch.message {
                            Message::Text(text) => Some(Event::Text(text)),
                            Message::Binary(data) => Some(Event::Binary(data)),
                            _ => unreachable!("others are not for the server"),
                        };
                    }
                    Ok(_) => {}
                    Err(end) => self.fail(end, shared),
                },
                Phase::Ending | Phase::Draining => {
                    let work = begin(&mut self.work, &mut shared.spare);
                    work.thrown_away += scratch.unread.len();
                    if work.thrown_away > DRAIN_BYTES_MAX {
                        self.phase = Phase::Over;
                    }
                    scratch.unread = 0..0;
                }
                Phase::Over => scratch.unread = 0..0,
            }
        }
        None
    }

    /// Takes the head of the request, and answers it if that was all.
    fn take_head(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Option<Event<'static>> {
        let work = begin(&mut self.work, &mut shared.spare);
        let searched = work.begun.len();
        // A byte more than allowed is enough to know that the head is too large.
        let room = HEAD_BYTES_MAX + 1 - searched;
        let unread = scratch.unread();
        let read = &unread[..unread.len().min(room)];
        let fits = searched + read.len() <= ALWAYS_HELD_BYTES || shared.budget.allows(2 * read.len());
        work.begun.extend_from_slice(read);
        work.charge(&mut shared.budget);
        let head = &work.begun;
        let answer = match http::head_end(head, searched) {
            _ if http::is_impossible(head) => http::malformed(head),
            Some(end) if end <= HEAD_BYTES_MAX => {
                scratch.unread.start += end - searched;
                let Shared { config, metrics, crowd, full, wall, .. } = shared;
                let is_trusted = self.door == Door::Main && config.trusts(self.address.ip());
                http::answer(&head[..end], self.door, config, metrics, is_trusted, *wall, |forwarded| {
                    if let Some(ip) = forwarded {
                        self.address = ip.into();
                        self.counted = true;
                        crowd.enter(self.address);
                    }
                    match crowd.excess(self.address) {
                        _ if *full => Place::Full,
                        0 => Place::Free,
                        _ => Place::Crowded,
                    }
                })
            }
            None if head.len() <= HEAD_BYTES_MAX && fits => {
                scratch.unread = 0..0;
                return None;
            }
            None if !fits => http::no_memory(head),
            _ => http::head_too_large(head),
        };
        let answer = match answer {
            Answer::Plain { response, .. }
                if self.door == Door::Main
                    && response.len() > ALWAYS_HELD_BYTES
                    && !shared.budget.allows(response.len()) =>
            {
                http::no_memory(head)
            }
            answer => answer,
        };
        self.answer(answer, shared)
    }

    pub(super) fn answer(&mut self, mut answer: Answer, shared: &mut Shared) -> Option<Event<'static>> {
        let work = begin(&mut self.work, &mut shared.spare);
        work.begun = Vec::new();
        work.progress = shared.now;
        let (Answer::Upgrade { response, .. } | Answer::Plain { response, .. }) = &mut answer;
        work.queue = mem::take(response);
        work.charge(&mut shared.budget);
        match answer {
            Answer::Upgrade { room, claims, .. } => {
                self.phase = Phase::Open;
                self.deadline = Some((shared.now + FIRST_MESSAGE_TIME_MAX).into());
                Some(Event::Upgraded(room, claims))
            }
            Answer::Plain { status, refused, .. } => {
                self.finish(End::Http, shared.now);
                Some(Event::Refused(status, refused?))
            }
        }
    }

    /// Takes what there is of one frame.
    fn take_frame(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Result<Taken, End> {
        let payload_max = shared.config.message_bytes_max;
        if self.work.as_ref().is_none_or(|work| work.is_between_messages())
            && let Some(header) = Header::parse(scratch.unread(), payload_max)?
            && header.is_message()
            && header.len() <= scratch.unread.len()
        {
            let start = scratch.unread.start + header.bytes;
            let payload = start..start + header.payload;
            frame::unmask(&mut scratch.bytes[payload.clone()], header.mask);
            scratch.unread.start = payload.end;
            return Ok(Taken::There(payload, header.opcode == frame::TEXT));
        }

        let work = begin(&mut self.work, &mut shared.spare);
        let mut begun = Vec::new();
        if work.to_come == 0 {
            let had = work.begun.len();
            let unread = scratch.unread();
            work.begun.extend_from_slice(&unread[..unread.len().min(frame::CONTROL_FRAME_BYTES_MAX - had)]);
            let header = Header::parse(&work.begun, payload_max)?;
            // Control frames are taken as a whole: they always pass, and shall take nothing while they wait.
            let needed = header.map(|header| if header.is_control() { header.len() } else { header.bytes });
            let (Some(header), Some(needed)) = (header, needed.filter(|needed| *needed <= work.begun.len()))
            else {
                scratch.unread = 0..0;
                work.charge(&mut shared.budget);
                return Ok(Taken::Other);
            };
            scratch.unread.start += needed - had;
            begun = mem::take(&mut work.begun);
            begun.truncate(needed);
            if header.opcode == frame::CLOSE {
                frame::unmask(&mut begun[header.bytes..], header.mask);
                return self.take_close(&begun[header.bytes..], shared).map(|()| Taken::Other);
            }
            if header.opcode == frame::PONG {
                // That it came is all that it says.
                return Ok(Taken::Other);
            }
            if !header.is_control() {
                header.check_place(work.unfinished.then_some(work.incoming), payload_max)?;
                if !shared.budget.allows(CODEC_BYTES + 2 * header.payload) {
                    return Err(End::NoMemory);
                }
                work.to_come = header.payload;
                work.unfinished = !header.fin;
                work.incoming += header.payload;
            }
        }
        let unread = scratch.unread();
        let payload = &unread[..unread.len().min(work.to_come)];
        let (codec, mut wire) = work.codec([&begun, payload], false, shared);
        let read = codec.read(&mut wire);
        work.to_come -= payload.len();
        scratch.unread.start += payload.len();
        if work.is_between_messages() {
            work.incoming = 0;
        }
        work.charge(&mut shared.budget);
        match read {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                scratch.message = message;
                Ok(Taken::Message)
            }
            // For a ping, the codec has a pong ready.
            Ok(_) => Ok(Taken::Other),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Taken::Other),
            Err(error) => Err(End::of(&error)),
        }
    }

    /// Takes a Close, which is answered with its like, or is the answer to ours.
    fn take_close(&mut self, payload: &[u8], shared: &mut Shared) -> Result<(), End> {
        frame::check_close(payload)?;
        if self.is_open() {
            let work = begin(&mut self.work, &mut shared.spare);
            // A pong that still waits goes before it.
            work.push_codec(true, shared);
            work.push(frame::CLOSE, payload, shared);
        }
        self.closed = true;
        self.finish(End::Left, shared.now);
        Ok(())
    }
}
