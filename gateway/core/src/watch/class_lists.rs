//! Lists of device classes, each kept once: most users have the same few.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// A list, and how many users have it.
#[derive(Debug, Default)]
struct Known {
    list: Box<[u8]>,
    users: u32,
}

/// Lists by number; 0 is the empty one.
#[derive(Debug, Default)]
pub(crate) struct ClassLists {
    known: Vec<Known>,
    free: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Bytes of the lists.
    list_bytes: usize,
}

impl ClassLists {
    /// Memory held, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let tables = self.known.capacity() * size_of::<Known>() + self.free.capacity() * 4;
        tables + self.index.allocation_size() + self.list_bytes
    }

    /// The list of a number.
    pub(crate) fn get(&self, number: u32) -> &[u8] {
        match number {
            0 => &[],
            number => &self.known[number as usize - 1].list,
        }
    }

    /// One more user has this list. Returns its number, which is to be given back by [`ClassLists::let_go`].
    pub(crate) fn number(&mut self, list: &[u8]) -> u32 {
        if list.is_empty() {
            return 0;
        }
        let hash = self.hasher.hash_one(list);
        let known = &mut self.known;
        let found = self.index.find(hash, |number| *known[*number as usize - 1].list == *list).copied();
        if let Some(number) = found {
            known[number as usize - 1].users += 1;
            return number;
        }
        let new = Known { list: list.into(), users: 1 };
        self.list_bytes += list.len();
        let number = match self.free.pop() {
            Some(number) => {
                known[number as usize - 1] = new;
                number
            }
            None => {
                known.push(new);
                known.len() as u32
            }
        };
        let (known, hasher) = (&self.known, &self.hasher);
        self.index.insert_unique(hash, number, |number| hasher.hash_one(&*known[*number as usize - 1].list));
        number
    }

    /// A user has it no more.
    pub(crate) fn let_go(&mut self, number: u32) {
        if number == 0 {
            return;
        }
        let known = &mut self.known[number as usize - 1];
        known.users -= 1;
        if known.users > 0 {
            return;
        }
        let list = std::mem::take(&mut known.list);
        self.list_bytes -= list.len();
        if let Ok(found) = self.index.find_entry(self.hasher.hash_one(&*list), |known| *known == number) {
            found.remove();
        }
        if self.index.is_empty() {
            (self.known, self.free, self.index) = (Vec::new(), Vec::new(), HashTable::new());
        } else {
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lists_have_one_number_until_nobody_has_them() {
        let mut lists = ClassLists::default();
        assert_eq!((lists.number(b""), lists.get(0)), (0, &b""[..]));
        let (phone, desk) = (lists.number(b"phone"), lists.number(b"desk"));
        assert_eq!((lists.number(b"phone"), lists.get(phone), lists.get(desk)), (phone, &b"phone"[..], &b"desk"[..]));
        lists.let_go(phone);
        assert_eq!(lists.number(b"phone"), phone);
        lists.let_go(phone);
        lists.let_go(phone);
        let tablet = lists.number(b"tablet");
        assert_eq!((tablet, lists.get(tablet), lists.get(desk)), (phone, &b"tablet"[..], &b"desk"[..]));
        lists.let_go(tablet);
        lists.let_go(desk);
        assert_eq!(lists.bytes(), 0);
    }
}
