//! What operators use: proxies, systemd, clusters, packages, documents, scripts and the load test.

mod balancers;
mod camera;
mod cluster;
mod containers;
mod load;
mod packages;
mod proxies;
mod readme;
mod readme_token_examples;
mod scripts;
mod systemd;

use noroshi_test_support as common;
