//! Forges: who signed a webhook, and what it says. One file per forge.

pub mod github;

use crate::event::Event;

/// The largest webhook that is read, in bytes. Lambda's own limit is 6 MiB with base64; no push needs as much.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// What a verified webhook means for Stoker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Something that Stoker acts on.
    Event(Event),
    /// Nothing that Stoker acts on, and why.
    Ignored(&'static str),
}

/// A webhook was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It carries no signature.
    #[error("the webhook is not signed; set its secret in the forge")]
    Unsigned,
    /// The signature is not that of any valid secret over these bytes.
    #[error("the webhook's signature is wrong; its secret in the forge is not Stoker's")]
    WrongSignature,
    /// It is larger than [`MAX_BODY`].
    #[error("the webhook has {0} bytes, more than {MAX_BODY}")]
    TooLarge(usize),
    /// It does not say what happened.
    #[error("the webhook has no event header")]
    NoEvent,
    /// The body is not the JSON that this event carries.
    #[error("the webhook's body is not the JSON that this event carries")]
    Malformed(#[source] serde_json::Error),
}
