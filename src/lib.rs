#![doc = include_str!("README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

// In the order of imports, which the blank lines keep.
pub mod server;

pub mod health;

pub mod session;

pub mod http;

pub mod web;

pub mod protocols;

pub mod metrics;

pub mod protocol;

pub mod rate_limit;

pub mod timestamp;

pub mod logger;

pub mod memory_budget;

pub mod config;

pub mod token;

pub mod json;

pub mod id;

pub mod limits;

pub mod paths;

pub mod query;

pub mod origin;

pub mod address;

pub mod named_enum;

// The unit tests use a file of the integration tests, in which this crate has its name.
#[cfg(test)]
extern crate self as noroshi;
