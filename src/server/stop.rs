//! How a server ends: at once, or when its rooms have gone elsewhere.

use std::time::Duration;

use log::info;

use super::Server;
use crate::limits::STOP_TIME_MAX;
use crate::session::{End, Shared};

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
        let slots: Vec<usize> = self.connections.entries.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.connections.reach(slot, |session, shared| session.close(End::GoingAway, shared));
        }
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
        self.connections.dismiss(share, &self.gate);
    }

    /// Whether a stop has come to its end.
    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.connections.entries.is_empty() || at <= self.clock.now())
    }
}
