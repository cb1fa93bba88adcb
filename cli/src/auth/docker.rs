//! Docker's credential store: `config.json` and the helpers it names.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::credentials::Credentials;

/// Some helpers ask the user for a password.
const HELPER_TIMEOUT: Duration = Duration::from_mins(1);

/// The store could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{} is not Docker's config: {cause}", path.display())]
    Malformed { path: PathBuf, cause: serde_json::Error },
    #[error("Docker's config names the helper `docker-credential-{helper}`, which does not run: {cause}")]
    NoHelper { helper: String, cause: std::io::Error },
    #[error("the helper `docker-credential-{helper}` failed: {why}")]
    HelperFailed { helper: String, why: String },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What the store knows of a registry, by the name under which Docker logs in to it.
pub(super) async fn credentials(login: &str) -> Result<Credentials, StoreError> {
    let config = read_config()?;
    let helper = config.cred_helpers.get(login).unwrap_or(&config.creds_store);
    if !helper.is_empty() {
        let found = ask_helper(helper, login).await?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    Ok(entry(&config, login))
}

fn read_config() -> Result<Config, StoreError> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"))?));
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let Some(folder) = folder.or_else(|| Some(home()?.join(".docker"))) else {
        return Ok(Config::default());
    };
    let path = folder.join("config.json");
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|cause| StoreError::Malformed { path, cause }),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Config::default()),
        Err(cause) => Err(StoreError::Unreadable { path, cause }),
    }
}

/// Old versions of Docker wrote whole URLs.
fn host_of(key: &str) -> &str {
    let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    name.split('/').next().unwrap_or(name)
}

fn entry(config: &Config, login: &str) -> Credentials {
    let same_host = || config.auths.iter().find(|(key, _)| host_of(key) == host_of(login));
    let entry = config.auths.get(login).or_else(|| same_host().map(|(_, entry)| entry));
    let Some(entry) = entry else { return Credentials::Anonymous };
    if !entry.identitytoken.is_empty() {
        return Credentials::RefreshToken(entry.identitytoken.clone());
    }
    let decoded = BASE64.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (user, secret) = pair.unwrap_or((&entry.username, &entry.password));
    if user.is_empty() {
        return Credentials::Anonymous;
    }
    Credentials::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }
}

async fn ask_helper(helper: &str, login: &str) -> Result<Credentials, StoreError> {
    let no_helper = |cause| StoreError::NoHelper { helper: helper.to_owned(), cause };
    let failed = |why: &str| StoreError::HelperFailed { helper: helper.to_owned(), why: why.to_owned() };
    if helper.contains(['/', '\\']) {
        return Err(failed("its name has a path in it"));
    }
    let mut process = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(no_helper)?;
    if let Some(mut input) = process.stdin.take() {
        // A helper that does not listen says so by its answer.
        let _ = input.write_all(login.as_bytes()).await;
    }
    let output = tokio::time::timeout(HELPER_TIMEOUT, process.wait_with_output()).await;
    let output = output.map_err(|_| failed("no answer within a minute"))?.map_err(no_helper)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stdout);
        let words = words.trim();
        // The helpers' common library writes this where it knows nothing of a registry.
        let is_unknown = words.contains("credentials not found");
        return if is_unknown { Ok(Credentials::Anonymous) } else { Err(failed(words)) };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("it answered no JSON"))?;
    Ok(match answer.username.as_str() {
        "<token>" => Credentials::RefreshToken(answer.secret),
        "" => Credentials::Anonymous,
        _ => Credentials::Password { user: answer.username, secret: answer.secret },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_are_found_as_docker_finds_them() {
        let config: Config = serde_json::from_value(json!({"auths": {
            "registry.example": {"auth": BASE64.encode("me:se:cret")},
            "https://old.example/v1/": {"username": "me", "password": "secret"},
            "token.example": {"auth": BASE64.encode("x:"), "identitytoken": "t"},
            "empty.example": {},
            "broken.example": {"auth": "%%%"},
        }, "unknown": 1}))
        .unwrap();
        let password =
            |secret: &str| Credentials::Password { user: "me".to_owned(), secret: secret.to_owned() };
        assert_eq!(entry(&config, "registry.example"), password("se:cret"));
        assert_eq!(entry(&config, "old.example"), password("secret"));
        assert_eq!(entry(&config, "token.example"), Credentials::RefreshToken("t".to_owned()));
        for none in ["empty.example", "broken.example", "other.example", "example"] {
            assert_eq!(entry(&config, none), Credentials::Anonymous, "{none}");
        }
    }
}
