//! A message that is queued for several sessions.

use std::ops::Deref;
use std::rc::Rc;

use super::buffers::SharedState;
use super::frame;
use crate::limits::SHARED_FRAME_OVERHEAD_BYTES;
use crate::memory_budget::Reservation;

/// An encoded frame to which the queues of several sessions refer.
///
/// Its memory is charged once, when it is created, and released when the last queue has sent it.
#[derive(Clone)]
pub struct SharedFrame(Rc<Charged>);

struct Charged {
    bytes: Box<[u8]>,
    _memory: Reservation,
}

impl SharedFrame {
    /// Encodes a text message.
    ///
    /// It is charged even above the memory limit. A session for which there is no memory then does not queue it, see
    /// [`Session::forward_shared`](super::Session::forward_shared).
    pub fn text(text: &str, shared: &SharedState) -> SharedFrame {
        let mut bytes = Vec::with_capacity(frame::encoded_len(text.len()));
        frame::encode(&mut bytes, frame::TEXT, text.as_bytes());
        let memory = shared.budget.charge(bytes.len() + SHARED_FRAME_OVERHEAD_BYTES);
        SharedFrame(Rc::new(Charged { bytes: bytes.into_boxed_slice(), _memory: memory }))
    }
}

impl Deref for SharedFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}
