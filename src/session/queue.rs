//! Queues the output of one connection and writes it.
//!
//! Messages are sent in the order in which they were queued. Forwarded messages may fill the queue up to its limit;
//! messages that the server sends (replies, notices, and offers and candidates that a room delivers) have a reserve beyond
//! it. While the send buffer of the kernel is full, pings and pongs (RFC 6455 section 5.5) are queued separately and are
//! sent at the next frame boundary, ahead of the messages: a ping behind a full queue would prove nothing about the peer.
//! At other times they are appended to the messages. A Close frame is always appended.
//!
//! Usually the queue is one vector of bytes. A message for many peers is one [`SharedFrame`], to which all their queues
//! refer: it is behind the vector, and so is everything that is queued after it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::ops::Deref;
use std::time::Duration;

use super::buffers::{Buffers, SharedState};
use super::shared_frame::SharedFrame;
use super::{CloseReason, Session, Stream, frame};
use crate::limits::{
    ALWAYS_HELD_BYTES, CONTROL_QUEUE_BYTES_MAX, QUEUE_BYTES_RESERVE, SHARED_FRAME_OVERHEAD_BYTES,
    STALL_TIME_MAX, WRITE_SLICES_MAX,
};

impl<S: Stream> Session<S> {
    /// Returns whether the queue has space to forward all of these messages.
    ///
    /// If not, the rejection is recorded: a peer whose queue rejects messages is closed when it makes no progress for
    /// [`STALL_TIME_MAX`]. A session that is no longer open accepts messages and discards them.
    pub fn can_queue(&mut self, texts: &[String], shared: &SharedState) -> bool {
        if !self.is_open() {
            return true;
        }
        let bytes: usize = texts.iter().map(|text| frame::encoded_len(text.len())).sum();
        let queued = self.queued_bytes();
        let fits_queue = queued + bytes <= self.queue_bytes_max(shared);
        let can_queue = fits_queue && self.fits_memory(bytes, shared);
        if !can_queue {
            self.record_rejection();
        }
        can_queue
    }

    /// Queues a forwarded message without checking limits: the caller has called [`Session::can_queue`].
    pub fn push_forwarded(&mut self, text: String, shared: &mut SharedState) {
        if self.is_open() {
            self.update_queue(shared, |queue, now| queue.push(frame::TEXT, text.as_bytes(), now));
        }
    }

    /// Queues a forwarded message that other sessions share, if the queue has space for it. Returns whether it has.
    ///
    /// See [`Session::can_queue`] for the limits, and for what follows if there is no space.
    pub fn forward_shared(&mut self, frame: &SharedFrame, shared: &mut SharedState) -> bool {
        if !self.is_open() {
            return true;
        }
        let queued = self.queued_bytes();
        let fits_queue = queued + frame.len() <= self.queue_bytes_max(shared);
        // The memory of the frame itself is charged already.
        let (held, growth) = match &self.buffers {
            Some(buffers) => (buffers.queue.held_bytes(), buffers.queue.segments_growth()),
            None => (0, SEGMENTS_MIN * size_of::<Segment>()),
        };
        let is_small = held + frame.len() + SHARED_FRAME_OVERHEAD_BYTES <= ALWAYS_HELD_BYTES;
        let has_space = fits_queue && (is_small || shared.budget.allows(growth));
        if has_space {
            self.update_queue(shared, |queue, now| queue.push_segment(Segment::Shared(frame.clone()), now));
        } else {
            self.record_rejection();
        }
        has_space
    }

    /// Returns whether more than half of the queue is used.
    pub fn is_congested(&self, shared: &SharedState) -> bool {
        self.is_open() && self.queued_bytes() > self.queue_bytes_max(shared) / 2
    }

    /// Returns the bytes of messages that the queue holds at most, without the reserve for messages of the server.
    pub(super) fn queue_bytes_max(&self, shared: &SharedState) -> usize {
        shared.config.queue_bytes_max(self.has_large_queue)
    }

