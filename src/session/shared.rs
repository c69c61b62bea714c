//! What all sessions share, because only one is at work at a time.

use std::ops::Range;
use std::time::Duration;

use tungstenite::Message;
use tungstenite::protocol::WebSocketConfig;

use super::work::Spare;
use crate::address::Crowd;
use crate::budget::Budget;
use crate::config::{CODEC_BYTES, Config, QUEUE_BYTES_SPARE, READ_BYTES_MAX};
use crate::metrics::Metrics;

/// What all sessions share, because only one is at work at a time.
pub struct Shared {
    /// What the operator chose.
    pub config: Config,
    /// What is counted.
    pub metrics: Metrics,
    /// The time since the start, looked up once a turn.
    pub now: Duration,
    /// What time it is, since 1970: tokens go by the clock on the wall.
    pub wall: Duration,
    /// Whether there is no place for another WebSocket.
    pub full: bool,
    /// How many connections come from where.
    pub crowd: Crowd,
    /// How much memory is used.
    pub budget: Budget,
    pub(super) codec_config: WebSocketConfig,
    /// For the next session that has something to do.
    pub(super) spare: Spare,
}

impl Shared {
    /// For sessions under this configuration.
    pub fn new(config: Config) -> Shared {
        Shared {
            codec_config: WebSocketConfig::default()
                .read_buffer_size(CODEC_BYTES)
                // Pongs and Closes go to the queue, and wait in the codec only where that is full.
                .write_buffer_size(0)
                .max_write_buffer_size(QUEUE_BYTES_SPARE)
                .max_message_size(Some(config.message_bytes_max))
                .max_frame_size(Some(config.message_bytes_max)),
            crowd: Crowd::new(config.connections_per_ip_max),
            budget: Budget::new(&config),
            config,
            metrics: Metrics::default(),
            now: Duration::ZERO,
            wall: Duration::ZERO,
            full: false,
            spare: Vec::new(),
        }
    }
}

/// What the last read brought, and what was made of it. All sessions share one: who has read takes it all before
/// another reads.
pub struct Scratch {
    pub(super) bytes: Box<[u8]>,
    /// The part of the bytes that is not yet taken.
    pub(super) unread: Range<usize>,
    /// The last message that the codec gave.
    pub(super) message: Message,
}

impl Default for Scratch {
    fn default() -> Scratch {
        let bytes = vec![0; READ_BYTES_MAX].into_boxed_slice();
        Scratch { bytes, unread: 0..0, message: Message::Close(None) }
    }
}

impl Scratch {
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.unread.clone()]
    }
}
