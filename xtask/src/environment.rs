//! The local setup: an AWS on this machine, its processes, files and ports, under `.stoker/setup`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::aws::{self, Aws};
use crate::{process, requests, tools};

/// Where the local AWS listens if nobody else does.
const PORT: u16 = 4567;
/// Where the local `CodeBuild` listens if nobody else does.
const CODEBUILD_PORT: u16 = 4568;
/// The local AWS takes a second or two to start.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// The file with the requests that an AWS has answered.
const ACCESS_LOG: &str = "access.log";
/// The file with those that Stoker made, as it made them. The local CodeBuild has one, too.
const REQUESTS: &str = "requests.jsonl";
/// The local AWS, as hypercorn finds it: ministack, what it lacks, and what writes the requests down.
const APP: &str = "recorded:app";
/// Separates the fields of the access log.
const FIELD: char = '\t';

/// What a new setup is to be like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Functions may do whatever they like. Otherwise they may do what their roles in template.yaml allow.
    pub(crate) ignore_roles: bool,
    /// More environment variables for the local AWS. The functions inherit them.
    pub(crate) environment: Vec<(String, String)>,
}

/// A running local AWS.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LocalSetup {
    /// The port of the local AWS, on the loopback interface.
    pub(crate) port: u16,
    /// The port at which functions look for `CodeBuild`.
    pub(crate) codebuild_port: u16,
    dir: PathBuf,
    processes: BTreeMap<String, Started>,
}

/// A process of the setup. The mark is a part of its command line, by which it is told from others with its id.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    id: u32,
    mark: String,
}

/// A request that the local AWS has answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    /// When it was answered, as the log has it: `[21/Nov/2026:09:06:02 +0000]`.
    pub(crate) time: String,
    /// Its method.
    pub(crate) method: String,
    /// Its path, without the query.
    pub(crate) path: String,
    /// The status of the answer.
    pub(crate) status: u16,
    /// The operation, as `AWSEvents.PutEvents`, where the service speaks JSON.
    pub(crate) target: Option<String>,
    /// How long the answer took, in seconds.
    pub(crate) seconds: f64,
    /// Who asked. Functions say `aws-sdk-rust` in it.
    pub(crate) agent: String,
}

