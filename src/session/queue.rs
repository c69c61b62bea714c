//! The outbound queue of one connection.
//!
//! Messages wait in the order in which they were queued. Forwarded messages may fill the queue up to its limit; the
//! server's own messages have a reserve beyond that. When the kernel's buffer is full, control frames (RFC 6455 section
//! 5.5) wait apart and are sent at the next frame boundary, ahead of the messages: a ping that waited behind a full queue
//! would tell nothing about the peer.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use super::buffers::{Shared, Work};
use super::{End, Session, Stream, frame};
use crate::limits::{ALWAYS_HELD_BYTES, CONTROL_BYTES_MAX, QUEUE_BYTES_RESERVE, STALL_TIME_MAX};

impl<S: Stream> Session<S> {
    /// Returns whether the queue has room to forward all of these. A session that is no longer open accepts and discards
    /// them.
    pub fn has_room(&mut self, texts: &[String], shared: &Shared) -> bool {
        if !self.is_open() {
            return true;
        }
        let bytes: usize = texts.iter().map(|text| frame::len(text.len())).sum();
        let queued = self.queued_bytes();
        let fits = queued + bytes <= shared.config.queue_bytes_max() && fits_memory(queued, bytes, shared);
        if !fits {
            self.note_refusal();
        }
        fits
    }

    /// Queues a text message of the server itself. See [`Session::send_binary`].
    pub fn send(&mut self, text: String, shared: &mut Shared) {
        self.send_frame(frame::TEXT, text.as_bytes(), shared);
    }

    /// Queues a binary message of the server itself. It may use the reserve of the queue. A peer that has taken bytes
    /// lately is also sent the first message that does not fit into the reserve. A peer that would miss a message is
    /// disconnected.
    pub fn send_binary(&mut self, bytes: &[u8], shared: &mut Shared) {
        self.send_frame(frame::BINARY, bytes, shared);
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8], shared: &mut Shared) {
        if !self.is_open() {
            return;
        }
        let bytes = frame::len(payload.len());
        let queued = self.queued_bytes();
        if !fits_memory(queued, bytes, shared) {
            self.note_refusal();
            return self.close(End::NoMemory, shared);
        }
        let max = shared.config.queue_bytes_max() + QUEUE_BYTES_RESERVE;
        let fits = queued + bytes <= max || (queued <= max && self.takes_bytes(shared.now));
        if !fits {
            self.note_refusal();
            return self.close(End::Slow, shared);
        }
        self.queue(shared, |queue, now| queue.push(opcode, payload, now));
    }

    /// Bytes of messages that wait to be sent.
    fn queued_bytes(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.queue.message_bytes())
    }

    /// Returns whether the peer has taken bytes from its queue lately.
    fn takes_bytes(&self, now: Duration) -> bool {
        self.work.as_ref().is_none_or(|work| now - work.queue.progress < STALL_TIME_MAX)
    }

    /// Notes that something did not fit into the queue. If the peer has taken everything, it is not slow.
    fn note_refusal(&mut self) {
        if let Some(work) = self.work.as_mut().filter(|work| work.queue.message_bytes() > 0) {
            work.queue.refused = true;
        }
    }

    /// Queues a ping, ahead of messages that wait.
    pub fn ping(&mut self, shared: &mut Shared) {
        if self.is_open() {
            self.queue(shared, Queue::push_ping);
        }
    }

    /// Queues the answer to a ping, ahead of messages that wait.
    pub fn pong(&mut self, payload: Vec<u8>, shared: &mut Shared) {
        if self.is_open() {
            let max = shared.config.queue_bytes_max();
            self.queue(shared, |queue, now| queue.answer_ping(payload, max, now));
        }
    }

    /// Changes the queue, and has the budget count what it needs.
    #[inline]
    pub(super) fn queue(&mut self, shared: &mut Shared, change: impl FnOnce(&mut Queue, Duration)) {
        let work = Work::begin(&mut self.work, shared);
        change(&mut work.queue, shared.now);
        work.charge(&mut shared.budget);
    }
}

/// Returns whether the memory limit allows a queue of `queued` bytes to grow by `bytes`. A buffer that grows may come to
/// have twice the room it needs.
fn fits_memory(queued: usize, bytes: usize, shared: &Shared) -> bool {
    queued + bytes <= ALWAYS_HELD_BYTES || shared.budget.allows(queued + 2 * bytes)
}

/// What a call of [`Queue::write`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes that the stream has taken.
    pub bytes: usize,
    /// Whether the stream was full before and has taken bytes again: the peer's TCP has acknowledged some.
    pub acknowledged: bool,
}

