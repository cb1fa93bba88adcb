//! Registries that others wrote, each a process on the loopback interface, and a client of them.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use buildkit_cache::{Cache, Kind, MANIFEST_MEDIA_TYPE, Serialised, classify_within};
use serde_json::Value;

const START_TIMEOUT: Duration = Duration::from_mins(1);
const REPOSITORY: &str = "stoker/builder";
/// The tests themselves write what BuildKit does not import.
const SIZE_LIMIT: usize = 8 << 20;

/// A registry that runs.
pub(crate) struct Registry {
    pub(crate) name: &'static str,
    host: String,
    http: ureq::Agent,
    process: Child,
}

impl Registry {
    /// The `registry` of the distribution project, as Debian packages it.
    pub(crate) fn distribution(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            storage.display()
        );
        std::fs::create_dir_all(dir)?;
        std::fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("serve").arg(config);
        Self::start("docker-registry", port, &mut command, dir)
    }

    /// The ECR of the local AWS.
    pub(crate) fn ministack(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        std::fs::create_dir_all(dir)?;
        let mut command = scenarios::ministack::serve(program, port, dir);
        let registry = Self::start("ministack", port, &mut command, dir)?;
        let create = registry
            .http
            .post(format!("http://{}/", registry.host))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "AmazonEC2ContainerRegistry_V20150921.CreateRepository")
            .header("authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/ecr/aws4_request")
            .send(format!("{{\"repositoryName\":\"{REPOSITORY}\"}}"))?;
        ensure!(create.status().is_success(), "CreateRepository: {}", create.status());
        Ok(registry)
    }

    fn start(name: &'static str, port: u16, command: &mut Command, dir: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(dir.join("log"))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(30)));
        let http = config.http_status_as_error(false).build().new_agent();
        let mut registry = Self { name, host: format!("127.0.0.1:{port}"), http, process };
        let started = Instant::now();
        let url = registry.url("");
        while registry.http.get(&url).call().is_err() {
            let ended = registry.process.try_wait()?.is_some();
            if ended || started.elapsed() > START_TIMEOUT {
                bail!("{name} does not start; see {}", dir.join("log").display());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    /// The name by which BuildKit knows a cache.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.host)
    }

    /// The host by which BuildKit knows it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The bytes of an image's manifest.
    pub(crate) fn manifest(&self, tag: &str) -> anyhow::Result<Vec<u8>> {
        self.get(&format!("manifests/{tag}"), MANIFEST_MEDIA_TYPE)
    }

    /// The address of a file that never changes.
    pub(crate) fn address(&self) -> String {
        self.url("")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host)
    }

    fn get(&self, path: &str, accept: &str) -> anyhow::Result<Vec<u8>> {
        let url = self.url(&format!("{REPOSITORY}/{path}"));
        let mut answer = self.http.get(&url).header("accept", accept).call()?;
        ensure!(answer.status().is_success(), "GET {url}: {}", answer.status());
        Ok(answer.body_mut().read_to_vec()?)
    }

    /// A blob's bytes.
    pub(crate) fn blob(&self, digest: &str) -> anyhow::Result<Vec<u8>> {
        self.get(&format!("blobs/{digest}"), "*/*")
    }

    /// Reads a cache's manifest and config as JSON.
    pub(crate) fn raw(&self, tag: &str) -> anyhow::Result<(Value, Value)> {
        let manifest = self.get(&format!("manifests/{tag}"), MANIFEST_MEDIA_TYPE)?;
        let manifest: Value = serde_json::from_slice(&manifest)?;
        let config = self.blob(manifest["config"]["digest"].as_str().context("no config")?)?;
        Ok((manifest, serde_json::from_slice(&config)?))
    }

    /// Reads a cache.
    pub(crate) fn read(&self, tag: &str) -> anyhow::Result<Cache> {
        let manifest = self.get(&format!("manifests/{tag}"), MANIFEST_MEDIA_TYPE)?;
        match classify_within(&manifest, SIZE_LIMIT) {
            Kind::Cache(manifest) => {
                let config = self.blob(&manifest.config.digest.to_string())?;
                Ok(Cache::parse_within(&manifest, &config, SIZE_LIMIT)?)
            }
            Kind::Other { why } => bail!("{tag} is no cache: {why}"),
        }
    }

    /// Writes a cache; its layers are there.
    pub(crate) fn write(&self, tag: &str, cache: &Cache) -> anyhow::Result<Serialised> {
        let serialised = cache.serialise(std::collections::BTreeMap::default());
        let url = self.url(&format!("{REPOSITORY}/blobs/uploads/"));
        let opened = self.http.post(&url).send_empty()?;
        ensure!(opened.status().is_success(), "POST {url}: {}", opened.status());
        let location = opened.headers().get("location").context("no upload location")?.to_str()?;
        let location = if location.starts_with('/') {
            format!("http://{}{location}", self.host)
        } else {
            location.to_owned()
        };
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", serialised.config_digest);
        self.put(&url, "application/octet-stream", &serialised.config)?;
        self.put(
            &self.url(&format!("{REPOSITORY}/manifests/{tag}")),
            MANIFEST_MEDIA_TYPE,
            &serialised.manifest,
        )?;
        Ok(serialised)
    }

    fn put(&self, url: &str, media_type: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut answer = self.http.put(url).header("content-type", media_type).send(bytes)?;
        let words = answer.body_mut().read_to_string().unwrap_or_default();
        ensure!(answer.status().is_success(), "PUT {url}: {} {words}", answer.status());
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The whole group: one of them has a child that does the work.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-TERM", "--", &group]).status();
        thread::sleep(Duration::from_millis(300));
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.process.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
