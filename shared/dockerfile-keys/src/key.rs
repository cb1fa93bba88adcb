//! Keys, and how they are made.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What a step, a file or a directory is known by. Two that are equal hold the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The bytes of the key.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Makes a key of parts. Each part is written with its length, so that no two lists of parts make one key.
#[derive(Debug, Clone)]
pub(crate) struct Maker(Sha256);

impl Maker {
    pub(crate) fn new(kind: &str) -> Self {
        let mut maker = Self(Sha256::new());
        maker.text(kind);
        maker
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn key_of(&mut self, key: &Key) -> &mut Self {
        self.bytes(&key.0)
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.bytes(&[u8::from(value)])
    }

    pub(crate) fn texts<T: AsRef<str>>(&mut self, texts: &[T]) -> &mut Self {
        self.0.update((texts.len() as u64).to_le_bytes());
        for text in texts {
            self.text(text.as_ref());
        }
        self
    }

    pub(crate) fn key(&self) -> Key {
        Key(self.0.clone().finalize().into())
    }
}
