//! The paths of the main listener. Routing and the flags that mount other protocols both read them, so that no flag can
//! hide a path that the server uses.

/// The default room; rooms are below it.
pub const WEBSOCKET: &str = "/ws";
/// The health check.
pub const HEALTH: &str = "/healthz";
/// The health check of Ayame's server, served with `--ayame`.
pub const AYAME_HEALTH: &str = "/.ok";
/// The health check of matchbox's server, served with `--matchbox`.
pub const MATCHBOX_HEALTH: &str = "/health";
/// The demonstration page, the page that tests a deployment, and the client library. `page::at` has their contents, in
/// this order.
pub const PAGES: [&str; 3] = ["/", "/check", "/noroshi.js"];

/// Returns the path of the server that another protocol at this path would hide, or that would hide it.
pub fn collision(path: &str) -> Option<&'static str> {
    let fixed = [WEBSOCKET, HEALTH, AYAME_HEALTH, MATCHBOX_HEALTH];
    if let Some(own) = fixed.into_iter().chain(PAGES).find(|own| *own == path) {
        return Some(own);
    }
    let is_room = path.strip_prefix(WEBSOCKET).is_some_and(|rest| rest.starts_with('/'));
    is_room.then_some(WEBSOCKET)
}
