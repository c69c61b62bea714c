//! Graceful shutdown: a stop at once, or a drain in which rooms move to another server.

use std::time::Duration;

use log::info;

use super::Server;
use super::connections::{Entry, Stage};
use super::operator::{connection_hash, room_hash};
use crate::limits::STOP_TIME_MAX;
use crate::protocols::Dispatcher;
use crate::session::SharedState;

impl Server {
    /// Stops accepting and closes all connections (1001). Further iterations lead to [`Server::is_stopped`].
    pub fn stop(&mut self) {
        info!("stopping");
        self.service_manager.stopping();
        self.listeners.close();
        self.drain_deadline = None;
        let now = self.clock.now();
        self.connections.shared.now = now;
        self.stop_deadline = Some(now + STOP_TIME_MAX);
        self.close_cursor = self.connections.close_all(0);
        self.flush_dirty_sessions();
    }

    /// Begins a drain: only rooms that exist take connections. In the second half of the time of `--drain` the rooms are
    /// closed, room by room. The server stops at the end of that time, or when no WebSocket is left.
    pub fn drain(&mut self) {
        let time = self.connections.shared.config.drain;
        info!("draining for {} s", time.as_secs());
        self.service_manager.stopping();
        self.connections.is_draining = true;
        self.drain_deadline = Some(self.clock.now() + time);
    }

    /// Decides which share of the rooms is closed by now. The next sweep closes them.
    pub(super) fn advance_drain(&mut self, until: Duration) {
        let SharedState { config, now, .. } = &self.connections.shared;
        let half = config.drain / 2;
        let share = 1.0 - until.saturating_sub(*now).as_secs_f64() / half.as_secs_f64();
        if share >= 1.0 || self.connections.websockets == 0 {
            return self.stop();
        }
        self.drained_share = share;
    }

    /// Returns whether a stop has completed.
    pub fn is_stopped(&self) -> bool {
        self.stop_deadline.is_some_and(|at| self.connections.entries.is_empty() || at <= self.clock.now())
    }
}

/// Returns whether the room of a connection belongs to this share of all rooms. The members of a room are closed together, so
/// that they meet again on another server. Connections that can be in several rooms are closed one by one, which spreads their
/// reconnects.
pub(super) fn is_drained(entry: &Entry, dispatcher: &Dispatcher, share: f64) -> bool {
    if share <= 0.0 || entry.stage != Stage::WebSocket {
        return false;
    }
    let hash = match dispatcher.room_count(entry.conn) {
        Some(_) => connection_hash(entry.conn),
        None => {
            let (protocol, members) = dispatcher.members(entry.conn);
            members.first().map_or(0, |member| room_hash(protocol, member))
        }
    };
    (hash as f64 / u64::MAX as f64) < share
}
