//! The names that caches are told by: digests of blobs, and commits of git.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A string was not what its place demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}` is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidName {
    /// The error for a `what` that does not keep the `rule`; of its text, the start is shown.
    #[must_use]
    pub fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        let value = value.chars().take(80).flat_map(char::escape_default).collect();
        Self { what, value, rule }
    }
}

/// Declares a type for text that keeps a rule. It takes the type's documentation and name, what it is called
/// and its rule in errors, and two functions: one that brings the text to its normal form, and one that
/// checks it.
#[macro_export]
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $normal:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            pub fn new(value: impl Into<String>) -> Result<Self, $crate::InvalidName> {
                let normal: fn(String) -> String = $normal;
                let check: fn(&str) -> bool = $check;
                let value = normal(value.into());
                if check(&value) { Ok(Self(value)) } else { Err($crate::InvalidName::new($what, &value, $rule)) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::InvalidName;
            fn try_from(value: String) -> Result<Self, $crate::InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A git commit: 40 hexadecimal digits (SHA-1), or 64 (SHA-256).
    Commit,
    "commit",
    "expected 40 or 64 hexadecimal digits, and not all of them zero",
    |v| v.to_ascii_lowercase(),
    |v| (v.len() == 40 || v.len() == 64) && v.chars().all(|c| c.is_ascii_hexdigit()) && v.contains(|c| c != '0')
);

impl Commit {
    /// The first 8 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.as_str()[..8]
    }
}

/// The digest of a manifest or a blob: SHA-256, as its 32 bytes. A large repository has hundreds of thousands of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

const SHA256: &str = "sha256:";
const SHA256_CHARS: usize = SHA256.len() + 64;

/// The values of lower-case hexadecimal digits.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        digits[HEX[value as usize] as usize] = value;
        value += 1;
    }
    digits
};
const NO_DIGIT: u8 = 0x80;
const HEX: &[u8; 16] = b"0123456789abcdef";

impl Digest {
    /// Reads `sha256:` and 64 lower-case hexadecimal digits. A cache has tens of thousands, so no crate's loop will do.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (pairs, []) = text.strip_prefix(SHA256)?.as_bytes().as_chunks::<2>() else { return None };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return None;
        }
        let mut wrong = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
            wrong |= high | low;
            *byte = high << 4 | low & 15;
        }
        (wrong & NO_DIGIT == 0).then_some(Self(bytes))
    }

    /// Writes what [`Digest::read`] reads.
    pub(crate) fn with_text<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        let mut text = [0; SHA256_CHARS];
        text[..SHA256.len()].copy_from_slice(SHA256.as_bytes());
        for (pair, byte) in text[SHA256.len()..].chunks_exact_mut(2).zip(self.0) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        then(str::from_utf8(&text).unwrap_or_default())
    }

    /// Checks and takes a digest as text.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        let text = text.as_ref();
        let rule = "expected `sha256:` and 64 lower-case hexadecimal digits";
        Self::read(text).ok_or_else(|| InvalidName::new("digest", text, rule))
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest that these are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Digest {
    /// A manifest has dozens of them, so none is copied as text first.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                Digest::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