    /// Queues a text message of the server itself. See [`Session::send_binary`].
    pub fn send(&mut self, text: String, shared: &mut SharedState) {
        self.send_frame(frame::TEXT, text.as_bytes(), shared);
    }

    /// Queues a binary message of the server itself.
    ///
    /// The message may use the reserve of the queue. While the peer takes bytes, a message is also accepted if at most
    /// [`Config::queue_bytes_burst_max`](crate::config::Config::queue_bytes_burst_max) beyond the reserve is queued before it.
    /// A peer that would miss a message is disconnected.
    pub fn send_binary(&mut self, bytes: &[u8], shared: &mut SharedState) {
        self.send_frame(frame::BINARY, bytes, shared);
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8], shared: &mut SharedState) {
        if !self.is_open() {
            return;
        }
        let bytes = frame::encoded_len(payload.len());
        let queued = self.queued_bytes();
        if !self.fits_memory(bytes, shared) {
            self.record_rejection();
            self.close(CloseReason::NoMemory, shared);
            return;
        }
        let max = self.queue_bytes_max(shared) + QUEUE_BYTES_RESERVE;
        let fits_queue = queued + bytes <= max;
        let burst_max = max + shared.config.queue_bytes_burst_max();
        let may_exceed_reserve = queued <= burst_max && self.is_making_progress(shared.now);
        if !fits_queue && !may_exceed_reserve {
            self.record_rejection();
            self.close(CloseReason::Slow, shared);
            return;
        }
        self.update_queue(shared, |queue, now| queue.push(opcode, payload, now));
    }

    /// Returns the bytes of queued messages.
    fn queued_bytes(&self) -> usize {
        match &self.buffers {
            Some(buffers) => buffers.queue.message_bytes(),
            None => 0,
        }
    }

    /// Returns whether the memory limit allows the queue to hold further bytes.
    ///
    /// A small queue is always allowed, and so are bytes that fit into memory that is charged already.
    fn fits_memory(&self, bytes: usize, shared: &SharedState) -> bool {
        let (held, growth) = match &self.buffers {
            Some(buffers) => (buffers.queue.held_bytes(), buffers.queue.growth(bytes)),
            None => (0, 2 * bytes),
        };
        let is_small = held + bytes <= ALWAYS_HELD_BYTES;
        is_small || growth == 0 || shared.budget.allows(growth)
    }

    /// Returns whether the peer has recently taken bytes, or the queue is empty.
    fn is_making_progress(&self, now: Duration) -> bool {
        match &self.buffers {
            Some(buffers) => buffers.queue.is_empty() || now - buffers.queue.last_progress < STALL_TIME_MAX,
            None => true,
        }
    }

    /// Records that the queue had no room for a message.
    ///
    /// A peer whose queue is empty is not slow: the message is too large, or the memory limit is reached.
    fn record_rejection(&mut self) {
        if let Some(buffers) = &mut self.buffers
            && buffers.queue.message_bytes() > 0
        {
            buffers.queue.has_rejected = true;
        }
    }

    /// Queues a ping: ahead of the messages while the stream is blocked, else behind them.
    ///
    /// The pong that answers it costs the peer nothing.
    pub fn ping(&mut self, shared: &mut SharedState) {
        if self.is_open() {
            let mut is_queued = false;
            self.update_queue(shared, |queue, now| is_queued = queue.push_ping(now));
            self.awaited_pongs = self.awaited_pongs.saturating_add(u8::from(is_queued));
        }
    }

    /// Queues the pong for a ping: ahead of the messages while the stream is blocked, else behind them.
    pub fn pong(&mut self, payload: Vec<u8>, shared: &mut SharedState) {
        if self.is_open() {
            let queue_max = self.queue_bytes_max(shared);
            self.update_queue(shared, |queue, now| queue.answer_ping(payload, queue_max, now));
        }
    }

    /// Changes the queue and charges the memory budget for its new capacity.
    #[inline]
    pub(super) fn update_queue(
        &mut self,
        shared: &mut SharedState,
        change: impl FnOnce(&mut Queue, Duration),
    ) {
        let buffers = Buffers::acquire(&mut self.buffers, shared);
        change(&mut buffers.queue, shared.now);
        buffers.update_budget(&mut shared.budget);
    }
}

