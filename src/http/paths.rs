//! The fixed paths of the main listener.
//!
//! Routing uses them, and the flags that mount other protocols are checked against them, so that no flag can hide a path
//! of the server.

/// The WebSocket endpoint of the default room. Other rooms are below it.
pub const WEBSOCKET: &str = "/ws";
/// The health check endpoint.
pub const HEALTH: &str = "/healthz";
/// The health check endpoint of Ayame's server, available with `--ayame`.
pub const AYAME_HEALTH: &str = "/.ok";
/// The health check endpoint of matchbox's server, available with `--matchbox`.
pub const MATCHBOX_HEALTH: &str = "/health";
/// The demonstration page, the page that tests a deployment, and the client library.
///
/// `web::find` returns their contents; it depends on this order.
pub const PAGES: [&str; 3] = ["/", "/check", "/noroshi.js"];

/// Returns the fixed path that conflicts with a protocol mounted at this path.
pub fn find_conflict(path: &str) -> Option<&'static str> {
    let fixed = [WEBSOCKET, HEALTH, AYAME_HEALTH, MATCHBOX_HEALTH];
    if let Some(reserved) = fixed.into_iter().chain(PAGES).find(|reserved| *reserved == path) {
        return Some(reserved);
    }
    let is_room = path.strip_prefix(WEBSOCKET).is_some_and(|rest| rest.starts_with('/'));
    is_room.then_some(WEBSOCKET)
}