/// Bytes that wait to be sent to one peer.
#[derive(Default)]
pub(super) struct Queue {
    /// Frames in order, or the response to a request. The first `sent` bytes of it are written.
    bytes: Vec<u8>,
    sent: usize,
    /// Where the frame ends that is being sent. Equal to `sent` at a frame boundary.
    frame_end: usize,
    /// Control frames that go ahead of `bytes` at the next frame boundary. The first `control_sent` bytes are written.
    control: Vec<u8>,
    control_sent: usize,
    /// Whether a ping is in `control`: one is enough.
    is_ping_waiting: bool,
    /// The payload of the last ping, as long as there is no room for its answer.
    unanswered: Option<Vec<u8>>,
    /// When the stream last took a byte, or the queue ceased to be empty.
    progress: Duration,
    /// Whether the stream takes nothing at the moment.
    is_blocked: bool,
    /// Whether something found no room since the peer last took a byte.
    refused: bool,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.message_bytes() == 0 && self.control.is_empty()
    }

    /// Bytes of messages that wait, without control frames that wait apart.
    fn message_bytes(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.control.capacity()
    }

    /// Puts the response to a request into the empty queue.
    pub fn respond(&mut self, response: Vec<u8>, now: Duration) {
        self.sent = 0;
        self.frame_end = response.len();
        self.bytes = response;
        self.progress = now;
    }

    /// Appends a frame.
    #[inline]
    pub fn push(&mut self, opcode: u8, payload: &[u8], now: Duration) {
        if self.is_empty() {
            self.progress = now;
        }
        frame::push(&mut self.bytes, opcode, payload);
    }

    /// Queues a ping, unless one waits already.
    fn push_ping(&mut self, now: Duration) {
        if !self.is_blocked {
            return self.push(frame::PING, &[], now);
        }
        if !self.is_ping_waiting {
            self.is_ping_waiting = true;
            frame::push(&mut self.control, frame::PING, &[]);
        }
    }

    /// Queues a pong as soon as there is room for it. Of several pings that wait for that, only the last is answered
    /// (RFC 6455 section 5.5.3).
    fn answer_ping(&mut self, payload: Vec<u8>, max: usize, now: Duration) {
        self.unanswered = Some(payload);
        self.push_pong(max, now);
    }

    fn push_pong(&mut self, max: usize, now: Duration) {
        let Some(payload) = &self.unanswered else { return };
        let bytes = frame::len(payload.len());
        let fits = if self.is_blocked {
            self.control.len() + bytes <= CONTROL_BYTES_MAX
        } else {
            self.message_bytes() + bytes <= max + CONTROL_BYTES_MAX
        };
        if !fits {
            return;
        }
        let Some(payload) = self.unanswered.take() else { return };
        if self.is_blocked {
            frame::push(&mut self.control, frame::PONG, &payload);
        } else {
            self.push(frame::PONG, &payload, now);
        }
    }

    /// Appends a Close frame, whatever there is room for. Nothing may follow it: a pong that still waits goes before it, or
    /// is dropped.
    pub fn push_close(&mut self, payload: &[u8], now: Duration) {
        self.push_pong(usize::MAX / 2, now);
        self.unanswered = None;
        self.push(frame::CLOSE, payload, now);
    }

    /// Returns whether more waits than may, and the peer takes nothing of it.
    pub fn is_stalled(&self, max: usize, now: Duration) -> bool {
        (self.refused || self.message_bytes() > max) && now - self.progress >= STALL_TIME_MAX
    }

    /// Writes as much as the stream takes.
    pub fn write(&mut self, stream: &mut impl Write, max: usize, now: Duration) -> io::Result<Written> {
        let mut written = Written::default();
        loop {
            self.push_pong(max, now);
            if self.is_empty() {
                self.is_blocked = false;
                return Ok(written);
            }
            let is_control = self.is_control_next();
            match stream.write(self.next_bytes(is_control)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    written.acknowledged |= self.is_blocked;
                    written.bytes += n;
                    self.is_blocked = false;
                    self.progress = now;
                    self.refused = false;
                    self.advance(is_control, n);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_blocked = true;
                    return Ok(written);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether a control frame is the next to be written.
    fn is_control_next(&self) -> bool {
        let is_at_boundary = self.sent == self.frame_end;
        !self.control.is_empty() && (is_at_boundary || self.control_sent > 0)
    }

    /// Returns the bytes to write next. While control frames wait, the message before them goes only to its end.
    fn next_bytes(&self, is_control: bool) -> &[u8] {
        if is_control {
            return &self.control[self.control_sent..];
        }
        let end = if self.control.is_empty() { self.bytes.len() } else { self.frame_end };
        &self.bytes[self.sent..end]
    }

    /// Records that the stream has taken this many bytes.
    fn advance(&mut self, is_control: bool, written: usize) {
        if is_control {
            self.control_sent += written;
            if self.control_sent == self.control.len() {
                self.control = Vec::new();
                self.control_sent = 0;
                self.is_ping_waiting = false;
            }
            return;
        }
        self.sent += written;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
            self.frame_end = 0;
            return;
        }
        while self.frame_end < self.sent {
            self.frame_end += frame::len_of_ours(&self.bytes[self.frame_end..]);
        }
        // Moving what is left only when it is the smaller half makes the cost of all moves linear.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.frame_end -= self.sent;
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    /// A stream that takes a number of bytes and then blocks.
    #[derive(Default)]
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= n;
            self.taken.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, payload) in frames {
            frame::push(&mut bytes, *opcode, payload);
        }
        bytes
    }

    #[test]
    fn control_frames_overtake_messages_at_the_next_frame_boundary() {
        let messages: Vec<Vec<u8>> = [1, 126, 70_000, 5].map(|length| vec![b'x'; length]).to_vec();
        let total: usize = messages.iter().map(|message| frame::len(message.len())).sum();
        let cuts = (0..300).chain((300..total - 300).step_by(997)).chain(total - 300..total);
        for cut in cuts {
            let mut queue = Queue::default();
            let mut stream = Narrow { room: cut, ..Narrow::default() };
            for message in &messages {
                queue.push(frame::TEXT, message, NOW);
            }
            queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            queue.push_ping(NOW);
            queue.push_ping(NOW);
            queue.answer_ping(b"hi".to_vec(), usize::MAX / 2, NOW);
            assert_eq!(queue.message_bytes(), total - cut);
            // The frame that was begun is finished first.
            let mut expected = Vec::new();
            let mut is_overtaken = false;
            for message in &messages {
                if !is_overtaken && expected.len() >= cut {
                    is_overtaken = true;
                    expected.extend(frames(&[(frame::PING, b""), (frame::PONG, b"hi")]));
                }
                expected.extend(frames(&[(frame::TEXT, message)]));
            }
            if !is_overtaken {
                expected.extend(frames(&[(frame::PING, b""), (frame::PONG, b"hi")]));
            }
            // In pieces of any size.
            while !queue.is_empty() {
                stream.room = 1 + cut % 3000;
                queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            }
            assert!(stream.taken == expected, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_taken_from_a_full_stream_are_acknowledged() {
        let mut queue = Queue::default();
        let mut stream = Narrow { room: 10, ..Narrow::default() };
        queue.push(frame::TEXT, &[b'x'; 98], NOW);
        let write = |queue: &mut Queue, stream: &mut Narrow| queue.write(stream, 1000, NOW).unwrap();
        assert_eq!(write(&mut queue, &mut stream), Written { bytes: 10, acknowledged: false });
        assert_eq!(write(&mut queue, &mut stream), Written { bytes: 0, acknowledged: false });
        stream.room = 20;
        assert_eq!(write(&mut queue, &mut stream), Written { bytes: 20, acknowledged: true });
        stream.room = 1000;
        assert_eq!(write(&mut queue, &mut stream), Written { bytes: 70, acknowledged: true });
        queue.push(frame::TEXT, b"x", NOW);
        assert_eq!(write(&mut queue, &mut stream), Written { bytes: 3, acknowledged: false });
    }

    #[test]
    fn pongs_that_wait_are_bounded_and_the_last_ping_is_answered() {
        let mut queue = Queue::default();
        let mut stream = Narrow { room: 1, ..Narrow::default() };
        queue.push(frame::TEXT, b"x", NOW);
        queue.write(&mut stream, 1000, NOW).unwrap();
        for i in 0..10_000_u32 {
            queue.answer_ping(i.to_be_bytes().to_vec(), 1000, NOW);
        }
        assert!(queue.control.len() <= CONTROL_BYTES_MAX);
        stream.room = usize::MAX;
        queue.write(&mut stream, 1000, NOW).unwrap();
        assert!(stream.taken.ends_with(&frames(&[(frame::PONG, &9999_u32.to_be_bytes())])));
    }

    #[test]
    fn a_long_queue_taken_in_small_pieces_is_not_moved_for_each_piece() {
        let mut queue = Queue::default();
        let mut stream = Narrow::default();
        for _ in 0..1000 {
            queue.push(frame::TEXT, &[b'x'; 4000], NOW);
        }
        let mut moves = 0;
        while !queue.is_empty() {
            stream.room = 1000;
            let before = queue.bytes.len();
            queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            moves += usize::from(queue.bytes.len() < before);
        }
        assert!(moves < 30, "{moves} moves of 4 MB in 4,000 pieces");
    }
}
