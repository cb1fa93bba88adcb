//! Where things are in the checkout.

use std::path::{Path, PathBuf};

/// The checkout.
pub(crate) fn root() -> &'static Path {
    // The manifest lies in `xtask/`, one level down.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where the tasks keep what they install and write.
pub(crate) fn home() -> PathBuf {
    root().join(".stoker")
}
