//! The signaling protocols, and the dispatcher between them and the connections.
//!
//! The dispatcher delivers the events of a connection to the protocol that its upgrade asked for. It does what all protocols
//! have in common: it charges messages to the rate limit before a protocol gets them, runs the timers of probes and
//! protocols, and reports each departure once. Deadlines, heartbeats, and the limits of queues belong to sessions.

pub mod ayame;
pub mod conn_table;
pub mod gstreamer;
pub mod ice;
pub mod list;
pub mod matchbox;
pub mod name_table;
pub mod noroshi;
pub mod path_room;
pub mod peerjs;
pub mod uuid;
pub mod ywebrtc;

use std::cmp::Reverse;
use std::hash::RandomState;
use std::time::Duration;

use crate::config::{Config, Endpoint};
use crate::http::query::Query;
use crate::http::token::Claims;
use crate::limits::TIMERS_PER_ITERATION;
use crate::message::Message;
use crate::protocol::{
    CloseCause, Conn, ConnectionStates, Context, Descriptor, Member, Outbox, Protocol, Resource,
    ResourceRequest, Route, Target, Times,
};
use crate::rate_limit::{Verdict, credits_for_bytes};

/// All protocols. A further protocol is a `pub mod` above and a line here.
pub const ALL: &[&Descriptor] = &[
    &noroshi::DESCRIPTOR, //
    &ayame::DESCRIPTOR,
    &matchbox::DESCRIPTOR,
    &peerjs::DESCRIPTOR,
    &ywebrtc::DESCRIPTOR,
    &gstreamer::DESCRIPTOR,
];

