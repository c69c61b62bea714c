//! Connections in an order, with removal from anywhere in O(1) and without memory of its own: who is before and after
//! each is kept beside it. A connection is in one order at a time, and what it is doing says in which.

/// Nobody.
const NONE: u32 = u32::MAX;

/// The first and the last.
#[derive(Debug)]
pub struct Order {
    first: u32,
    last: u32,
    count: u32,
}

impl Default for Order {
    fn default() -> Order {
        Order { first: NONE, last: NONE, count: 0 }
    }
}

impl Order {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Who is first.
    pub fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }
}

/// Who is before and after each connection in its order, by slot.
#[derive(Debug, Default)]
pub struct ListNodes(Vec<[u32; 2]>);

const BEFORE: usize = 0;
const AFTER: usize = 1;

impl ListNodes {
    /// Has a place for this slot from now on.
    pub fn fit(&mut self, slot: u32) {
        if self.0.len() <= slot as usize {
            self.0.resize(slot as usize + 1, [NONE; 2]);
        }
    }

    /// Puts one behind the last.
    pub fn push_back(&mut self, order: &mut Order, slot: u32) {
        self.0[slot as usize] = [order.last, NONE];
        match order.last {
            NONE => order.first = slot,
            last => self.0[last as usize][AFTER] = slot,
        }
        order.last = slot;
        order.count += 1;
    }

    /// Puts one before the first.
    pub fn push_front(&mut self, order: &mut Order, slot: u32) {
        self.0[slot as usize] = [NONE, order.first];
        match order.first {
            NONE => order.last = slot,
            first => self.0[first as usize][BEFORE] = slot,
        }
        order.first = slot;
        order.count += 1;
    }

    /// Takes one out, which is in there.
    pub fn remove(&mut self, order: &mut Order, slot: u32) {
        let [before, after] = std::mem::replace(&mut self.0[slot as usize], [NONE; 2]);
        match before {
            NONE => order.first = after,
            before => self.0[before as usize][AFTER] = after,
        }
        match after {
            NONE => order.last = before,
            after => self.0[after as usize][BEFORE] = before,
        }
        order.count -= 1;
    }

    /// Takes the first out.
    pub fn pop_front(&mut self, order: &mut Order) -> Option<u32> {
        let first = order.first()?;
        self.remove(order, first);
        Some(first)
    }

    /// All of them, from the first to the last.
    pub fn iter(&self, order: &Order) -> impl Iterator<Item = u32> {
        std::iter::successors(order.first(), |slot| {
            Some(self.0[*slot as usize][AFTER]).filter(|next| *next != NONE)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn it_is_what_a_deque_is() {
        let (mut links, mut order, mut deque) = (ListNodes::default(), Order::default(), VecDeque::new());
        for step in 0..2000u32 {
            let slot = step * 7 % 31;
            links.fit(slot);
            match deque.iter().position(|it| *it == slot) {
                Some(at) => {
                    deque.remove(at);
                    links.remove(&mut order, slot);
                }
                None if step % 3 == 0 => {
                    deque.push_front(slot);
                    links.push_front(&mut order, slot);
                }
                None => {
                    deque.push_back(slot);
                    links.push_back(&mut order, slot);
                }
            }
            if step % 11 == 0 {
                assert_eq!(links.pop_front(&mut order), deque.pop_front());
            }
            assert_eq!(links.iter(&order).collect::<VecDeque<_>>(), deque);
            assert_eq!((order.len(), order.is_empty()), (deque.len(), deque.is_empty()));
        }
    }
}
