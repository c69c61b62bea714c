//! matchbox_socket from crates.io, unmodified, in a separate project in `tests/matchbox`.

use std::path::Path;
use std::process::Command;

use crate::common::process::{eventually, run};
use crate::common::program::find;

#[test]
fn matchbox_socket_peers_connect_exchange_messages_and_leave() {
    let Some(cargo) = find("cargo") else { return };
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matchbox");
    for (flag, prefix) in [("--matchbox", ""), ("--matchbox=/games --ayame --no-page", "/games")] {
        let (server, _stderr) = run(&format!(r#"exec "$0" {flag}"#));
        let url = format!("ws://{}{prefix}", server.address);
        let mut peers = Command::new(&cargo);
        peers.args(["run", "--quiet", "--locked", "--", &url]).current_dir(&home);
        let output = peers.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("done\n"));
        eventually("all connections are closed", || {
            server.metric("connections") + server.metric("rooms") == 0.0
        });
        assert_eq!(server.metric("errors_total{code=\"not_understood\"}"), 0.0);
    }
}
