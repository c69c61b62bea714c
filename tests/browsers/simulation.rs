//! The client library in virtual time, without browsers: `simulation` has the browser, the network and the server.

use std::path::Path;
use std::process::Command;

use crate::common::program::find;

/// Storms of each flow. Ten thousand take a few minutes: `TEST_SEEDS=10000`.
const SEEDS: u32 = 300;

/// Runs Node.js in the folder of the simulation and checks that it succeeds. Returns what it prints.
fn run_node(arguments: &[&str]) -> Option<String> {
    let node = find("node")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browsers/simulation");
    let output = Command::new(node).args(arguments).current_dir(folder).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    Some(printed)
}

fn assert_storms_pass(flow: &str) {
    let count = std::env::var("TEST_SEEDS").map_or(SEEDS, |count| count.parse().unwrap());
    let seeds = format!("1..{count}");
    let Some(printed) = run_node(&["storm.mjs", "--flow", flow, "--seeds", &seeds]) else { return };
    assert!(printed.ends_with(&format!("{count} storms, 0 failed\n")), "{printed}");
}

#[test]
fn simulated_rooms_recover_from_storms() {
    assert_storms_pass("join");
}

#[test]
fn simulated_pairs_recover_from_storms() {
    assert_storms_pass("connect");
}

#[test]
fn simulated_races_end_well() {
    run_node(&["--test", "races.mjs"]);
}

#[test]
fn simulated_browser_and_server_follow_their_specifications() {
    run_node(&["--test", "fakes.test.mjs"]);
}
