//! Answers requests as the server does, with limits that the test decides on.

use std::net::IpAddr;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::{Admission, ListenerKind, NO_HEADERS, Request, Response};
use noroshi::protocol::Target;

/// Returns the answer to a complete head. `admission` gets the client address that a trusted proxy reports, and what the
/// request is for.
pub fn answer(
    head: &[u8],
    listener: ListenerKind,
    config: &Config,
    is_trusted: bool,
    wall: Duration,
    admission: impl FnOnce(Option<IpAddr>, Option<&Target>) -> Admission,
) -> Response {
    let mut headers = NO_HEADERS;
    let request = match Request::parse(head, &mut headers, listener) {
        Ok(request) => request,
        Err(response) => return response,
    };
    let address = match is_trusted.then(|| request.reported_address(config)) {
        Some(Ok(address)) => address,
        Some(Err(response)) => return response,
        None => None,
    };
    let route = request.route(config);
    let admission = admission(address, route.target());
    request.respond(route, admission, config, wall)
}
