//! What operators use: proxies, systemd, clusters, packages, documents, scripts and the load test.

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod load;
mod packages;
mod proxies;
mod readme;
mod readme_token_examples;
mod scripts;
mod systemd;
