//! Any body is a webhook that means something, or is refused, whichever forge it seems to come from. The first line is
//! the event's name, and every header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker_core::event::Event;
use stoker_core::forge::{Forge, Meaning, Refusal, check_age, codecommit, read, verify};
use stoker_core::names::{Branch, Repository};

fn default_branch_of(_: &Repository) -> Option<Branch> {
    Branch::new("main").ok()
}

/// Whatever comes of it is an event that the bus gives back as it was.
fn check(meaning: Result<Meaning, Refusal>) {
    let Ok(Meaning::Events(events)) = meaning else { return };
    assert!(!events.is_empty());
    for mut event in events {
        let json = serde_json::to_string(&event).expect("an event is JSON");
        assert_eq!(serde_json::from_str::<Event>(&json).expect("an event is read back"), event);
        let _ = check_age(&mut event, jiff::Timestamp::UNIX_EPOCH);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (name, body) = bytes.split_at(end);
    let name = str::from_utf8(name).ok();
    for forge in Forge::ALL {
        check(read(forge, name.unwrap_or_default(), body, &default_branch_of));
        let secrets = [b"secret".to_vec(), b"whsec_c2VjcmV0".to_vec()];
        let _ = verify(forge, &secrets, &|_: &str| name, body, jiff::Timestamp::UNIX_EPOCH);
    }
    if let Ok(event) = serde_json::from_slice(body) {
        check(codecommit::read(&event, &default_branch_of));
    }
});
