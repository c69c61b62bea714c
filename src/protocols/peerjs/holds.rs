//! Messages that are held for a peer that is not connected (yet).
//!
//! The unit is a pair: a sender and an absent receiver, by their ids. The time of a pair begins with its first message. If
//! the receiver registers within [`HOLD_TIME`], it gets the messages of all pairs in order of arrival. Otherwise the messages
//! are dropped, and the sender is told once ([`Expired`]). The pair is then remembered for [`HOLD_REMEMBERED_TIME`], so that
//! candidates of the same attempt do not begin another one.
//!
//! A sender is an id and not a connection: it may reconnect while its messages are held, and is still told.
//!
//! Limits: bytes, messages and pairs of one sender; messages and pairs of one receiver, so that its registration causes a
//! limited amount of work; senders that are no longer connected. Memory is reserved for everything that is stored.
//!
//! Invariants, see [`Holds::check`]:
//! - Pairs, receivers, senders and deadlines refer to each other consistently.
//! - A receiver or sender is stored only while it has pairs.
//! - Hash tables are never iterated, so that equal inputs have equal effects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::RandomState;
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;

use super::message::Kind;
use crate::limits::{
    HELD_DEPARTED_SENDERS_MAX, HELD_MESSAGE_BYTES, HELD_MESSAGES_MAX, HELD_PAIR_BYTES, HELD_PAIRS_MAX,
    HELD_PER_RECEIVER_MAX, HOLD_REMEMBERED_TIME, HOLD_TIME,
};
use crate::memory_budget::Reservation;
use crate::timestamp::Timestamp;

/// A time, and a number that increases.
type Deadline = (Timestamp, u64);

/// A room, and the id of a peer in it that may be absent.
type Name = (u32, Rc<str>);

/// All held messages.
pub struct Holds {
    /// Bytes of text that are held for one sender.
    sender_bytes_max: usize,
    pairs: Slab<Pair>,
    receivers: HashMap<Name, Receiver>,
    senders: HashMap<Name, Sender>,
    /// The deadlines of all pairs. Equal ones are in the order in which they were set.
    deadlines: BTreeMap<Deadline, usize>,
    /// The number of pairs in each room that has some.
    pair_counts: HashMap<u32, usize>,
    /// The senders that are not connected.
    departed_sender_count: usize,
    /// The number of the next message or deadline, by which they are ordered.
    next_number: u64,
}

/// A sender and an absent receiver.
struct Pair {
    room: u32,
    source: Rc<str>,
    destination: Rc<str>,
    /// When the messages expire, or when the pair is forgotten.
    deadline: Deadline,
    state: State,
    /// Memory reserved for the pair itself.
    #[expect(dead_code, reason = "dropping it releases the memory")]
    memory: Reservation,
}

enum State {
    /// The receiver may still register.
    Waiting {
        messages: Vec<HeldMessage>,
        /// Whether an offer or answer was dropped at a limit, so that the sender must be told in any case.
        is_incomplete: bool,
    },
    /// The sender was told that the receiver is absent.
    Remembered,
}

struct HeldMessage {
    number: u64,
    kind: Kind,
    text: String,
    #[expect(dead_code, reason = "dropping it releases the memory")]
    memory: Reservation,
}

/// An absent peer.
#[derive(Default)]
struct Receiver {
    /// Its pairs, by sender.
    pairs: BTreeMap<Rc<str>, usize>,
    message_count: usize,
}

/// The sender of held messages.
#[derive(Default)]
struct Sender {
    pairs: Vec<usize>,
    message_count: usize,
    text_bytes: usize,
    is_departed: bool,
}

/// A message to hold.
pub struct NewMessage<'a> {
    /// The index of its room.
    pub room: u32,
    /// The id of its sender.
    pub source: &'a str,
    /// The id of the absent peer.
    pub destination: &'a str,
    /// Its type.
    pub kind: Kind,
    /// The text to deliver.
    pub text: String,
}

/// What [`Holds::hold`] did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is held.
    Held,
    /// It is dropped, because it belongs to an attempt that has expired.
    Late,
    /// It is dropped at a limit. The sender will be told.
    Dropped,
    /// It is dropped at a limit, and nothing is stored: the sender must be told now.
    Refused,
}

/// What a receiver gets when it registers, and which senders must be told that it does not get all.
#[derive(Default)]
pub struct Delivery {
    /// The messages, in order of arrival.
    pub messages: Vec<DeliveredMessage>,
    /// The senders of offers and answers that were dropped at a limit.
    pub incomplete_sources: BTreeSet<Rc<str>>,
}

