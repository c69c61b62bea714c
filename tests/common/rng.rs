//! What happens at random, and the same again from the same seed.

/// Marsaglia's xorshift64: enough to be arbitrary, and the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }
}
