//! Any text is an event or is not; one that is reads back as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker_core::event::Envelope;
use stoker_core::promote::PromotionTrigger;

fuzz_target!(|text: &str| {
    if let Ok(envelope) = Envelope::parse(text) {
        let _ = PromotionTrigger::of(&envelope.event);
        let written = serde_json::to_string(&envelope).unwrap();
        assert_eq!(Envelope::parse(&written).unwrap().event, envelope.event);
    }
});