/// A message for a receiver that has registered.
pub struct DeliveredMessage {
    /// The id of its sender.
    pub source: Rc<str>,
    /// Its type.
    pub kind: Kind,
    /// The text to deliver.
    pub text: String,
}

/// A pair whose time is over.
pub struct Expired {
    /// The index of its room.
    pub room: u32,
    /// The sender, and the absent receiver. `None`: the pair is forgotten, and nobody is told.
    pub ids: Option<(Rc<str>, Rc<str>)>,
}

impl Holds {
    /// Creates an empty table. `key` makes hashes of ids unpredictable.
    pub fn new(sender_bytes_max: usize, key: RandomState) -> Holds {
        Holds {
            sender_bytes_max,
            pairs: Slab::new(),
            receivers: HashMap::with_hasher(key.clone()),
            senders: HashMap::with_hasher(key),
            deadlines: BTreeMap::new(),
            pair_counts: HashMap::new(),
            departed_sender_count: 0,
            next_number: 0,
        }
    }

    // ---- Messages ----

    /// Holds a message for an absent peer, if the limits allow it. `reserve` reserves memory.
    pub fn hold(
        &mut self,
        message: NewMessage<'_>,
        now: Duration,
        mut reserve: impl FnMut(usize) -> Option<Reservation>,
    ) -> Outcome {
        let NewMessage { room, source, destination, kind, text } = message;
        let source: Name = (room, source.into());
        let destination: Name = (room, destination.into());
        let known_pair = self.receivers.get(&destination).and_then(|receiver| receiver.pairs.get(&source.1));
        let pair = match known_pair {
            Some(pair) => *pair,
            None => {
                let is_allowed = self.allows_pair(&source, &destination);
                let Some(memory) = is_allowed.then(|| reserve(HELD_PAIR_BYTES)).flatten() else {
                    return Outcome::Refused;
                };
                self.create_pair(&source, &destination, now, memory)
            }
        };
        if let State::Remembered = self.pairs[pair].state {
            if !kind.is_awaited() {
                return Outcome::Late;
            }
            self.begin_again(pair, now);
        }
        let has_space = self.allows_message(&source, &destination, text.len());
        let memory = has_space.then(|| reserve(HELD_MESSAGE_BYTES + text.len())).flatten();
        let State::Waiting { messages, is_incomplete } = &mut self.pairs[pair].state else {
            unreachable!("a remembered pair has begun again");
        };
        let Some(memory) = memory else {
            *is_incomplete |= kind.is_awaited();
            return Outcome::Dropped;
        };
        let sender = self.senders.get_mut(&source).expect("a pair has a sender");
        sender.message_count += 1;
        sender.text_bytes += text.len();
        let receiver = self.receivers.get_mut(&destination).expect("a pair has a receiver");
        receiver.message_count += 1;
        messages.push(HeldMessage { number: self.next_number, kind, text, memory });
        self.next_number += 1;
        Outcome::Held
    }

    /// Removes and returns everything that is held for a peer, which has registered.
    pub fn take(&mut self, room: u32, id: &str) -> Delivery {
        let mut delivery = Delivery::default();
        if self.receivers.is_empty() {
            return delivery;
        }
        let Some(receiver) = self.receivers.get(&(room, id.into())) else {
            return delivery;
        };
        let pairs: Vec<usize> = receiver.pairs.values().copied().collect();
        let mut numbered = Vec::with_capacity(receiver.message_count);
        for index in pairs {
            let Pair { source, state, .. } = self.remove_pair(index);
            if let State::Waiting { messages, is_incomplete } = state {
                if is_incomplete {
                    delivery.incomplete_sources.insert(source.clone());
                }
                for HeldMessage { number, kind, text, .. } in messages {
                    numbered.push((number, DeliveredMessage { source: source.clone(), kind, text }));
                }
            }
        }
        numbered.sort_by_key(|(number, _)| *number);
        delivery.messages = numbered.into_iter().map(|(_, message)| message).collect();
        delivery
    }

    // ---- Senders ----

    /// Records that a peer has registered, which may be the sender of held messages.
    pub fn on_registered(&mut self, room: u32, id: &str) {
        if self.departed_sender_count == 0 {
            return;
        }
        if let Some(sender) = self.senders.get_mut(&(room, id.into())) {
            self.departed_sender_count -= usize::from(sender.is_departed);
            sender.is_departed = false;
        }
    }

