//! The memory that peers may make the server use (`--max-memory`): what is used is counted as it grows, and what
//! would be too much is refused before it is there.

use crate::config::{BASE_BYTES, Config};

/// Bytes that may be used, and that are.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    /// By connections: their places, queues and what is coming in.
    used: usize,
    /// By what protocols keep. What they keep no longer is taken off now and then only: see [`Budget::recount`].
    kept: usize,
}

impl Budget {
    /// As much as the configuration says.
    pub fn new(config: &Config) -> Budget {
        Budget { bytes_max: config.memory_bytes_max.unwrap_or(usize::MAX), used: BASE_BYTES, kept: 0 }
    }

    /// Whether so much more may be used.
    pub fn allows(&self, bytes: usize) -> bool {
        self.used + self.kept + bytes <= self.bytes_max
    }

    /// Counts so many bytes more that a protocol keeps, if they may be.
    pub fn keep(&mut self, bytes: usize) -> bool {
        let may = self.allows(bytes);
        self.kept += if may { bytes } else { 0 };
        may
    }

    /// So much is kept.
    pub fn recount(&mut self, kept: usize) {
        self.kept = kept;
    }

    /// What used this many bytes uses that many now.
    pub fn change(&mut self, before: usize, now: usize) {
        self.used = self.used + now - before;
    }

    /// Bytes that are used, as far as they are counted.
    pub fn used(&self) -> usize {
        self.used + self.kept
    }
}
