//! Signals, and the loop that reacts to them.

use std::io;
use std::mem;

use log::{info, warn};
use mio::Interest;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

use super::{SIGNALS, Server};

impl Server {
    /// Has [`Server::run`] handle SIGTERM, SIGINT, SIGQUIT and SIGHUP, and ignore SIGUSR1 and SIGUSR2. None of them ends the
    /// process by itself any more. The standard library ignores SIGPIPE.
    ///
    /// # Errors
    /// A system call that this needs fails.
    pub fn install_signal_handlers(&mut self) -> io::Result<()> {
        let signals =
            self.signals.insert(Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2])?);
        self.poll.registry().register(signals, SIGNALS, Interest::READABLE)
    }

    /// Serves until a signal ends the server. The first one begins a drain, if `--drain` says so; the next one a stop; and the
    /// one after that returns at once.
    ///
    /// # Errors
    /// The poll fails. No peer can cause that.
    pub fn run(&mut self) -> io::Result<()> {
        self.service_manager.ready();
        while !self.is_stopped() {
            self.poll_once(None)?;
            if !mem::take(&mut self.is_signal_pending) {
                continue;
            }
            let came: Vec<_> = self.signals.iter_mut().flat_map(|signals| signals.pending()).collect();
            for signal in came {
                match signal {
                    SIGHUP => self.reload(),
                    SIGUSR1 | SIGUSR2 => {}
                    _ if self.stop_deadline.is_some() => return Ok(()),
                    _ if self.drain_deadline.is_none() && !self.connections.shared.config.drain.is_zero() => {
                        self.drain()
                    }
                    _ => self.stop(),
                }
            }
        }
        Ok(())
    }

    /// Reads the files of secrets again, as SIGHUP asks for. If one of them is not valid, nothing changes.
    pub fn reload(&mut self) {
        let config = &mut self.connections.shared.config;
        let mut renewed = config.clone();
        match renewed.read_secret_files() {
            Ok(()) => {
                info!("SIGHUP: the secret files were reloaded");
                *config = renewed;
                self.dispatcher.renew(config);
            }
            Err(error) => warn!("SIGHUP: {error}; the previous secrets remain in use"),
        }
    }
}
