//! What one run leaves for the next on the same repository: the keys of directories, under the user's cache
//! folder. They are known by what the directories hold, so they are never wrong, only missing.

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use dockerfile_keys::Memory;
use sha2::{Digest as _, Sha256};

/// What is larger was not written here.
const LARGEST: u64 = 256 << 20;

/// The file of a repository; none where the user has no cache folder.
pub(super) struct Kept(Option<PathBuf>);

impl Kept {
    pub(super) fn of(repository: &Path) -> Self {
        let repository = fs::canonicalize(repository).unwrap_or_else(|_| repository.to_owned());
        let name = hex::encode(Sha256::digest(repository.as_os_str().as_encoded_bytes()));
        Self(folder().map(|folder| folder.join("stoker").join(format!("forecast-{}", name.split_at(16).0))))
    }

    /// What an earlier run has left; nothing if it left nothing that can be used.
    pub(super) fn read(&self) -> Memory {
        let read = |path: &PathBuf| {
            let mut bytes = Vec::new();
            fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
            Memory::from_bytes(&bytes)
        };
        self.0.as_ref().and_then(read).unwrap_or_default()
    }

    /// Leaves what a run has used. Where that cannot be, the next run takes longer, and that is all.
    pub(super) fn write(&self, memory: &Memory) {
        let write = |path: &PathBuf| {
            fs::create_dir_all(path.parent()?).ok()?;
            // Another run may read it at this moment.
            let new = path.with_extension(std::process::id().to_string());
            let written = fs::File::create(&new).and_then(|mut file| file.write_all(&memory.to_bytes()));
            if written.and_then(|()| fs::rename(&new, path)).is_err() {
                let _ = fs::remove_file(&new);
            }
            Some(())
        };
        let _ = self.0.as_ref().and_then(write);
    }
}

/// The user's cache folder, as their system has it.
fn folder() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home =
        || Some(named("HOME")?.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }));
    named("XDG_CACHE_HOME").or_else(|| named("LOCALAPPDATA")).or_else(home)
}
