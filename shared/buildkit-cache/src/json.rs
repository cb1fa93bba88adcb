//! Reading and writing JSON as Go does, without a copy of what is already known.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::names::Digest;

/// JSON fields that Stoker does not know and hands on.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// Writing these types cannot fail: the keys of their maps are strings, and their writer is memory.
#[expect(clippy::expect_used, reason = "a default would be stored as if it were the cache")]
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and times always make JSON")
}

/// Reads JSON that is checked once to be text, and not string by string.
pub(super) fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> serde_json::Result<T> {
    // What is no text is read for its error.
    str::from_utf8(json).map_or_else(|_| serde_json::from_slice(json), serde_json::from_str)
}

/// Text from outside, fit for a log line.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}

/// Go's zero time, which stands for "unknown".
const ZERO_TIME: Timestamp = Timestamp::constant(-62_135_596_800, 0);
/// The start of year 0; Go reads no earlier time.
const EARLIEST: Timestamp = Timestamp::constant(-62_167_219_200, 0);

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sha(pub(super) [u8; 32]);

impl Sha {
    fn read(text: &str) -> Option<Self> {
        Digest::read(text).map(|digest| Self(*digest.as_bytes()))
    }

    fn with_text<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        Digest::from_bytes(self.0).with_text(then)
    }
}

impl From<&Digest> for Sha {
    fn from(digest: &Digest) -> Self {
        Self(*digest.as_bytes())
    }
}

impl From<Sha> for Digest {
    fn from(sha: Sha) -> Self {
        Self::from_bytes(sha.0)
    }
}

impl Serialize for Sha {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| out.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Text::deserialize(input)? {
            Text::Sha(sha) => Ok(sha),
            Text::Other(_) => {
                Err(D::Error::custom("expected `sha256:` and 64 lower-case hexadecimal digits"))
            }
        }
    }
}

/// Any text, usually that of a digest. Sorts as the text does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Text {
    /// A digest's.
    Sha(Sha),
    /// Any other.
    Other(Box<str>),
}

impl Text {
    pub(super) fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Sha(sha) => sha.with_text(then),
            Self::Other(text) => then(text),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Other(text) if text.is_empty())
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Sha::read(text).map_or_else(|| Self::Other(text.into()), Self::Sha)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(|text| f.write_str(text))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Sha(ours), Self::Sha(theirs)) => ours.cmp(theirs),
            (Self::Other(ours), Self::Other(theirs)) => ours.cmp(theirs),
            _ => self.with(|ours| other.with(|theirs| ours.cmp(theirs))),
        }
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.with(|text| out.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl Visitor<'_> for AnyText {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::from(text))
            }
        }
        input.deserialize_str(AnyText)
    }
}

/// The name of a field, borrowed from the input where nothing in it is escaped.
pub(super) struct Name<'de>(pub(super) Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct AnyName;
        impl<'de> Visitor<'de> for AnyName {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        input.deserialize_str(AnyName)
    }
}

/// Reads the value of a field that Stoker does not know.
///
/// Refuses one that BuildKit would read as one of the known: Go matches names without regard to case, and what
/// Stoker checks must be what BuildKit reads. The maps in a value get one order: they remember that of the input.
pub(super) fn read_extra<'de, A: MapAccess<'de>>(
    map: &mut A,
    name: &str,
    known: &[&str],
    extra: &mut Extra,
) -> Result<(), A::Error> {
    // Both ways, because Go folds by Unicode: a Kelvin sign has a lower case, a long s an upper.
    let fold = |name: &str| name.to_lowercase().to_uppercase();
    let folded = fold(name);
    if let Some(known) = known.iter().find(|known| fold(known) == folded) {
        let name = clip(name);
        return Err(A::Error::custom(format!("field `{name}` differs from `{known}` only in case")));
    }
    let mut value: serde_json::Value = map.next_value()?;
    value.sort_all_objects();
    extra.insert(name.to_owned(), value);
    Ok(())
}

/// Implements reading of a struct from a JSON object, as Go does: any field may be absent or `null`, and then has the
/// value after `or`. Unlike Go it takes no field twice. What is not named goes to the field `extra`.
macro_rules! read_object {
    ($type:ident, { $($name:literal => $field:ident or $default:expr),* $(,)? }) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$type, A::Error> {
                        use serde::de::Error as _;
                        $(let mut $field = None;)*
                        let mut extra = Extra::new();
                        while let Some(name) = map.next_key::<$crate::json::Name<'de>>()? {
                            match &*name.0 {
                                $($name => {
                                    if $field.is_some() {
                                        return Err(A::Error::duplicate_field($name));
                                    }
                                    $field = Some(map.next_value::<Option<_>>()?);
                                })*
                                other => $crate::json::read_extra(&mut map, other, &[$($name),*], &mut extra)?,
                            }
                        }
                        Ok($type { $($field: match $field.flatten() {
                            Some(value) => value,
                            None => $default,
                        },)* extra })
                    }
                }
                input.deserialize_map(Fields)
            }
        }
    };
}
pub(super) use read_object;

/// Stands in [`read_object`] for a value that must be there.
macro_rules! required {
    ($name:literal) => {
        return Err(A::Error::missing_field($name))
    };
}
pub(super) use required;

/// A time as Go writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) Timestamp);

impl Default for Time {
    fn default() -> Self {
        Self(ZERO_TIME)
    }
}

impl Time {
    /// The time, unless it stands for "unknown".
    pub(super) fn known(self) -> Option<Timestamp> {
        (self.0 > ZERO_TIME).then_some(self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(out)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let time = Timestamp::deserialize(input)?;
        if time < EARLIEST { Err(D::Error::custom("time before year 0")) } else { Ok(Self(time)) }
    }
}

/// When something was last used: whole seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seconds(Timestamp);

impl From<Timestamp> for Seconds {
    fn from(time: Timestamp) -> Self {
        Self(Timestamp::from_second(time.as_second()).unwrap_or(time))
    }
}

impl From<Seconds> for Timestamp {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_i64(self.0.as_second())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Timestamp::from_second(i64::deserialize(input)?).map(Self).map_err(D::Error::custom)
    }
}