/// Returns the endpoints of protocols, from which flags and variables follow.
pub fn endpoints(descriptors: &[&'static Descriptor]) -> Vec<&'static Endpoint> {
    descriptors.iter().map(|descriptor| &descriptor.endpoint).collect()
}

/// Delivers events to protocols.
pub struct Dispatcher {
    mounts: Vec<Mount>,
    /// The indices of `mounts`, those with the longest paths first: the order in which paths are matched.
    by_path_length: Vec<usize>,
    /// The index in `mounts` of the protocol of each connection, by slot.
    mount_indices: Vec<u8>,
    connection_states: ConnectionStates,
}

/// A protocol that is served.
struct Mount {
    descriptor: &'static Descriptor,
    /// The path of its endpoint. Empty: its rooms are at the top level.
    path: String,
    protocol: Box<dyn Protocol>,
}

/// What the path of a request leads to.
#[derive(Clone, Debug)]
pub enum Destination {
    /// The WebSocket endpoint of a room.
    WebSocket(Target),
    /// The WebSocket endpoint of a room that is not valid, for the reason in this sentence.
    Invalid(&'static str),
    /// A resource of this protocol.
    Resource(&'static Descriptor),
}

impl Dispatcher {
    /// Creates those of the protocols that are always on or that the configuration mounts.
    ///
    /// # Panics
    /// There are more than 255 of them.
    pub fn new(descriptors: &[&'static Descriptor], config: &Config, key: &RandomState) -> Dispatcher {
        let mut mounts = Vec::new();
        for &descriptor in descriptors {
            if let Some(path) = config.path_of(&descriptor.endpoint) {
                let protocol = (descriptor.new)(config, key.clone());
                mounts.push(Mount { descriptor, path: path.to_owned(), protocol });
            }
        }
        assert!(mounts.len() <= usize::from(u8::MAX), "the index of a protocol fits one byte");
        let mut by_path_length: Vec<usize> = (0..mounts.len()).collect();
        by_path_length.sort_by_key(|index| Reverse(mounts[*index].path.len()));
        let connection_states = ConnectionStates::new(config.rate_max);
        Dispatcher { mounts, by_path_length, mount_indices: Vec::new(), connection_states }
    }

    // ---- Routes ----

    /// Returns what a path leads to. `None`: no protocol serves it.
    ///
    /// If the paths of several protocols match, the longest one comes first, so that rooms at the top level hide no other
    /// protocol.
    pub fn destination(&self, path: &str, query: &Query) -> Option<Destination> {
        for index in &self.by_path_length {
            let mount = &self.mounts[*index];
            let Some(below) = path_below(&mount.path, path) else { continue };
            let protocol = mount.descriptor;
            match (protocol.route)(below, query) {
                Route::Room(room) => {
                    return Some(Destination::WebSocket(Target { protocol, room, query: query.clone() }));
                }
                Route::Invalid(sentence) => return Some(Destination::Invalid(sentence)),
                Route::Resource => return Some(Destination::Resource(protocol)),
                Route::Unknown => {}
            }
        }
        None
    }

    /// Lets a protocol respond to a request for one of its resources.
    pub fn respond(&mut self, protocol: &'static Descriptor, path: &str, query: &Query) -> Option<Resource> {
        let index = self.mount_index(protocol)?;
        let mount = &mut self.mounts[index];
        let below = path_below(&mount.path, path)?;
        mount.protocol.respond(ResourceRequest { below, query })
    }

    /// Returns the protocols that are served, each with the path of its endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = (&'static Endpoint, &str)> {
        self.mounts.iter().map(|mount| (&mount.descriptor.endpoint, mount.path.as_str()))
    }

    // ---- Events ----

    /// Reports a new connection to its protocol.
    ///
    /// # Panics
    /// The slot belongs to another connection, or the protocol is not served.
    pub fn connect(
        &mut self,
        times: Times,
        conn: Conn,
        target: &Target,
        claims: Option<&Claims>,
        out: &mut dyn Outbox,
    ) {
        let index = self.mount_index(target.protocol).expect("a target is of a protocol that is served");
        let slot = conn.slot();
        if self.mount_indices.len() <= slot {
            self.mount_indices.resize(slot + 1, 0);
            self.connection_states.buckets.resize_with(slot + 1, Default::default);
        }
        self.mount_indices[slot] = index as u8;
        self.connection_states.buckets[slot] = Default::default();
        let (protocol, mut context) = self.protocol_and_context(times, conn, out);
        protocol.on_connect(conn, target, claims, &mut context);
    }

    /// Charges the rate limit for a message, and delivers it to the protocol of its sender.
    pub fn message(&mut self, times: Times, conn: Conn, message: Message<'_>, out: &mut dyn Outbox) {
        let credits = credits_for_bytes(message.bytes_len());
        let verdict = self.connection_states.charge(conn, credits, 0, times.now);
        let (protocol, mut context) = self.protocol_and_context(times, conn, out);
        match verdict {
            Verdict::Pass => protocol.on_message(conn, message, &mut context),
            verdict => enforce_rate_limit(protocol, conn, verdict, &mut context),
        }
    }

    /// Charges a frame that is no message: a ping, a pong or a small fragment. Returns whether the sender had credits for it.
    /// If not, it is treated as after a message over the rate: the protocol tells it so, or it is disconnected.
    pub fn charge_frame(&mut self, times: Times, conn: Conn, out: &mut dyn Outbox) -> bool {
        let verdict = self.connection_states.charge(conn, 1, 0, times.now);
        if verdict == Verdict::Pass {
            return true;
        }
        let (protocol, mut context) = self.protocol_and_context(times, conn, out);
        enforce_rate_limit(protocol, conn, verdict, &mut context);
        false
    }

    /// Reports that a connection has shown life. Its protocol hears of it if it is being probed.
    pub fn alive(&mut self, times: Times, conn: Conn, out: &mut dyn Outbox) {
        if self.connection_states.probes.end(conn) {
            let (protocol, mut context) = self.protocol_and_context(times, conn, out);
            protocol.on_alive(conn, &mut context);
        }
    }

    /// Reports the end of a connection. Does nothing if its protocol has closed it, because [`Context::close`] has reported it.
    pub fn disconnect(&mut self, times: Times, conn: Conn, out: &mut dyn Outbox) {
        self.connection_states.probes.end(conn);
        let mount = &mut self.mounts[usize::from(self.mount_indices[conn.slot()])];
        let Some(member) = mount.protocol.member(conn) else { return };
        out.record_departure(conn, mount.descriptor, &member, mount.protocol.room_count(conn));
        let mut context = Context::new(times, mount.descriptor, &mut self.connection_states, out);
        mount.protocol.on_disconnect(conn, &mut context);
    }

    /// Handles timers that are due, at most [`TIMERS_PER_ITERATION`] of them. Those that are left are still due.
    pub fn fire_timers(&mut self, times: Times, out: &mut dyn Outbox) {
        for _ in 0..TIMERS_PER_ITERATION {
            let Some(due) = self.next_timer().filter(|due| *due <= times.now) else { return };
            let due_mount = self.mounts.iter_mut().find(|mount| mount.protocol.next_timer() == Some(due));
            if let Some(mount) = due_mount {
                let mut context = Context::new(times, mount.descriptor, &mut self.connection_states, out);
                mount.protocol.on_timer(&mut context);
            } else if let Some(conn) = self.connection_states.probes.pop() {
                if out.has_unread_input(conn) {
                    // What the peer has sent may be a liveness signal. It is read soon.
                    self.connection_states.probes.postpone(conn, times.now);
                } else {
                    let (protocol, mut context) = self.protocol_and_context(times, conn, out);
                    protocol.on_silent(conn, &mut context);
                }
            }
        }
    }

    /// Returns when [`Dispatcher::fire_timers`] is due next.
    pub fn next_timer(&self) -> Option<Duration> {
        let timers = self.mounts.iter().filter_map(|mount| mount.protocol.next_timer());
        timers.chain(self.connection_states.probes.next_deadline()).min()
    }

    // ---- Questions ----

    /// See [`Protocol::has_capacity`].
    pub fn has_capacity(&self, target: &Target) -> bool {
        self.mount(target.protocol).is_some_and(|mount| mount.protocol.has_capacity(target))
    }

    /// See [`Protocol::room_exists`].
    pub fn room_exists(&self, target: &Target) -> bool {
        self.mount(target.protocol).is_some_and(|mount| mount.protocol.room_exists(target))
    }

    /// Returns the number of rooms of a connection, if it can be in several. See [`Protocol::room_count`].
    pub fn room_count(&self, conn: Conn) -> Option<usize> {
        let index = self.mount_indices.get(conn.slot())?;
        self.mounts[usize::from(*index)].protocol.room_count(conn)
    }

    /// Returns the protocol of a connection, and its memberships. They are empty if there is no such connection.
    pub fn members(&self, conn: Conn) -> (&'static str, Vec<Member<'_>>) {
        match self.mount_indices.get(conn.slot()) {
            Some(index) => {
                let mount = &self.mounts[usize::from(*index)];
                (mount.descriptor.endpoint.name, mount.protocol.members(conn))
            }
            None => ("", Vec::new()),
        }
    }

    /// Iterates over the protocols that are served, with their names.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &dyn Protocol)> {
        self.mounts.iter().map(|mount| (mount.descriptor.endpoint.name, &*mount.protocol))
    }

    /// See [`Protocol::check`].
    ///
    /// # Panics
    /// See there.
    pub fn check(&self) {
        for mount in &self.mounts {
            mount.protocol.check();
        }
    }

    /// See [`Protocol::renew`].
    pub fn renew(&mut self, config: &Config) {
        for mount in &mut self.mounts {
            mount.protocol.renew(config);
        }
    }

    // ---- Lookups ----

    fn mount_index(&self, protocol: &'static Descriptor) -> Option<usize> {
        self.mounts.iter().position(|mount| std::ptr::eq(mount.descriptor, protocol))
    }

    fn mount(&self, protocol: &'static Descriptor) -> Option<&Mount> {
        Some(&self.mounts[self.mount_index(protocol)?])
    }

    /// Returns the protocol of a connection, and the context in which it handles an event.
    #[inline]
    fn protocol_and_context<'a>(
        &'a mut self,
        times: Times,
        conn: Conn,
        out: &'a mut dyn Outbox,
    ) -> (&'a mut dyn Protocol, Context<'a>) {
        let mount = &mut self.mounts[usize::from(self.mount_indices[conn.slot()])];
        let context = Context::new(times, mount.descriptor, &mut self.connection_states, out);
        (&mut *mount.protocol, context)
    }
}

/// Notifies a protocol that a message was dropped because its sender is over the rate, or closes the connection.
///
/// [`Protocol::on_disconnect`] follows the close at once: the protocol has not closed the connection itself.
fn enforce_rate_limit(protocol: &mut dyn Protocol, conn: Conn, verdict: Verdict, context: &mut Context<'_>) {
    match verdict {
        Verdict::Pass => {}
        Verdict::Drop { notify } => protocol.on_message_dropped(conn, notify, context),
        Verdict::Close => {
            if let Some(member) = protocol.member(conn) {
                context.close_member(conn, CloseCause::RateLimited, &member, protocol.room_count(conn));
            }
            protocol.on_disconnect(conn, context);
        }
    }
}

/// Returns the part of a path below a prefix.
///
/// `None`: the path does not begin with the prefix. `Some(None)`: the path is the prefix itself.
fn path_below<'a>(prefix: &str, path: &'a str) -> Option<Option<&'a str>> {
    match path.strip_prefix(prefix)? {
        "" => Some(None),
        rest => rest.strip_prefix('/').map(Some),
    }
}
