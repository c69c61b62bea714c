//! Liveness probes that are running.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Conn;
use crate::limits::{PROBE_POSTPONED, PROBE_TIME_MAX};
use crate::timestamp::Timestamp;

/// The probes of all connections, by deadline.
#[derive(Default)]
pub(crate) struct Probes {
    /// When the probe of a connection ends.
    until: BTreeMap<Conn, Timestamp>,
    /// The same, by time.
    order: BTreeSet<(Timestamp, Conn)>,
}

impl Probes {
    pub(super) fn begin(&mut self, conn: Conn, now: Duration) {
        self.end(conn);
        let until = (now + PROBE_TIME_MAX).into();
        self.until.insert(conn, until);
        self.order.insert((until, conn));
    }

    /// Extends an expired probe by [`PROBE_POSTPONED`].
    pub(crate) fn postpone(&mut self, conn: Conn, now: Duration) {
        let until = (now + PROBE_POSTPONED).into();
        self.until.insert(conn, until);
        self.order.insert((until, conn));
    }

    /// Ends the probe of a connection. Returns whether there was one.
    pub(crate) fn end(&mut self, conn: Conn) -> bool {
        let until = self.until.remove(&conn);
        until.is_some_and(|until| self.order.remove(&(until, conn)))
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.order.first().map(|(until, _)| until.get())
    }

    /// Removes the probe that ends first, and returns its connection.
    pub(crate) fn pop(&mut self) -> Option<Conn> {
        let (_, conn) = self.order.pop_first()?;
        self.until.remove(&conn);
        Some(conn)
    }
}
