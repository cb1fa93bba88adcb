//! How much a cache may hold beside its size. Whoever exports one may write what they like into the mebibyte
//! that BuildKit imports, and what is short as JSON can be long in memory: each limit is one that no cache of
//! BuildKit's comes near, and that holds memory to some twelve times the bytes.

use super::json::{Extra, to_json};

/// BuildKit imports no manifest and no config of more bytes than this; it then builds cold, with a line in its log.
pub const IMPORT_LIMIT: usize = 1 << 20;

/// The size in bytes to keep manifest and config under, well before [`IMPORT_LIMIT`].
pub const SAFE_SIZE: usize = 900 * 1024;

/// Bytes of JSON to each value, at least. A record with one input and one result has 14 values in some 190
/// bytes, a further link 2 in 13; a list of zeros has one in two.
const BYTES_A_VALUE: usize = 8;
/// Bytes of the smallest record with a digest, `{"digest":"sha256:..."},`. BuildKit writes none without.
pub(super) const BYTES_A_RECORD: usize = 84;
/// Bytes of a layer's descriptor, at least. BuildKit's have some 330, a bare one with type, digest and size
/// 170; the largest builds known have some thousand layers.
pub(super) const BYTES_A_LAYER: usize = 256;
/// Of a cache one byte in so many may be of fields that Stoker does not know, and hands on. BuildKit writes none today.
const UNKNOWN_ONE_IN: usize = 64;

/// There is more of something than in any real cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has {found} {what}, and no cache of BuildKit's has more than {most}")]
pub struct TooMany {
    /// What there is too much of.
    what: &'static str,
    found: usize,
    most: usize,
}

/// Holds a number against the most that there may be.
pub(super) fn at_most(most: usize, found: usize, what: &'static str) -> Result<(), TooMany> {
    if found > most { Err(TooMany { what, found, most }) } else { Ok(()) }
}

/// Checks JSON before it is read: how many values there are at most in it. `limit` is how many bytes it may have.
pub(super) fn check_json(json: &[u8], limit: usize) -> Result<(), TooMany> {
    // Those in strings count too: real ones have none there, and so no state is kept. Sums of bytes, which a
    // processor adds many at a time, need pieces whose sum fits one.
    let is = |byte: u8, what: u8| u8::from(byte == what);
    let is_value = |&byte: &u8| is(byte, b',') | is(byte, b'{') | is(byte, b'[');
    let sums = json.chunks(usize::from(u8::MAX)).map(|piece| piece.iter().map(is_value).sum::<u8>());
    let values = sums.map(usize::from).sum();
    at_most(limit / BYTES_A_VALUE, values, "values")
}

/// Checks the fields that Stoker does not know.
pub(super) fn check_unknown<'a>(all: impl Iterator<Item = &'a Extra>, limit: usize) -> Result<(), TooMany> {
    let bytes = |extra: &Extra| to_json(extra).len();
    let found = all.filter(|extra| !extra.is_empty()).map(bytes).sum();
    at_most(limit / UNKNOWN_ONE_IN, found, "bytes in fields that Stoker does not know")
}

#[cfg(test)]
mod tests {
    use super::super::{CONFIG_MEDIA_TYPE, Cache, IMPORT_LIMIT, Kind, MANIFEST_MEDIA_TYPE, classify};
    use crate::names::Digest;

    /// Why a config is refused that fits what BuildKit imports; nothing where it is not.
    fn refused(config: &str) -> Option<String> {
        assert!(config.len() < IMPORT_LIMIT, "{}", config.len());
        let described = format!(
            "{{\"mediaType\":\"{CONFIG_MEDIA_TYPE}\",\"digest\":\"{}\",\"size\":{}}}",
            Digest::of(config.as_bytes()),
            config.len()
        );
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_MEDIA_TYPE}\",\"config\":{described},\"layers\":[]}}"
        );
        let Kind::Cache(manifest) = classify(manifest.as_bytes()) else { panic!("no manifest") };
        Cache::parse(&manifest, config.as_bytes()).err().map(|wrong| wrong.to_string())
    }

    #[test]
    fn attack_more_of_anything_than_buildkit_could_write() {
        let list = |entry: &str, times: usize| vec![entry; times].join(",");
        let wrong = |config: String| refused(&config).unwrap_or_else(|| panic!("{} bytes", config.len()));
        assert!(
            wrong(format!("{{\"records\":[{}]}}", list("{\"digest\":\"a\"}", 58_000))).contains("records")
        );
        assert!(wrong(format!("{{\"x\":[{}]}}", list("0", 500_000))).contains("values"));
        assert!(wrong(format!("{{\"x\":\"{}\"}}", "y".repeat(500_000))).contains("does not know"));
        let record = format!("{{\"digest\":\"{}\"}}", Digest::of(b"x"));
        assert_eq!(refused(&format!("{{\"records\":[{}]}}", list(&record, 12_000))), None, "BuildKit could");
    }
}
