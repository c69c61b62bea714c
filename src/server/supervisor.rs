//! What systemd, or who does as it does, is told of the server (sd_notify(3)): that it is ready, what it is doing, that it
//! is alive, and that it stops. Who was not started by such a one tells nobody.

use std::env;
use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};

use crate::limits::STATUS_EVERY;

/// What it was told.
pub(super) struct Supervisor {
    is_there: bool,
    /// How often it wants a sign of life, if it does: twice as often as it would wait for.
    beat: Option<Duration>,
    beat_at: Duration,
    /// Connections now, those that it was told of, and when it may be told again.
    connections: usize,
    told: Option<usize>,
    status_at: Duration,
}

impl Supervisor {
    pub fn new() -> Supervisor {
        Supervisor {
            is_there: env::var_os("NOTIFY_SOCKET").is_some(),
            beat: watchdog_enabled().map(|timeout| timeout / 2),
            beat_at: Duration::ZERO,
            connections: 0,
            told: None,
            status_at: Duration::ZERO,
        }
    }

    pub fn ready(&self) {
        self.tell(NotifyState::Ready);
    }

    pub fn stopping(&self) {
        self.tell(NotifyState::Stopping);
    }

    /// The loop has come around, and this is so now. It is the loop itself that shows life: that it is stuck is the one
    /// thing worth watching.
    pub fn turned(&mut self, now: Duration, connections: usize, rooms: impl FnOnce() -> usize) {
        if let Some(beat) = self.beat.filter(|_| self.beat_at <= now) {
            self.tell(NotifyState::Watchdog);
            self.beat_at = now + beat;
        }
        self.connections = connections;
        if self.is_there && self.told != Some(connections) && self.status_at <= now {
            self.tell(NotifyState::Status(&format!("{connections} connections, {} rooms", rooms())));
            self.told = Some(connections);
            self.status_at = now + STATUS_EVERY;
        }
    }

    /// When the loop is to come around at the latest.
    pub fn due(&self) -> Option<Duration> {
        let status = (self.is_there && self.told != Some(self.connections)).then_some(self.status_at);
        self.beat.map(|_| self.beat_at).into_iter().chain(status).min()
    }

    fn tell(&self, state: NotifyState) {
        // Whether it listens is its own affair.
        let _ = notify(&[state]);
    }
}
