//! Answers requests as the server does, with limits that the test decides on.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::{ListenerKind, NO_HEADERS};
use noroshi::protocol::Target;
use noroshi::protocols::{self, Dispatcher};
use noroshi::server::admission::{self, Decision, LimitCheck, Policy};

/// Returns the answer to a complete head. `admission` gets the client address that a trusted proxy reports, and what the
/// request is for.
pub fn answer(
    head: &[u8],
    listener: ListenerKind,
    config: &Config,
    is_trusted: bool,
    wall: Duration,
    admission: impl FnOnce(Option<IpAddr>, Option<&Target>) -> LimitCheck,
) -> Decision {
    let mut headers = NO_HEADERS;
    let request = match admission::parse_head(head, &mut headers, listener) {
        Ok(request) => request,
        Err(response) => return Decision::Respond(response),
    };
    let dispatcher = Dispatcher::new(protocols::ALL, config, &RandomState::new());
    let policy = Policy { listener, config, dispatcher: &dispatcher, unix_time: wall };
    let address = match is_trusted.then(|| policy.reported_address(&request)) {
        Some(Ok(address)) => address,
        Some(Err(response)) => return Decision::Respond(response),
        None => None,
    };
    policy.decide(&request, |target| admission(address, target))
}
