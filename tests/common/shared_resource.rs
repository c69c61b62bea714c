//! Something that the tests of a program share, such as descriptors, of which each test reserves a part.

use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
pub struct SharedResource {
    reserved: Mutex<usize>,
    released: Condvar,
}

/// A part that is reserved until the value is dropped.
pub struct Reserved {
    resource: &'static SharedResource,
    amount: usize,
}

impl SharedResource {
    pub const fn new() -> SharedResource {
        SharedResource { reserved: Mutex::new(0), released: Condvar::new() }
    }

    /// Waits until an amount is free. If it is more than the total, waits until everything is free.
    pub fn reserve(&'static self, amount: usize, total: usize) -> Reserved {
        let amount = amount.min(total);
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let is_scarce = |reserved: &mut usize| *reserved + amount > total;
        *self.released.wait_while(reserved, is_scarce).unwrap_or_else(PoisonError::into_inner) += amount;
        Reserved { resource: self, amount }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        *self.resource.reserved.lock().unwrap_or_else(PoisonError::into_inner) -= self.amount;
        self.resource.released.notify_all();
    }
}
