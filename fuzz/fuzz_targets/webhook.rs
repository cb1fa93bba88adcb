//! Any body is a webhook that means something, or is refused. The first line is the event's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker::forge::github;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (name, body) = bytes.split_at(end);
    let _ = github::read(str::from_utf8(name).ok(), body);
    let _ = github::verify(&[b"secret".to_vec()], str::from_utf8(name).ok(), body);
});
