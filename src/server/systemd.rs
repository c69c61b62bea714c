//! Notifications for the service manager (sd_notify(3)): ready, status, watchdog, stopping.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is sent.
//!
//! sd-notify 0.5 formats the messages and reads the environment. Its function `notify` is not used, because it blocks: with
//! a service manager that does not read, the 12th call had not returned after 10 seconds (Linux, `max_dgram_qlen` of 10).
//! [`ServiceManager::send`] blocks for at most [`NOTIFY_TIME_MAX`], and in the loop not at all.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use sd_notify::{NotifyState, watchdog_enabled};

use crate::limits::{NOTIFY_TIME_MAX, STATUS_EVERY};

/// Sends notifications to the service manager.
pub(super) struct ServiceManager {
    /// The path of its socket, if there is one.
    socket_path: Option<OsString>,
    /// How often the watchdog is notified, if there is one: half of its timeout.
    watchdog_interval: Option<Duration>,
    /// When the watchdog is notified next.
    watchdog_at: Duration,
    /// Connections in the last iteration.
    connections: usize,
    /// Connections in the last status.
    reported: Option<usize>,
    /// When the next status may be sent.
    status_at: Duration,
}

impl ServiceManager {
    pub fn new() -> ServiceManager {
        ServiceManager {
            socket_path: env::var_os("NOTIFY_SOCKET"),
            watchdog_interval: watchdog_enabled().map(|timeout| timeout / 2),
            watchdog_at: Duration::ZERO,
            connections: 0,
            reported: None,
            status_at: Duration::ZERO,
        }
    }

    pub fn ready(&self) {
        self.send_waiting(NotifyState::Ready);
    }

    pub fn stopping(&self) {
        self.send_waiting(NotifyState::Stopping);
    }

    /// Notifies the watchdog and sends the status, where they are due. Called in each iteration of the loop: a loop that hangs
    /// is what the watchdog is for.
    pub fn on_iteration(&mut self, now: Duration, connections: usize, rooms: impl FnOnce() -> usize) {
        if let Some(interval) = self.watchdog_interval.filter(|_| self.watchdog_at <= now) {
            self.send_at_once(NotifyState::Watchdog);
            self.watchdog_at = now + interval;
        }
        self.connections = connections;
        if self.socket_path.is_some() && self.reported != Some(connections) && self.status_at <= now {
            self.send_at_once(NotifyState::Status(&format!("{connections} connections, {} rooms", rooms())));
            self.reported = Some(connections);
            self.status_at = now + STATUS_EVERY;
        }
    }

    /// Returns when the next notification is due.
    pub fn due(&self) -> Option<Duration> {
        let status =
            (self.socket_path.is_some() && self.reported != Some(self.connections)).then_some(self.status_at);
        self.watchdog_interval.map(|_| self.watchdog_at).into_iter().chain(status).min()
    }

    /// Sends a message that is not repeated, and waits up to [`NOTIFY_TIME_MAX`] for a service manager that is busy.
    fn send_waiting(&self, state: NotifyState) {
        self.send(state, |socket| socket.set_write_timeout(Some(NOTIFY_TIME_MAX)));
    }

    /// Sends a message without blocking the loop. A service manager whose queue is full misses it; the next one follows.
    fn send_at_once(&self, state: NotifyState) {
        self.send(state, |socket| socket.set_nonblocking(true));
    }

    /// Sends one datagram, and ignores that it fails: a service manager that does not listen is no reason to stop.
    ///
    /// `sd_notify::notify` does the same with a socket that blocks for as long as the service manager's queue is full.
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
