//! What the loop serves: noroshi's hub, or something else.

use std::time::Duration;

use super::connections::Connections;
use crate::config::Config;
use crate::hub::Hub;
use crate::message::{Code, Kind};
use crate::metrics::Metrics;
use crate::protocol::{Conn, Input};

/// What is served: it is told of all that happens on connections, and has its say through them.
pub trait Service {
    /// Takes one input. `now` is the time since the start.
    fn handle(&mut self, now: Duration, input: Input, connections: &mut Connections);

    /// When [`Input::Time`] is due next.
    fn wake_at(&self) -> Option<Duration> {
        None
    }

    /// Sees to what is to be done now and then: at every sweep. The epoch is when the server started, since 1970.
    fn sweep(&mut self, _epoch: Duration, _connections: &mut Connections) {}

    /// There may be other secrets in the configuration.
    fn renew(&mut self, _config: &Config) {}

    /// The room of a connection, and the id that it has there. For the log.
    fn who(&self, _conn: Conn) -> (&str, Option<&str>) {
        ("", None)
    }

    /// Brings what it has counted into the metrics.
    fn collect(&self, _metrics: &mut Metrics) {}
}

impl Service for Hub {
    fn handle(&mut self, now: Duration, input: Input, connections: &mut Connections) {
        self.handle(now, input, connections);
        connections.shared.budget.kept = self.kept();
    }

    fn wake_at(&self) -> Option<Duration> {
        self.wake_at()
    }

    fn sweep(&mut self, epoch: Duration, connections: &mut Connections) {
        self.set_epoch(epoch);
        if connections.shared.config.memory_bytes_max.is_some() {
            self.recount();
            connections.shared.budget.kept = self.kept();
        }
    }

    fn renew(&mut self, config: &Config) {
        self.renew(config);
    }

    fn who(&self, conn: Conn) -> (&str, Option<&str>) {
        self.who(conn).expect("the hub forgets nobody before the server does")
    }

    fn collect(&self, metrics: &mut Metrics) {
        metrics.peers = self.peers();
        metrics.rooms = self.rooms();
        metrics.messages = Kind::ALL.iter().map(|kind| kind.name()).zip(self.tally().messages).collect();
        metrics.errors = Code::ALL.iter().map(|code| code.name()).zip(self.tally().errors).collect();
    }
}
