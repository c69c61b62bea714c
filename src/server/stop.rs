//! How a server ends: at once, or when its rooms have gone elsewhere.

use std::time::Duration;

use log::info;

use super::Server;
use super::questions::number;
use crate::limits::STOP_TIME_MAX;
use crate::session::Shared;

impl Server {
    /// Stops accepting and closes everybody with 1001. From now on the turns lead to [`Server::is_stopped`].
    pub fn stop(&mut self) {
        info!("stopping");
        self.supervisor.stopping();
        self.listeners.close();
        self.drained_at = None;
        let now = self.clock.now();
        self.connections.shared.now = now;
        self.stop_at = Some(now + STOP_TIME_MAX);
        self.connections.dismiss(|_| true);
        self.settle();
    }

    /// Takes in nobody but for the rooms that there are. In the second half of the time of `--drain` these are told to go
    /// elsewhere, room by room, and when it is over, or nobody is left, the server stops.
    pub fn drain(&mut self) {
        let time = self.connections.shared.config.drain;
        info!("draining for {} s", time.as_secs());
        self.supervisor.stopping();
        self.connections.shared.draining = true;
        self.drained_at = Some(self.clock.now() + time);
    }

    /// Goes on with a drain.
    pub(super) fn drain_on(&mut self, until: Duration) {
        let Shared { config, now, .. } = &self.connections.shared;
        let half = config.drain / 2;
        let share = 1.0 - until.saturating_sub(*now).as_secs_f64() / half.as_secs_f64();
        if share >= 1.0 || self.connections.upgraded == 0 {
            return self.stop();
        }
        let Server { connections, gate, .. } = self;
        // Those that were told before among them, and all in a room: they shall meet again elsewhere.
        let room = |conn| gate.member(conn).map_or(0, |(dialect, member)| number(dialect, &member));
        connections.dismiss(|entry| entry.served && (room(entry.conn) as f64 / u64::MAX as f64) < share);
    }

    /// Whether a stop has come to its end.
    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.connections.entries.is_empty() || at <= self.clock.now())
    }
}