impl LocalSetup {
    /// Starts a new, empty setup. One that is left over from before is ended first.
    pub(crate) fn start(settings: &Settings) -> anyhow::Result<Self> {
        if let Some(old) = Self::attach()? {
            old.stop()?;
        }
        let dir = dir();
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        for part in ["opt", "logs", "tmp"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let port = free_port(PORT)?;
        let codebuild_port = free_port(CODEBUILD_PORT)?;
        let mut setup = Self { port, codebuild_port, dir, processes: BTreeMap::new() };
        setup.start_aws(settings)?;
        Ok(setup)
    }

    /// The setup that is running, if one is.
    pub(crate) fn attach() -> anyhow::Result<Option<Self>> {
        let file = record();
        let Ok(text) = fs::read(&file) else { return Ok(None) };
        let setup: Self =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()))?;
        let alive = setup.processes.values().any(|p| process::is_running(p.id, &p.mark));
        Ok(alive.then_some(setup))
    }

    /// Starts another process of the setup, which ends with it. Its output goes to `<name>.log` in [`Self::dir`].
    ///
    /// The `mark` is a part of its command line, such as the program's name.
    pub(crate) fn spawn(&mut self, name: &str, mark: &str, command: &mut Command) -> anyhow::Result<()> {
        let id = process::start(command, &self.dir().join(format!("{name}.log")))?;
        self.processes.insert(name.to_owned(), Started { id, mark: mark.to_owned() });
        self.write_down()
    }

    /// Whether a process that [`Self::spawn`] started is still there.
    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.processes.get(name).is_some_and(|p| process::is_running(p.id, &p.mark))
    }

    /// Ends all of it. Its logs stay until the next one starts.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        for started in self.processes.values() {
            process::end(started.id, &started.mark)?;
        }
        fs::remove_file(record()).context("cannot forget the local AWS")?;
        println!("the local AWS has ended");
        Ok(())
    }

    /// Its address.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.registry())
    }

    /// The address at which functions look for `CodeBuild`.
    pub(crate) fn codebuild_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.codebuild_port)
    }

    /// Host and port of its registry, as image names begin with.
    pub(crate) fn registry(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client of it.
    pub(crate) fn aws(&self) -> Aws {
        Aws::new(&self.endpoint())
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What layers bring to `/opt`. Functions run as plain processes here, so their policy is looked for in this place.
    pub(crate) fn opt(&self) -> PathBuf {
        self.dir().join("opt")
    }

    /// All requests that it has answered, oldest first.
    pub(crate) fn requests(&self) -> anyhow::Result<Vec<Request>> {
        let file = self.access_log();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.lines().filter_map(Request::parse).collect())
    }

    /// The files with what Stoker asked in it so far, as it asked.
    pub(crate) fn recorded(&self) -> [PathBuf; 2] {
        [self.dir.join(REQUESTS), self.dir.join("codebuild").join(REQUESTS)]
    }

    /// Starts another AWS beside it, in which nothing is yet, and which ends with it. Answers its address.
    pub(crate) fn start_another_aws(&mut self, name: &str) -> anyhow::Result<String> {
        let port = free_port(0)?;
        fs::create_dir_all(self.dir.join(name).join("tmp"))?;
        self.start_aws_at(name, port, &self.dir.join(name), &Settings::default())?;
        Ok(format!("http://127.0.0.1:{port}"))
    }

    fn start_aws(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.start_aws_at("ministack", self.port, &self.dir.clone(), settings)
    }

    fn start_aws_at(&mut self, name: &str, port: u16, dir: &Path, settings: &Settings) -> anyhow::Result<()> {
        let started = Instant::now();
        let endpoint = format!("http://127.0.0.1:{port}");
        let fields = ["%(t)s", "%(m)s", "%(U)s", "%(s)s", "%({x-amz-target}i)s", "%(L)s", "%(a)s"];
        let mut command = Command::new(tools::world_bin().join("hypercorn"));
        tools::without_aws_settings(&mut command)
            .args([APP, "--bind", &format!("127.0.0.1:{port}")])
            .arg("--access-logfile")
            .arg(dir.join(ACCESS_LOG))
            .args(["--access-logformat", &fields.join(&FIELD.to_string())])
            // It unpacks functions into the temporary directory, and two of it would delete each other's.
            .env("TMPDIR", dir.join("tmp"))
            .env("PYTHONPATH", requests::scripts())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(requests::VARIABLE, dir.join(REQUESTS))
            .env("GATEWAY_PORT", port.to_string())
            .env("MINISTACK_HOST", "127.0.0.1")
            // No containers, and no listeners but the one.
            .env("DOCKER_HOST", "unix:///nonexistent.sock")
            .env("IOT_MTLS_ENABLED", "0")
            .env("SFTP_ENABLED", "0")
            .env("AUTH", (!settings.ignore_roles).to_string())
            // Functions inherit all this, beneath what the template gives them.
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_ENDPOINT_URL_CODEBUILD", self.codebuild_endpoint())
            .env("AWS_ACCESS_KEY_ID", aws::KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", aws::SECRET_KEY)
            .env("AWS_DEFAULT_REGION", aws::REGION)
            .env("STOKER_POLICY", self.opt().join("stoker.yaml"))
            .env("STOKER_LOG_DIR", self.dir().join("logs"))
            .envs(settings.environment.iter().map(|(name, value)| (name, value)));
        self.spawn(name, APP, &mut command)?;
        let aws = Aws::new(&endpoint);
        while !aws.answers() {
            if !self.is_running(name) || started.elapsed() > START_TIMEOUT {
                bail!(
                    "the local AWS does not start; see {}",
                    self.dir().join(format!("{name}.log")).display()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        println!("the local AWS listens at {endpoint} ({:.1} s)", started.elapsed().as_secs_f32());
        Ok(())
    }

    fn access_log(&self) -> PathBuf {
        self.dir.join(ACCESS_LOG)
    }

    fn write_down(&self) -> anyhow::Result<()> {
        let file = record();
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Request {
    /// Whether one of the functions asked, rather than the outside.
    pub(crate) fn is_from_function(&self) -> bool {
        self.agent.contains("aws-sdk-rust")
    }

    fn parse(line: &str) -> Option<Self> {
        let (_, line) = line.split_once("[INFO] ")?;
        let mut fields = line.splitn(7, FIELD).map(str::to_owned);
        let mut next = || fields.next();
        Some(Self {
            time: next()?,
            method: next()?,
            path: next()?,
            status: next()?.parse().ok()?,
            target: next().filter(|target| target != "-"),
            seconds: next()?.parse().ok()?,
            agent: next()?,
        })
    }
}

fn dir() -> PathBuf {
    crate::paths::home().join("setup")
}

fn record() -> PathBuf {
    dir().join("setup.json")
}

/// The wanted port if it is free, else any that is.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// Unpacks a zip archive into a directory, which must not exist.
pub(crate) fn unzip(archive: &Path, into: &Path) -> anyhow::Result<()> {
    let log = dir().join("unzip.log");
    let mut command = Command::new(tools::world_bin().join("python"));
    command.args(["-m", "zipfile", "-e"]).arg(archive).arg(into);
    process::run(&mut command, "unpacking the layer", &log, |_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_access_log_reads_back() {
        let line = "[2026-11-21 09:08:41 +0000] [23748] [INFO] [21/Nov/2026:09:08:41 \
             +0000]\tPOST\t/\t200\tAWSEvents.PutEvents\t0.004429\taws-sdk-rust/1.3 os/linux";
        let request = Request::parse(line).unwrap();
        assert_eq!((request.status, request.method.as_str(), request.path.as_str()), (200, "POST", "/"));
        assert_eq!(request.target.as_deref(), Some("AWSEvents.PutEvents"));
        assert!(request.is_from_function());
        assert_eq!(Request::parse("[2026-11-21 09:06:02 +0000] [1] [INFO] Running"), None);
    }
}