/// Describes the result of [`Queue::write`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes that the stream has accepted.
    pub bytes: usize,
    /// Whether the stream has accepted bytes after it was full: the peer's TCP has acknowledged some.
    pub acknowledged: bool,
}

/// A frame behind the vector of bytes of a queue.
enum Segment {
    /// A frame to which other queues refer, too. Its memory is charged once for all of them.
    Shared(SharedFrame),
    /// A frame that was queued behind a shared one.
    Own(Box<[u8]>),
}

impl Deref for Segment {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Segment::Shared(frame) => frame,
            Segment::Own(frame) => frame,
        }
    }
}

/// The segments for which a queue allocates memory when it gets its first one (`VecDeque`).
const SEGMENTS_MIN: usize = 4;

/// Holds bytes to be sent to one peer.
#[derive(Default)]
pub(super) struct Queue {
    /// Encoded frames in order, or the response to a request. The first `sent` bytes are written.
    bytes: Vec<u8>,
    sent: usize,
    /// The end of the frame that is being sent, as an index of `bytes`. Equal to `sent` at a frame boundary.
    frame_end: usize,
    /// Frames behind `bytes`. The first `segment_sent` bytes of the first one are written.
    segments: VecDeque<Segment>,
    segment_sent: usize,
    /// The unsent bytes of `segments`.
    segments_bytes: usize,
    /// The bytes of those segments that are not shared.
    own_segments_bytes: usize,
    /// The unsent bytes up to the end of the last pong among the messages. No later pong may overtake it.
    unsent_to_pong: usize,
    /// Control frames to be sent ahead of the messages at the next frame boundary. The first `control_sent` bytes are written.
    control: Vec<u8>,
    control_sent: usize,
    /// Whether `control` contains a ping. A second ping would prove nothing more.
    is_ping_queued: bool,
    /// The payload of the last ping of the peer, until the queue has room for the pong.
    unanswered_ping: Option<Vec<u8>>,
    /// When the stream last accepted a byte, or when the queue became non-empty.
    last_progress: Duration,
    /// Whether the last write returned `WouldBlock`.
    is_blocked: bool,
    /// Whether a message was rejected since the stream last accepted a byte.
    has_rejected: bool,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.message_bytes() == 0 && self.control.is_empty()
    }

    /// Returns the unsent bytes of messages, without the separate control frames.
    fn message_bytes(&self) -> usize {
        self.bytes.len() - self.sent + self.segments_bytes
    }

    /// Returns the bytes of memory that the unsent messages need, as if no frame was shared.
    fn held_bytes(&self) -> usize {
        self.message_bytes() + self.segments.len() * SHARED_FRAME_OVERHEAD_BYTES
    }

    /// Returns the further bytes of memory that the queue may allocate for a frame of this many bytes.
    ///
    /// A vector that grows may allocate twice the bytes that it needs.
    fn growth(&self, bytes: usize) -> usize {
        if !self.segments.is_empty() {
            bytes + self.segments_growth()
        } else if bytes <= self.spare_bytes() {
            0
        } else {
            self.message_bytes() + 2 * bytes
        }
    }

    /// Returns the further bytes of memory that the queue allocates for the place of another segment. They double.
    fn segments_growth(&self) -> usize {
        if self.segments.len() < self.segments.capacity() {
            0
        } else {
            self.segments.capacity().max(SEGMENTS_MIN) * size_of::<Segment>()
        }
    }

    /// Returns the bytes that fit without a further allocation.
    fn spare_bytes(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Returns whether the stream takes nothing at the moment.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Returns the allocated bytes.
    pub fn capacity(&self) -> usize {
        let segments = self.segments.capacity() * size_of::<Segment>() + self.own_segments_bytes;
        self.bytes.capacity() + segments + self.control.capacity()
    }

    /// Queues the response to a request. The queue must be empty.
    pub fn push_response(&mut self, response: Vec<u8>, now: Duration) {
        self.sent = 0;
        self.frame_end = response.len();
        self.bytes = response;
        self.last_progress = now;
    }

    /// Appends a frame.
    #[inline]
    pub fn push(&mut self, opcode: u8, payload: &[u8], now: Duration) {
        if !self.segments.is_empty() {
            return self.push_own_segment(opcode, payload, now);
        }
        if self.is_empty() {
            self.last_progress = now;
        }
        self.reserve(frame::encoded_len(payload.len()));
        frame::encode(&mut self.bytes, opcode, payload);
    }

    /// Appends a frame behind a shared one.
    #[cold]
    fn push_own_segment(&mut self, opcode: u8, payload: &[u8], now: Duration) {
        let mut frame = Vec::with_capacity(frame::encoded_len(payload.len()));
        frame::encode(&mut frame, opcode, payload);
        self.own_segments_bytes += frame.len();
        self.push_segment(Segment::Own(frame.into_boxed_slice()), now);
    }

    fn push_segment(&mut self, segment: Segment, now: Duration) {
        if self.is_empty() {
            self.last_progress = now;
        }
        self.segments_bytes += segment.len();
        self.segments.push_back(segment);
    }

    /// Makes room for further bytes.
    ///
    /// The capacity is never more than twice the unsent bytes of the fullest moment, or the bytes of one frame: limits and
    /// estimates of memory count on it.
    #[inline]
    fn reserve(&mut self, bytes: usize) {
        if self.spare_bytes() < bytes {
            self.grow(bytes);
        }
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        // Moving the rest pays off only if it frees enough, so that the total cost of all moves is linear.
        let is_much_sent = self.sent >= self.bytes.len() / 4;
        self.discard_sent();
        if is_much_sent && self.spare_bytes() >= bytes {
            return;
        }
        let needed = self.bytes.len() + bytes;
        let capacity = (2 * self.bytes.capacity()).clamp(needed, 2 * needed);
        self.bytes.reserve_exact(capacity - self.bytes.len());
    }

    /// Moves the unsent bytes to the front.
    fn discard_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.frame_end -= self.sent;
        self.sent = 0;
    }

    /// Appends a control frame, which is always allowed.
    ///
    /// It may exceed the memory limit, so a large vector grows by a fixed step instead of doubling.
    fn push_control(&mut self, opcode: u8, payload: &[u8], now: Duration) {
        let bytes = frame::encoded_len(payload.len());
        if self.bytes.capacity() >= CONTROL_QUEUE_BYTES_MAX && self.spare_bytes() < bytes {
            // More than one frame needs, so that many of them do not move the vector each time.
            self.bytes.reserve_exact(CONTROL_QUEUE_BYTES_MAX);
        }
        self.push(opcode, payload, now);
    }

    /// Queues a ping, unless one is already queued separately.
    /// Returns whether a ping was queued.
    fn push_ping(&mut self, now: Duration) -> bool {
        if !self.is_blocked {
            self.push_control(frame::PING, &[], now);
            return true;
        }
        if self.is_ping_queued {
            return false;
        }
        self.is_ping_queued = true;
        frame::encode(&mut self.control, frame::PING, &[]);
        true
    }

    /// Queues a pong as soon as the queue has room for it.
    ///
    /// If several pings wait for room, only the last is answered (RFC 6455 section 5.5.3).
    fn answer_ping(&mut self, payload: Vec<u8>, queue_max: usize, now: Duration) {
        self.unanswered_ping = Some(payload);
        self.push_pong(queue_max, now);
    }

    /// Queues the pong for the unanswered ping, if the queue has room for it.
    fn push_pong(&mut self, queue_max: usize, now: Duration) {
        let Some(payload) = &self.unanswered_ping else {
            return;
        };
        let bytes = frame::encoded_len(payload.len());
        let can_queue = if self.is_blocked {
            // It would overtake a pong that was queued between messages before the stream blocked.
            let is_pong_unsent = self.unsent_to_pong > 0;
            !is_pong_unsent && self.control.len() + bytes <= CONTROL_QUEUE_BYTES_MAX
        } else {
            self.message_bytes() + bytes <= queue_max + CONTROL_QUEUE_BYTES_MAX
        };
        if !can_queue {
            return;
        }
        let Some(payload) = self.unanswered_ping.take() else {
            return;
        };
        if self.is_blocked {
            frame::encode(&mut self.control, frame::PONG, &payload);
        } else {
            self.push_control(frame::PONG, &payload, now);
            self.unsent_to_pong = self.message_bytes();
        }
    }

    /// Appends a Close frame, regardless of the limit of the queue.
    ///
    /// No frame may follow a Close frame: an unanswered ping is answered before it, or never.
    pub fn push_close(&mut self, payload: &[u8], now: Duration) {
        self.push_pong(usize::MAX / 2, now);
        self.unanswered_ping = None;
        self.push_control(frame::CLOSE, payload, now);
    }

    /// Returns whether the queue is full and the peer has stopped reading.
    pub fn is_stalled(&self, queue_max: usize, now: Duration) -> bool {
        let is_full = self.has_rejected || self.message_bytes() > queue_max;
        is_full && now - self.last_progress >= STALL_TIME_MAX
    }

    /// Writes until the queue is empty or the stream blocks.
    pub fn write(&mut self, stream: &mut impl Write, queue_max: usize, now: Duration) -> io::Result<Written> {
        let mut written = Written::default();
        loop {
            if self.unanswered_ping.is_some() {
                self.push_pong(queue_max, now);
            }
            if self.is_empty() {
                self.is_blocked = false;
                return Ok(written);
            }
            let is_control = self.is_control_next();
            let result = if is_control {
                stream.write(&self.control[self.control_sent..])
            } else {
                self.write_messages(stream)
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    written.acknowledged |= self.is_blocked;
                    written.bytes += n;
                    self.is_blocked = false;
                    self.last_progress = now;
                    self.has_rejected = false;
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

    /// Returns whether the next write sends a separate control frame.
    fn is_control_next(&self) -> bool {
        let is_at_boundary = self.sent == self.frame_end && self.segment_sent == 0;
        !self.control.is_empty() && (is_at_boundary || self.control_sent > 0)
    }

    /// Writes messages once.
    ///
    /// While control frames are queued separately, only the current frame is completed before them.
    #[inline]
    fn write_messages(&self, stream: &mut impl Write) -> io::Result<usize> {
        let is_frame_completed = !self.control.is_empty();
        let end = if is_frame_completed { self.frame_end } else { self.bytes.len() };
        let bytes = &self.bytes[self.sent..end];
        if self.segments.is_empty() || (is_frame_completed && !bytes.is_empty()) {
            return stream.write(bytes);
        }
        let slices_max = if is_frame_completed { 1 } else { WRITE_SLICES_MAX };
        self.write_segments(stream, bytes, slices_max)
    }

    /// Writes these bytes and the segments after them once, at most this many slices.
    fn write_segments(&self, stream: &mut impl Write, bytes: &[u8], slices_max: usize) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
        let mut count = 0;
        if !bytes.is_empty() {
            slices[0] = IoSlice::new(bytes);
            count = 1;
        }
        let mut sent = self.segment_sent;
        for segment in self.segments.iter().take(slices_max - count) {
            slices[count] = IoSlice::new(&segment[sent..]);
            count += 1;
            sent = 0;
        }
        stream.write_vectored(&slices[..count])
    }

    /// Records the bytes that the stream has accepted, and frees their memory.
    fn advance(&mut self, is_control: bool, written: usize) {
        if is_control {
            self.control_sent += written;
            if self.control_sent == self.control.len() {
                self.control = Vec::new();
                self.control_sent = 0;
                self.is_ping_queued = false;
            }
            return;
        }
        self.unsent_to_pong = self.unsent_to_pong.saturating_sub(written);
        let unsent = self.bytes.len() - self.sent;
        if written >= unsent {
            self.bytes.clear();
            self.sent = 0;
            self.frame_end = 0;
            if written > unsent {
                self.advance_segments(written - unsent);
            }
            return;
        }
        self.sent += written;
        while self.frame_end < self.sent {
            self.frame_end += frame::first_frame_len(&self.bytes[self.frame_end..]);
        }
        // The rest is moved only when it is the smaller half, so that the total cost of all moves is linear.
        if self.sent > self.bytes.len() / 2 {
            self.discard_sent();
        }
    }

    /// Records bytes of segments that the stream has accepted, and drops the segments that are sent.
    fn advance_segments(&mut self, written: usize) {
        self.segments_bytes -= written;
        self.segment_sent += written;
        while let Some(first) = self.segments.front()
            && self.segment_sent >= first.len()
        {
            self.segment_sent -= first.len();
            if let Segment::Own(frame) = first {
                self.own_segments_bytes -= frame.len();
            }
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    /// Accepts a number of bytes and then blocks.
    #[derive(Default)]
    struct LimitedStream {
        room: usize,
        accepted: Vec<u8>,
    }

    impl Write for LimitedStream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= n;
            self.accepted.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Accepts a number of bytes of several slices and then blocks.
    #[derive(Default)]
    struct VectoredStream(LimitedStream);

    impl Write for VectoredStream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            assert!(slices.len() <= WRITE_SLICES_MAX && slices.iter().all(|slice| !slice.is_empty()));
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.0.write(&bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shared_frame(payload: &[u8]) -> Segment {
        let shared = SharedState::new(crate::config::Config::default());
        Segment::Shared(SharedFrame::text(str::from_utf8(payload).unwrap(), &shared))
    }

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, payload) in frames {
            frame::encode(&mut bytes, *opcode, payload);
        }
        bytes
    }

    #[test]
    fn control_frames_do_not_double_a_large_queue() {
        let mut queue = Queue::default();
        queue.push(frame::TEXT, &[b'x'; 100_000], NOW);
        queue.bytes.shrink_to_fit();
        queue.push_ping(NOW);
        for _ in 0..20 {
            queue.answer_ping(vec![b'p'; 125], usize::MAX / 2, NOW);
        }
        queue.push_close(&[3, 232], NOW);
        assert!(queue.capacity() <= queue.message_bytes() + CONTROL_QUEUE_BYTES_MAX);
    }

    #[test]
    fn capacity_is_at_most_twice_the_largest_number_of_unsent_bytes() {
        for written in [1, 10, 100, 1000, 2000, 3000] {
            let mut queue = Queue::default();
            let mut stream = LimitedStream::default();
            let mut unsent_max = 0;
            let mut growths = 0;
            for step in 0..5000 {
                let before = queue.capacity();
                queue.push(frame::TEXT, &vec![b'x'; 900 + step % 300], NOW);
                growths += usize::from(queue.capacity() > before);
                unsent_max = unsent_max.max(queue.message_bytes());
                assert!(queue.capacity() <= 2 * unsent_max, "{} bytes for {unsent_max}", queue.capacity());
                stream.room = written;
                queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
                stream.accepted.clear();
            }
            assert!(growths < 40, "{growths} growths");
        }
    }

    #[test]
    fn pong_does_not_overtake_an_earlier_pong() {
        let mut queue = Queue::default();
        let mut stream = LimitedStream { room: 1010, ..LimitedStream::default() };
        let messages = [vec![b'x'; 1000], vec![b'y'; 10]];
        queue.push(frame::TEXT, &messages[0], NOW);
        queue.push(frame::TEXT, &messages[1], NOW);
        queue.answer_ping(b"first".to_vec(), usize::MAX / 2, NOW);
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        queue.answer_ping(b"second".to_vec(), usize::MAX / 2, NOW);
        stream.room = usize::MAX;
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        let expected = [
            (frame::TEXT, &messages[0][..]),
            (frame::TEXT, &messages[1][..]),
            (frame::PONG, b"first"),
            (frame::PONG, b"second"),
        ];
        assert!(stream.accepted == frames(&expected));
    }

    #[test]
    fn control_frames_overtake_messages_at_the_next_frame_boundary() {
        let messages: Vec<Vec<u8>> = [1, 126, 70_000, 5].map(|length| vec![b'x'; length]).to_vec();
        let total: usize = messages.iter().map(|message| frame::encoded_len(message.len())).sum();
        let cuts = (0..300).chain((300..total - 300).step_by(997)).chain(total - 300..total);
        for cut in cuts {
            let mut queue = Queue::default();
            let mut stream = LimitedStream { room: cut, ..LimitedStream::default() };
            for message in &messages {
                queue.push(frame::TEXT, message, NOW);
            }
            queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            assert!(queue.push_ping(NOW));
            queue.push_ping(NOW);
            queue.answer_ping(b"hi".to_vec(), usize::MAX / 2, NOW);
            assert_eq!(queue.message_bytes(), total - cut);
            // The frame that is partly sent is completed first.
            let mut expected = Vec::new();
            let mut is_overaccepted = false;
            for message in &messages {
                if !is_overaccepted && expected.len() >= cut {
                    is_overaccepted = true;
                    expected.extend(frames(&[(frame::PING, b""), (frame::PONG, b"hi")]));
                }
                expected.extend(frames(&[(frame::TEXT, message)]));
            }
            if !is_overaccepted {
                expected.extend(frames(&[(frame::PING, b""), (frame::PONG, b"hi")]));
            }
            // The rest is accepted in pieces of various sizes.
            while !queue.is_empty() {
                stream.room = 1 + cut % 3000;
                queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            }
            assert!(stream.accepted == expected, "cut at {cut}");
        }
    }

    /// Messages, of which those with an odd index are shared by several queues, have the same order and frame boundaries.
    #[test]
    fn control_frames_overtake_shared_frames_at_the_next_frame_boundary() {
        let messages: Vec<Vec<u8>> = [3, 126, 200, 5, 1, 2, 300].map(|length| vec![b'x'; length]).to_vec();
        let total: usize = messages.iter().map(|message| frame::encoded_len(message.len())).sum();
        for (cut, piece) in (0..=total).flat_map(|cut| [(cut, 7), (cut, 1000)]) {
            let mut queue = Queue::default();
            let mut stream = VectoredStream(LimitedStream { room: cut, ..LimitedStream::default() });
            for (index, message) in messages.iter().enumerate() {
                match index % 2 {
                    0 => queue.push(frame::TEXT, message, NOW),
                    _ => queue.push_segment(shared_frame(message), NOW),
                }
            }
            queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            assert_eq!((queue.message_bytes(), queue.is_blocked()), (total - cut, cut < total));
            queue.push_ping(NOW);
            let mut expected = Vec::new();
            let mut is_overtaken = false;
            for message in &messages {
                if !is_overtaken && expected.len() >= cut {
                    is_overtaken = true;
                    expected.extend(frames(&[(frame::PING, b"")]));
                }
                expected.extend(frames(&[(frame::TEXT, message)]));
            }
            if !is_overtaken {
                expected.extend(frames(&[(frame::PING, b"")]));
            }
            while !queue.is_empty() {
                stream.0.room = piece;
                queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
            }
            assert!(stream.0.accepted == expected, "cut at {cut}");
            assert_eq!((queue.segments_bytes, queue.own_segments_bytes, queue.segment_sent), (0, 0, 0));
            assert_eq!(queue.unsent_to_pong, 0);
        }
    }

    #[test]
    fn pong_behind_a_shared_frame_is_not_overtaken() {
        let mut queue = Queue::default();
        let mut stream = VectoredStream(LimitedStream { room: 10, ..LimitedStream::default() });
        let message = [b'x'; 100];
        queue.push_segment(shared_frame(&message), NOW);
        queue.answer_ping(b"first".to_vec(), usize::MAX / 2, NOW);
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        queue.answer_ping(b"second".to_vec(), usize::MAX / 2, NOW);
        stream.0.room = usize::MAX;
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        let expected = [(frame::TEXT, &message[..]), (frame::PONG, b"first"), (frame::PONG, b"second")];
        assert!(stream.0.accepted == frames(&expected));
    }

    #[test]
    fn queue_with_shared_frames_counts_its_own_memory_only() {
        let mut queue = Queue::default();
        let message = vec![b'x'; 10_000];
        queue.push_segment(shared_frame(&message), NOW);
        assert_eq!(queue.capacity(), SEGMENTS_MIN * size_of::<Segment>());
        queue.push(frame::TEXT, &message, NOW);
        let own_bytes = frame::encoded_len(message.len());
        assert_eq!(queue.capacity(), SEGMENTS_MIN * size_of::<Segment>() + own_bytes);
        assert_eq!(queue.message_bytes(), 2 * own_bytes);
        let mut stream = LimitedStream { room: own_bytes, ..LimitedStream::default() };
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        assert_eq!((queue.segments.len(), queue.message_bytes()), (1, own_bytes));
        stream.room = own_bytes;
        queue.write(&mut stream, usize::MAX / 2, NOW).unwrap();
        assert_eq!(queue.capacity(), SEGMENTS_MIN * size_of::<Segment>());
        queue.push(frame::TEXT, b"x", NOW);
        assert!(queue.segments.is_empty(), "the vector is used again");
        assert!(size_of::<Segment>() + size_of::<[usize; 6]>() <= SHARED_FRAME_OVERHEAD_BYTES);
    }

    #[test]
    fn bytes_accepted_by_a_full_stream_are_acknowledged() {
        let mut queue = Queue::default();
        let mut stream = LimitedStream { room: 10, ..LimitedStream::default() };
        queue.push(frame::TEXT, &[b'x'; 98], NOW);
        let write = |queue: &mut Queue, stream: &mut LimitedStream| queue.write(stream, 1000, NOW).unwrap();
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
    fn queued_pongs_are_bounded_and_the_last_ping_is_answered() {
        let mut queue = Queue::default();
        let mut stream = LimitedStream { room: 1, ..LimitedStream::default() };
        queue.push(frame::TEXT, b"x", NOW);
        queue.write(&mut stream, 1000, NOW).unwrap();
        for i in 0..10_000_u32 {
            queue.answer_ping(i.to_be_bytes().to_vec(), 1000, NOW);
        }
        assert!(queue.control.len() <= CONTROL_QUEUE_BYTES_MAX);
        stream.room = usize::MAX;
        queue.write(&mut stream, 1000, NOW).unwrap();
        assert!(stream.accepted.ends_with(&frames(&[(frame::PONG, &9999_u32.to_be_bytes())])));
    }

    #[test]
    fn partial_writes_of_a_long_queue_do_not_move_it_each_time() {
        let mut queue = Queue::default();
        let mut stream = LimitedStream::default();
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
