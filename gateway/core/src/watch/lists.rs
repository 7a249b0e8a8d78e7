//! Lists of numbers, most of them short, without an allocation for each: what a user's list of watching sessions is.
//!
//! A list is four bytes where it belongs. One number is in these themselves, up to eight are in a block of two, four or
//! eight, and more are in a vector of their own.

/// A list: its length in the four highest bits, and in the others the number of its block, or its only number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct List(u32);

const LEN_SHIFT: u32 = 28;
const AT: u32 = (1 << LEN_SHIFT) - 1;
/// The longest one in a block.
const SHORT_MAX: usize = 8;
/// A long one is short again when it has as many.
const SHORT_AGAIN: usize = 6;
/// Instead of a length: it is a long one.
const LONG: u32 = 15;
/// No block.
const NONE: u32 = u32::MAX;
/// A vector grows by an eighth, and so many besides.
const GROWTH_PART: usize = 8;
const GROWTH_LEAST: usize = 64;

impl List {
    fn new(len: usize, at: u32) -> Self {
        List((len as u32) << LEN_SHIFT | at)
    }

    fn code(self) -> u32 {
        self.0 >> LEN_SHIFT
    }

    fn at(self) -> u32 {
        self.0 & AT
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(self) -> bool {
        self.code() == 0
    }
}

/// Blocks of one size. The first number of one that is free is the next of those.
#[derive(Debug)]
struct Blocks<const N: usize> {
    blocks: Vec<[u32; N]>,
    free: u32,
    free_len: usize,
}

impl<const N: usize> Default for Blocks<N> {
    fn default() -> Self {
        Blocks { blocks: Vec::new(), free: NONE, free_len: 0 }
    }
}

impl<const N: usize> Blocks<N> {
    /// A block with these numbers, `N` at most.
    fn store(&mut self, numbers: &[u32]) -> u32 {
        let mut block = [0; N];
        block[..numbers.len()].copy_from_slice(numbers);
        if self.free != NONE {
            let at = self.free;
            self.free = self.blocks[at as usize][0];
            self.free_len -= 1;
            self.blocks[at as usize] = block;
            return at;
        }
        if self.blocks.len() == self.blocks.capacity() {
            self.blocks.reserve_exact(self.blocks.len() / GROWTH_PART + GROWTH_LEAST);
        }
        self.blocks.push(block);
        self.blocks.len() as u32 - 1
    }

    fn give_back(&mut self, at: u32) {
        self.blocks[at as usize][0] = self.free;
        self.free = at;
        self.free_len += 1;
    }

    fn bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<[u32; N]>()
    }

    fn used_bytes(&self) -> usize {
        (self.blocks.len() - self.free_len) * size_of::<[u32; N]>()
    }
}

/// What is in lists.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    twos: Blocks<2>,
    fours: Blocks<4>,
    eights: Blocks<8>,
    long: Vec<Vec<u32>>,
    free_long: Vec<u32>,
    /// Bytes of the vectors of long ones.
    long_bytes: usize,
}

impl Lists {
    /// Numbers in lists are below this.
    pub(crate) const NUMBERS_MAX: u32 = 1 << LEN_SHIFT;
    /// What one more number may take, bytes.
    pub(crate) const NUMBER_BYTES_MOST: usize = 16;

    /// Memory held, bytes, without that of the lists themselves.
    pub(crate) fn bytes(&self) -> usize {
        let long = self.long.capacity() * size_of::<Vec<u32>>() + self.free_long.capacity() * 4 + self.long_bytes;
        self.twos.bytes() + self.fours.bytes() + self.eights.bytes() + long
    }

    /// What of that memory is in use. The rest is free for other lists.
    pub(crate) fn used_bytes(&self) -> usize {
        let long = (self.long.len() - self.free_long.len()) * size_of::<Vec<u32>>() + self.long_bytes;
        self.twos.used_bytes() + self.fours.used_bytes() + self.eights.used_bytes() + long
    }

    /// How many numbers a list has.
    pub(crate) fn len(&self, list: List) -> usize {
        match list.code() {
            LONG => self.long[list.at() as usize].len(),
            len => len as usize,
        }
    }

    /// The number in a place of a list.
    pub(crate) fn get(&self, list: List, at: usize) -> Option<u32> {
        match list.code() {
            0 => None,
            1 => (at == 0).then_some(list.at()),
            LONG => self.long[list.at() as usize].get(at).copied(),
            len => self.block(list).get(at).copied().filter(|_| at < len as usize),
        }
    }

    /// The place of a number, of which the low 16 bits are known.
    pub(crate) fn position(&self, list: List, low: u16, number: u32) -> Option<usize> {
        let mut places = (usize::from(low)..self.len(list)).step_by(1 << 16);
        places.find(|at| self.get(list, *at) == Some(number))
    }

    fn block(&self, list: List) -> &[u32] {
        let at = list.at() as usize;
        match list.code() {
            2 => &self.twos.blocks[at],
            3 | 4 => &self.fours.blocks[at],
            _ => &self.eights.blocks[at],
        }
    }

    fn block_mut(&mut self, list: List) -> &mut [u32] {
        let at = list.at() as usize;
        match list.code() {
            2 => &mut self.twos.blocks[at],
            3 | 4 => &mut self.fours.blocks[at],
            _ => &mut self.eights.blocks[at],
        }
    }

