//! What proves who somebody is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What is known of the user at a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        user: String,
        secret: String,
    },
    /// Good for fetching tokens only.
    RefreshToken(String),
}

impl Credentials {
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, secret } => {
                Some(format!("Basic {}", BASE64.encode(format!("{user}:{secret}"))))
            }
            Self::Anonymous | Self::RefreshToken(_) => None,
        }
    }
}
