//! Exports the plugin of the crate `gst-plugin-webrtc`, unmodified.

pub use webrtc::*;
