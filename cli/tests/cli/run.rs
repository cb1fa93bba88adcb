//! Running the tool.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a run of the tool came to.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A folder of its own for each run, which is Docker's config, and where credential helpers are found.
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stoker-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn with_config(config: &serde_json::Value) -> Self {
        let home = Self::new();
        std::fs::write(home.0.join("config.json"), config.to_string()).unwrap();
        home
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) async fn stoker(&self, line: &str) -> Ran {
        self.stoker_given(&line.split_whitespace().collect::<Vec<_>>(), "").await
    }

    /// Runs it with any words, and with something on its standard input.
    pub(crate) async fn stoker_given(&self, words: &[&str], given: &str) -> Ran {
        self.stoker_in(&[], words, given).await
    }

    /// Runs it with more in its environment.
    pub(crate) async fn stoker_in(&self, environment: &[(&str, String)], words: &[&str], given: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stoker"));
        command.args(words).env_clear().env("DOCKER_CONFIG", &self.0).env("PATH", &self.0);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let given = given.as_bytes().to_vec();
        let run = move || {
            let mut child = command.spawn().unwrap();
            // Who wants nothing of it may be gone already.
            let _ = child.stdin.take().unwrap().write_all(&given);
            child.wait_with_output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let ran =
            Ran { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the tool for somebody without any credentials.
pub(crate) async fn stoker(line: &str) -> Ran {
    Home::new().stoker(line).await
}
