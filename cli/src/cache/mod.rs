//! `stoker cache`: a file per command.

pub(crate) mod diff;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod prune;
pub(crate) mod verify;

/// What commands print for programs.
pub(crate) fn to_json(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_string_pretty(value);
    // Strings and numbers always make JSON.
    json.map_or_else(|error| error.to_string(), |json| json + "\n")
}
