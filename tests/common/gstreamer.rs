//! Pipelines of GStreamer with the elements webrtcsink and webrtcsrc, unmodified.

use std::path::{Path, PathBuf};

use super::files::project_root;
use super::program::{Program, is_installed};

pub const LAUNCH: &str = "/usr/bin/gst-launch-1.0";

/// A live test pattern. It is small, because each viewer has an encoder, and tests share two cores.
pub const TEST_PATTERN: &str = "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=15/1";

/// Returns the directory into which the plugin is built: see `tests/README.md`.
fn target() -> PathBuf {
    project_root().join("target/gstreamer-plugin")
}

/// Returns the plugin, which takes minutes to build. `None` if it is not built or GStreamer is not installed.
pub fn plugin() -> Option<PathBuf> {
    let plugin = target().join("debug/libgstrswebrtc.so");
    let is_complete = is_installed(LAUNCH) && is_installed(plugin.to_str().unwrap());
    is_complete.then_some(plugin)
}

/// Starts gst-launch-1.0 with arguments that are quoted for a shell. Its output is in the file `log` of its directory.
pub fn launch(plugin: &Path, arguments: &str) -> Program {
    // All processes share the list of GStreamer's own plugins, which takes seconds to create.
    let registry = target().join("gstreamer-registry.bin");
    let script = format!(
        "export GST_REGISTRY='{}'\nexec {LAUNCH} --gst-plugin-load='{}' {arguments}\n",
        registry.display(),
        plugin.display()
    );
    Program::start_after("/bin/sh", "pipeline", |home| {
        std::fs::write(home.join("pipeline"), script).unwrap();
    })
}
