//! The paths of the main listener that belong to no protocol.
//!
//! Flags that mount protocols are checked against them, so that no flag can hide a path of the server.

/// The health check endpoint.
pub const HEALTH: &str = "/healthz";
/// The demonstration page, the page that tests a deployment, the first module of the client library, and a library of the
/// demonstration page.
///
/// `web::find` returns their contents; it depends on this order.
pub const PAGES: [&str; 4] = ["/", "/check", "/noroshi.js", "/qrcode.js"];
/// The folder of the other modules of the client library. No protocol is mounted there or below, whatever modules there are.
pub const MODULES: &str = "/noroshi";
