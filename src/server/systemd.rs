//! What systemd, or who does as it does, is told of the server (sd_notify(3)): that it is ready, what it is doing, that it
//! is alive, and that it stops. Who was not started by such a one tells nobody.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use sd_notify::{NotifyState, watchdog_enabled};

use crate::limits::{NOTIFY_TIME_MAX, STATUS_EVERY};

/// What it was told.
pub(super) struct ServiceManager {
    /// The path of its socket, if there is one.
    socket_path: Option<OsString>,
    /// How often it wants a sign of life, if it does: twice as often as it would wait for.
    beat: Option<Duration>,
    beat_at: Duration,
    /// Connections now, those that it was told of, and when it may be told again.
    connections: usize,
    told: Option<usize>,
    status_at: Duration,
}

impl ServiceManager {
    pub fn new() -> ServiceManager {
        ServiceManager {
            socket_path: env::var_os("NOTIFY_SOCKET"),
            beat: watchdog_enabled().map(|timeout| timeout / 2),
            beat_at: Duration::ZERO,
            connections: 0,
            told: None,
            status_at: Duration::ZERO,
        }
    }

    pub fn ready(&self) {
        self.send_waiting(NotifyState::Ready);
    }

    pub fn stopping(&self) {
        self.send_waiting(NotifyState::Stopping);
    }

    /// The loop has come around, and this is so now. It is the loop itself that shows life: that it is stuck is the one
    /// thing worth watching.
    pub fn on_iteration(&mut self, now: Duration, connections: usize, rooms: impl FnOnce() -> usize) {
        if let Some(beat) = self.beat.filter(|_| self.beat_at <= now) {
            self.send_at_once(NotifyState::Watchdog);
            self.beat_at = now + beat;
        }
        self.connections = connections;
        if self.socket_path.is_some() && self.told != Some(connections) && self.status_at <= now {
            self.send_at_once(NotifyState::Status(&format!("{connections} connections, {} rooms", rooms())));
            self.told = Some(connections);
            self.status_at = now + STATUS_EVERY;
        }
    }

    /// When the loop is to come around at the latest.
    pub fn due(&self) -> Option<Duration> {
        let status =
            (self.socket_path.is_some() && self.told != Some(self.connections)).then_some(self.status_at);
        self.beat.map(|_| self.beat_at).into_iter().chain(status).min()
    }

    /// Sends a message that is not repeated, and waits up to [`NOTIFY_TIME_MAX`] for a service_manager that is busy.
    fn send_waiting(&self, state: NotifyState) {
        self.send(state, |socket| socket.set_write_timeout(Some(NOTIFY_TIME_MAX)));
    }

    /// Sends a message without blocking the loop. A service_manager whose queue is full misses it; the next one follows.
    fn send_at_once(&self, state: NotifyState) {
        self.send(state, |socket| socket.set_nonblocking(true));
    }

    /// Sends one datagram, and ignores that it fails: a service_manager that does not listen is no reason to stop.
    ///
    /// `sd_notify::notify` does the same with a socket that blocks for as long as the service_manager's queue is full.
    fn send(&self, state: NotifyState, prepare: impl FnOnce(&UnixDatagram) -> io::Result<()>) {
        let Some(path) = &self.socket_path else { return };
        let send = || -> io::Result<usize> {
            let socket = UnixDatagram::unbound()?;
            prepare(&socket)?;
            socket.send_to(format!("{state}\n").as_bytes(), path)
        };
        let _ = send();
    }
}
