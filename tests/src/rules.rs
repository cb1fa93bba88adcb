//! What a rule of `template.yaml` hears: as much of `EventBridge`'s patterns as its rules use.

use serde_json::Value;
use wildmatch::WildMatch;

/// Whether an event pattern, without functions of the template, matches an event.
#[must_use]
pub fn matches(pattern: &Value, event: &Value) -> bool {
    let fields = pattern.as_object().expect("a pattern").iter();
    fields.into_iter().all(|(name, wanted)| match wanted {
        Value::Array(any) if name == "$or" => any.iter().any(|pattern| matches(pattern, event)),
        Value::Array(any) => any.iter().any(|one| is_one(one, &event[name])),
        pattern => matches(pattern, &event[name]),
    })
}

fn is_one(wanted: &Value, value: &Value) -> bool {
    let (prefix, wildcard) = (wanted["prefix"].as_str(), wanted["wildcard"].as_str());
    match (value.as_str(), prefix, wildcard) {
        (Some(value), Some(prefix), None) => value.starts_with(prefix),
        (Some(value), None, Some(wildcard)) => WildMatch::new(wildcard).matches(value),
        _ => {
            assert!(!wanted.is_object() || value.is_null(), "what does {wanted} match?");
            wanted == value
        }
    }
}