    /// The numbers of a short list, and how many there are.
    fn held(&self, list: List) -> ([u32; SHORT_MAX + 1], usize) {
        let (mut held, len) = ([0; SHORT_MAX + 1], list.code() as usize);
        match len {
            0 => {}
            1 => held[0] = list.at(),
            len => held[..len].copy_from_slice(&self.block(list)[..len]),
        }
        (held, len)
    }

    fn give_back(&mut self, list: List) {
        match list.code() {
            0 | 1 => {}
            2 => self.twos.give_back(list.at()),
            3 | 4 => self.fours.give_back(list.at()),
            _ => self.eights.give_back(list.at()),
        }
    }

    /// A list of these numbers.
    fn store(&mut self, numbers: &[u32]) -> List {
        let len = numbers.len();
        match len {
            0 => List::default(),
            1 => List::new(1, numbers[0]),
            2 => List::new(len, self.twos.store(numbers)),
            3 | 4 => List::new(len, self.fours.store(numbers)),
            5..=SHORT_MAX => List::new(len, self.eights.store(numbers)),
            _ => {
                let vector = numbers.to_vec();
                self.long_bytes += vector.capacity() * 4;
                let at = match self.free_long.pop() {
                    Some(at) => {
                        self.long[at as usize] = vector;
                        at
                    }
                    None => {
                        self.long.push(vector);
                        self.long.len() as u32 - 1
                    }
                };
                List::new(LONG as usize, at)
            }
        }
    }

    /// Adds a number, which is below [`Lists::NUMBERS_MAX`], at the end. Returns the list as it is from then on.
    pub(crate) fn push(&mut self, list: List, number: u32) -> List {
        debug_assert!(number < Self::NUMBERS_MAX);
        match list.code() {
            LONG => {
                let long = &mut self.long[list.at() as usize];
                let before = long.capacity();
                if long.len() == before {
                    long.reserve_exact(before / GROWTH_PART + 1);
                }
                long.push(number);
                self.long_bytes += (long.capacity() - before) * 4;
                list
            }
            // Its block has room.
            len @ (3 | 5..=7) => {
                self.block_mut(list)[len as usize] = number;
                List::new(len as usize + 1, list.at())
            }
            _ => {
                let (mut held, len) = self.held(list);
                held[len] = number;
                self.give_back(list);
                self.store(&held[..=len])
            }
        }
    }

    /// Takes the number in a place out, where the last one is from then on. Returns the list.
    pub(crate) fn swap_remove(&mut self, list: List, at: usize) -> List {
        if list.code() != LONG {
            let (mut held, len) = self.held(list);
            if at >= len {
                return list;
            }
            held[at] = held[len - 1];
            self.give_back(list);
            return self.store(&held[..len - 1]);
        }
        let long = &mut self.long[list.at() as usize];
        if at < long.len() {
            long.swap_remove(at);
        }
        let before = long.capacity();
        if long.len() <= SHORT_AGAIN {
            let numbers = std::mem::take(long);
            self.long_bytes -= before * 4;
            self.free_long.push(list.at());
            return self.store(&numbers);
        }
        if long.len() < before / 4 {
            long.shrink_to(long.len() * 2);
            self.long_bytes -= (before - long.capacity()) * 4;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::Rng;

    fn numbers(lists: &Lists, list: List) -> Vec<u32> {
        (0..lists.len(list)).map(|at| lists.get(list, at).expect("it is within")).collect()
    }

    #[test]
    fn lists_are_as_vectors_are() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut lists = Lists::default();
            let mut model: Vec<(List, Vec<u32>)> = vec![Default::default(); 30];
            for step in 0..3_000 {
                // They grow and shrink all together, so that each comes to each size both ways.
                let grows = rng.chance(if step / 700 % 2 == 0 { 700 } else { 300 });
                let (list, of_model) = &mut model[rng.below(30) as usize];
                if grows {
                    let number = rng.below(u64::from(Lists::NUMBERS_MAX)) as u32;
                    *list = lists.push(*list, number);
                    of_model.push(number);
                } else if !of_model.is_empty() {
                    let at = rng.below(of_model.len() as u64) as usize;
                    *list = lists.swap_remove(*list, at);
                    of_model.swap_remove(at);
                }
                assert_eq!(numbers(&lists, *list), *of_model, "seed {seed}");
                assert_eq!((list.is_empty(), lists.get(*list, of_model.len())), (of_model.is_empty(), None));
            }
            // A block is no two lists', and what is free is used again.
            assert!(model.iter().all(|(list, of_model)| numbers(&lists, *list) == *of_model), "seed {seed}");
            let blocks = lists.twos.blocks.len() + lists.fours.blocks.len() + lists.eights.blocks.len();
            assert!(blocks <= 3 * 30, "seed {seed}: {blocks} blocks for 30 lists");
            let long: usize = lists.long.iter().map(|long| long.capacity() * 4).sum();
            assert_eq!(lists.long_bytes, long, "seed {seed}");
        }
    }

    #[test]
    fn a_place_is_found_by_its_low_bits() {
        let (mut lists, mut list) = (Lists::default(), List::default());
        for number in 0..200_000 {
            list = lists.push(list, number);
        }
        for at in [0_usize, 1, 65_535, 65_536, 131_072, 199_999] {
            assert_eq!(lists.position(list, at as u16, at as u32), Some(at));
        }
        assert_eq!(lists.position(list, 7, 8), None);
        assert!(lists.bytes() < 200_000 * 4 * 9 / 8 + 4_096);
    }
}
