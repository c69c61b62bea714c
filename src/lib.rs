#![forbid(unsafe_code)]
pub mod config;
pub mod hub;
pub mod message;
pub mod rate;
