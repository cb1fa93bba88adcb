//! The digests that `BuildKit`'s own records have, of what a Dockerfile alone decides: `CacheMap` of its operations
//! (`solver/llbsolver/ops/file.go`, `source/containerimage`), as a cache names them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::key::Key;

fn sha256(text: &str) -> String {
    Key::from(<[u8; 32]>::from(Sha256::digest(text))).to_string()
}

/// The digest of the record of an operation that has this digest: of its first output.
#[must_use]
pub fn record_of(operation: &str) -> String {
    format!("sha256:{}", sha256(&format!("{operation}@0")))
}

/// The digest of the record of an image, by its manifest's digest and the platform that was asked for.
#[must_use]
pub fn image_record(digest: &str, platform: &str) -> Option<String> {
    let mut parts = platform.split('/');
    let (os, architecture) = (parts.next()?, parts.next()?);
    let variant = parts.next().map(|variant| format!(r#","Variant":"{variant}""#)).unwrap_or_default();
    if !is_plain(digest) || !is_plain(platform) {
        return None;
    }
    let key = sha256(&format!(r#"{{"Digest":"{digest}","OS":"{os}","Arch":"{architecture}"{variant}}}"#));
    Some(record_of(&format!("sha256:{}", sha256(&format!("buildkit.source.v0:sha256:{key}")))))
}

/// Go and everybody else write such a text into JSON as it is.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| (c.is_ascii_graphic() || c == ' ') && !['"', '\\', '<', '>', '&'].contains(&c))
}

fn file_record(actions: &[String]) -> String {
    let actions: Vec<String> =
        actions.iter().map(|action| format!("\"{}\"", STANDARD.encode(action))).collect();
    let text = format!(r#"{{"Type":"buildkit.file.v0","Actions":[{}]}}"#, actions.join(","));
    record_of(&format!("sha256:{}", sha256(&text)))
}

/// A copy of files by their paths, without flags.
pub(crate) fn copied(sources: &[String], destination: &str) -> Option<String> {
    if sources.is_empty() || !destination.starts_with('/') || !is_plain(destination) {
        return None;
    }
    let action = |source: &String| {
        let base = source.trim_end_matches('/').rsplit('/').next().filter(|base| !["", "."].contains(base));
        let base = base.unwrap_or("/");
        (base != ".." && is_plain(base)).then(|| {
            format!(
                r#"{{"src":"{base}","dest":"{destination}","mode":-1,"followSymlink":true,"dirCopyContents":true,"createDestPath":true,"allowWildcard":true,"allowEmptyWildcard":true,"timestamp":-1}}"#
            )
        })
    };
    Some(file_record(&sources.iter().map(action).collect::<Option<Vec<_>>>()?))
}

/// A `WORKDIR`.
pub(crate) fn directory(path: &str) -> Option<String> {
    let action = format!(r#"{{"path":"{path}","mode":493,"makeParents":true,"timestamp":-1}}"#);
    (path.starts_with('/') && is_plain(path)).then(|| file_record(&[action]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What BuildKit 0.13 exported.
    #[test]
    fn the_digests_are_those_of_records_that_buildkit_wrote() {
        let begins = |record: Option<String>, with: &str| {
            let record = record.unwrap();
            assert!(record.starts_with(&format!("sha256:{with}")), "{record}");
        };
        let copy = |source: &str, to: &str| copied(&[source.to_owned()], to);
        begins(copy("/b/built", "/b"), "5004de27");
        begins(copy("package.json", "/why16697/"), "0f026516");
        begins(copy("src", "/why16697/src"), "5ed19786");
        begins(directory("/why16697"), "d032e4c0");
        let base = "sha256:11b5623d458e729cea7101d66d884c425f89b8750b63bf239fc81ab653b37746";
        begins(image_record(base, "linux/amd64"), "4718f303");
        assert_eq!((copy("a\"", "/b"), copy("a", "b"), image_record("<", "a/b")), (None, None, None));
    }
}
