//! What was computed of directories, to be used for other commits and in later runs.

use std::cell::RefCell;
use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::key::Key;

/// Keys of directories that were computed before. They hold for every commit, so one memory serves a whole history,
/// and a commit costs what it changes.
#[derive(Debug, Default)]
pub struct Memory(RefCell<HashMap<Key, Known>>);

/// What is known of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Nothing of an empty directory.
    pub(crate) key: Option<Key>,
    /// Whether it was asked for since the memory was read.
    is_used: bool,
}

/// The code that decides what keys are: keys that other code computed are not taken.
const CODE: [&[u8]; 5] = [
    include_bytes!("context.rs"),
    include_bytes!("glob.rs"),
    include_bytes!("ignore.rs"),
    include_bytes!("key.rs"),
    include_bytes!("content.rs"),
];

const DIGEST: usize = 32;
/// What a directory is known by, whether it has a key, and the key.
const ENTRY: usize = DIGEST + 1 + DIGEST;

impl Memory {
    pub(crate) fn get(&self, name: &Key) -> Option<Known> {
        let mut all = self.0.borrow_mut();
        let known = all.get_mut(name)?;
        known.is_used = true;
        Some(*known)
    }

    pub(crate) fn put(&self, name: Key, key: Option<Key>) {
        self.0.borrow_mut().insert(name, Known { key, is_used: true });
    }

    /// What was computed or asked for, to be [read](Self::from_bytes) by the same version of this crate.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = code().to_vec();
        for (name, known) in self.0.borrow().iter().filter(|(_, known)| known.is_used) {
            bytes.extend(name.bytes());
            bytes.push(u8::from(known.key.is_some()));
            bytes.extend(known.key.map_or([0; DIGEST], |key| *key.bytes()));
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. Nothing if something else wrote it, or not all of it is there.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        let entries = content.strip_prefix(&code())?;
        if *Sha256::digest(content) != *digest || entries.len() % ENTRY != 0 {
            return None;
        }
        let entry = |entry: &[u8]| {
            let (name, rest) = entry.split_first_chunk::<DIGEST>()?;
            let (has_key, key) = rest.split_first()?;
            let key = Key::from(*key.first_chunk::<DIGEST>()?);
            Some((Key::from(*name), Known { key: (*has_key == 1).then_some(key), is_used: false }))
        };
        let all: Option<HashMap<Key, Known>> = entries.chunks(ENTRY).map(entry).collect();
        Some(Self(RefCell::new(all?)))
    }
}

fn code() -> [u8; DIGEST] {
    let mut code = Sha256::new();
    for file in CODE {
        code.update(file);
    }
    code.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_what_was_written_or_none() {
        let key = |byte: u8| Key::from([byte; 32]);
        let memory = Memory::default();
        memory.put(key(1), Some(key(2)));
        memory.put(key(3), None);
        let bytes = memory.to_bytes();
        let known = |memory: &Memory, name| memory.get(&key(name)).map(|known| known.key);
        let read = Memory::from_bytes(&bytes).unwrap();
        assert_eq!([1, 2, 3].map(|name| known(&read, name)), [Some(Some(key(2))), None, Some(None)]);
        // What a later run has not asked for is not kept for the one after it.
        let read = Memory::from_bytes(&bytes).unwrap();
        read.get(&key(3));
        let again = Memory::from_bytes(&read.to_bytes()).unwrap();
        assert_eq!([1, 3].map(|name| known(&again, name)), [None, Some(None)]);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Memory::from_bytes(&changed).is_none(), "{at}");
            assert!(Memory::from_bytes(&bytes[..at]).is_none(), "{at}");
        }
    }
}
