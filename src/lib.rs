#![doc = include_str!("README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

// In the order of imports. The blank lines stop rustfmt from sorting.
pub mod server;

pub mod health;

pub mod session;

pub mod web;

pub mod protocols;

pub mod protocol;

pub mod metrics;

pub mod message;

pub mod rate_limit;

pub mod timestamp;

pub mod logger;

pub mod memory_budget;

pub mod config;

pub mod http;

pub mod json;

pub mod id;

pub mod limits;

pub mod named_enum;

// The unit tests use a file of the integration tests, in which this crate has its name.
#[cfg(test)]
extern crate self as noroshi;
