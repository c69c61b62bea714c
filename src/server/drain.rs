//! How a server ends: at once, or when its rooms have gone elsewhere.

use std::time::Duration;

use log::info;

use super::Server;
use super::connections::Entry;
use super::operator::number;
use crate::limits::STOP_TIME_MAX;
use crate::protocols::Dispatcher;
use crate::session::SharedState;

impl Server {
    /// Stops accepting and closes everybody with 1001. From now on the turns lead to [`Server::is_stopped`].
    pub fn stop(&mut self) {
        info!("stopping");
        self.service_manager.stopping();
        self.listeners.close();
        self.drained_at = None;
        let now = self.clock.now();
        self.connections.shared.now = now;
        self.stop_at = Some(now + STOP_TIME_MAX);
        self.stop_from = self.connections.close_all(0);
        self.settle();
    }

    /// Takes in nobody but for the rooms that there are. In the second half of the time of `--drain` these are told to go
    /// elsewhere, room by room, and when it is over, or nobody is left, the server stops.
    pub fn drain(&mut self) {
        let time = self.connections.shared.config.drain;
        info!("draining for {} s", time.as_secs());
        self.service_manager.stopping();
        self.connections.is_draining = true;
        self.drained_at = Some(self.clock.now() + time);
    }

    /// Decides which rooms are to be told by now to go elsewhere. The next sweep tells them.
    pub(super) fn drain_on(&mut self, until: Duration) {
        let SharedState { config, now, .. } = &self.connections.shared;
        let half = config.drain / 2;
        let share = 1.0 - until.saturating_sub(*now).as_secs_f64() / half.as_secs_f64();
        if share >= 1.0 || self.connections.upgraded == 0 {
            return self.stop();
        }
        self.drained_share = share;
    }

    /// Whether a stop has come to its end.
    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.connections.entries.is_empty() || at <= self.clock.now())
    }
}

/// Returns whether the room of a connection belongs to this share of all rooms, in which everybody is told to go elsewhere.
/// All members of a room belong to the same share, so that they meet again.
pub(super) fn is_drained(entry: &Entry, dispatcher: &Dispatcher, share: f64) -> bool {
    if share <= 0.0 || !entry.served {
        return false;
    }
    let room = dispatcher.member(entry.conn).map_or(0, |(dialect, member)| number(dialect, &member));
    (room as f64 / u64::MAX as f64) < share
}
