//! Any text is a tag of Stoker's or is not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker_core::names::{Line, Tag};

fuzz_target!(|text: &str| {
    assert_eq!(Tag::parse(text).is_some(), Tag::known(text).is_some());
    if let Ok(line) = Line::parse(text) {
        assert_eq!(Line::parse(&line.to_string()).as_ref(), Ok(&line));
    }
});