    /// Records that no connection has this id any more.
    ///
    /// Its messages stay until their time is over, unless [`HELD_DEPARTED_SENDERS_MAX`] is reached. Its remembered pairs are
    /// dropped: candidates of the same attempt cannot follow.
    pub fn on_departed(&mut self, room: u32, id: &str) {
        if self.senders.is_empty() {
            return;
        }
        let name = (room, Rc::from(id));
        let Some(sender) = self.senders.get(&name) else {
            return;
        };
        let is_kept = self.departed_sender_count < HELD_DEPARTED_SENDERS_MAX;
        for index in sender.pairs.clone() {
            let is_waiting = matches!(self.pairs[index].state, State::Waiting { .. });
            if !is_kept || !is_waiting {
                self.remove_pair(index);
            }
        }
        if let Some(sender) = self.senders.get_mut(&name) {
            sender.is_departed = true;
            self.departed_sender_count += 1;
        }
    }

    // ---- Deadlines ----

    /// Returns the earliest deadline.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first_key_value().map(|((at, _), _)| at.get())
    }

    /// Handles the earliest deadline, if it has come.
    pub fn expire_first(&mut self, now: Duration) -> Option<Expired> {
        let ((at, _), index) = self.deadlines.first_key_value()?;
        if at.get() > now {
            return None;
        }
        let index = *index;
        let pair = &self.pairs[index];
        let room = pair.room;
        if let State::Remembered = pair.state {
            self.remove_pair(index);
            return Some(Expired { room, ids: None });
        }
        let ids = Some((pair.source.clone(), pair.destination.clone()));
        let sender = &self.senders[&(room, pair.source.clone())];
        if sender.is_departed {
            self.remove_pair(index);
        } else {
            self.drop_messages(index);
            self.pairs[index].state = State::Remembered;
            self.set_deadline(index, now + HOLD_REMEMBERED_TIME);
        }
        Some(Expired { room, ids })
    }

    // ---- Pairs ----

    fn allows_pair(&self, source: &Name, destination: &Name) -> bool {
        let sender_pairs = self.senders.get(source).map_or(0, |sender| sender.pairs.len());
        let receiver_pairs = self.receivers.get(destination).map_or(0, |receiver| receiver.pairs.len());
        sender_pairs < HELD_PAIRS_MAX && receiver_pairs < HELD_PER_RECEIVER_MAX
    }

    fn allows_message(&self, source: &Name, destination: &Name, bytes: usize) -> bool {
        let sender = &self.senders[source];
        let receiver = &self.receivers[destination];
        sender.message_count < HELD_MESSAGES_MAX
            && sender.text_bytes + bytes <= self.sender_bytes_max
            && receiver.message_count < HELD_PER_RECEIVER_MAX
    }

    fn create_pair(
        &mut self,
        source: &Name,
        destination: &Name,
        now: Duration,
        memory: Reservation,
    ) -> usize {
        let (room, source_id) = source;
        let (_, destination_id) = destination;
        let deadline = self.new_deadline(now + HOLD_TIME);
        let index = self.pairs.insert(Pair {
            room: *room,
            source: source_id.clone(),
            destination: destination_id.clone(),
            deadline,
            state: State::Waiting { messages: Vec::new(), is_incomplete: false },
            memory,
        });
        self.deadlines.insert(deadline, index);
        *self.pair_counts.entry(*room).or_default() += 1;
        let receiver = self.receivers.entry(destination.clone()).or_default();
        receiver.pairs.insert(source_id.clone(), index);
        self.senders.entry(source.clone()).or_default().pairs.push(index);
        index
    }

    /// Begins another attempt of a remembered pair.
    fn begin_again(&mut self, index: usize, now: Duration) {
        self.pairs[index].state = State::Waiting { messages: Vec::new(), is_incomplete: false };
        self.set_deadline(index, now + HOLD_TIME);
    }

    fn set_deadline(&mut self, index: usize, at: Duration) {
        let deadline = self.new_deadline(at);
        let pair = &mut self.pairs[index];
        self.deadlines.remove(&pair.deadline);
        pair.deadline = deadline;
        self.deadlines.insert(deadline, index);
    }

    fn new_deadline(&mut self, at: Duration) -> Deadline {
        self.next_number += 1;
        (at.into(), self.next_number)
    }

    /// Drops the messages of a pair, which no longer count for its sender and receiver.
    fn drop_messages(&mut self, index: usize) {
        self.uncount_messages(index);
        if let State::Waiting { messages, .. } = &mut self.pairs[index].state {
            messages.clear();
        }
    }

    fn uncount_messages(&mut self, index: usize) {
        let Pair { room, source, destination, state, .. } = &self.pairs[index];
        let State::Waiting { messages, .. } = state else {
            return;
        };
        let text_bytes: usize = messages.iter().map(|message| message.text.len()).sum();
        let sender = self.senders.get_mut(&(*room, source.clone())).expect("a pair has a sender");
        sender.message_count -= messages.len();
        sender.text_bytes -= text_bytes;
        let receiver = self.receivers.get_mut(&(*room, destination.clone())).expect("a pair has a receiver");
        receiver.message_count -= messages.len();
    }

    /// Removes a pair with its messages, and its sender and receiver with their last pair.
    fn remove_pair(&mut self, index: usize) -> Pair {
        self.uncount_messages(index);
        let pair = self.pairs.remove(index);
        self.deadlines.remove(&pair.deadline);
        let pair_count = self.pair_counts.get_mut(&pair.room).expect("a pair is counted");
        *pair_count -= 1;
        if *pair_count == 0 {
            self.pair_counts.remove(&pair.room);
        }
        let source = (pair.room, pair.source.clone());
        let sender = self.senders.get_mut(&source).expect("a pair has a sender");
        sender.pairs.retain(|other| *other != index);
        if sender.pairs.is_empty() {
            self.departed_sender_count -= usize::from(sender.is_departed);
            self.senders.remove(&source);
        }
        let destination = (pair.room, pair.destination.clone());
        let receiver = self.receivers.get_mut(&destination).expect("a pair has a receiver");
        receiver.pairs.remove(&pair.source);
        if receiver.pairs.is_empty() {
            self.receivers.remove(&destination);
        }
        pair
    }

    /// Returns whether a room has pairs.
    pub fn has_room(&self, room: u32) -> bool {
        self.pair_counts.contains_key(&room)
    }

    // ---- Invariants ----

    /// Returns the room and the id of the receiver of each pair.
    pub fn receivers(&self) -> impl Iterator<Item = (u32, &str)> {
        self.pairs.iter().map(|(_, pair)| (pair.room, &*pair.destination))
    }

    /// Checks the invariants.
    ///
    /// # Panics
    /// An invariant does not hold.
    pub fn check(&self) {
        assert_eq!(self.deadlines.len(), self.pairs.len());
        let mut pair_counts: HashMap<u32, usize> = HashMap::new();
        for (_, pair) in &self.pairs {
            *pair_counts.entry(pair.room).or_default() += 1;
        }
        assert_eq!(self.pair_counts, pair_counts);
        let mut sender_totals: BTreeMap<Name, (usize, usize, usize)> = BTreeMap::new();
        let mut receiver_totals: BTreeMap<Name, (usize, usize)> = BTreeMap::new();
        for (index, pair) in &self.pairs {
            assert_eq!(self.deadlines[&pair.deadline], index);
            let source = (pair.room, pair.source.clone());
            let destination = (pair.room, pair.destination.clone());
            assert!(self.senders[&source].pairs.contains(&index));
            assert_eq!(self.receivers[&destination].pairs[&pair.source], index);
            let messages = match &pair.state {
                State::Waiting { messages, .. } => messages.as_slice(),
                State::Remembered => {
                    assert!(!self.senders[&source].is_departed, "only a connected sender is remembered");
                    &[]
                }
            };
            let (pair_count, message_count, text_bytes) = sender_totals.entry(source).or_default();
            *pair_count += 1;
            *message_count += messages.len();
            *text_bytes += messages.iter().map(|message| message.text.len()).sum::<usize>();
            let (pair_count, message_count) = receiver_totals.entry(destination).or_default();
            *pair_count += 1;
            *message_count += messages.len();
        }
        assert_eq!((self.senders.len(), self.receivers.len()), (sender_totals.len(), receiver_totals.len()));
        let mut departed_count = 0;
        for (name, totals) in sender_totals {
            let sender = &self.senders[&name];
            assert_eq!((sender.pairs.len(), sender.message_count, sender.text_bytes), totals);
            let (pair_count, message_count, text_bytes) = totals;
            assert!(pair_count <= HELD_PAIRS_MAX && message_count <= HELD_MESSAGES_MAX);
            assert!(text_bytes <= self.sender_bytes_max);
            departed_count += usize::from(sender.is_departed);
        }
        assert_eq!(departed_count, self.departed_sender_count);
        assert!(departed_count <= HELD_DEPARTED_SENDERS_MAX);
        for (name, totals) in receiver_totals {
            let receiver = &self.receivers[&name];
            assert_eq!((receiver.pairs.len(), receiver.message_count), totals);
            let (pair_count, message_count) = totals;
            assert!(pair_count <= HELD_PER_RECEIVER_MAX && message_count <= HELD_PER_RECEIVER_MAX);
        }
    }
}
