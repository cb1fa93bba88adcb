//! Puts the local stand-ins together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::api::{self, Api};
use crate::aws::Aws;
use crate::builder::{Builder, BuilderError};
use crate::bus::Bus;
use crate::control::{self, Control};
use crate::http::is_local;
use crate::images;
use crate::ledger::Ledger;
use crate::machine::{LocalSetup, Machine};
use crate::project::{Project, ProjectsError};

/// The local stand-ins could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is open to others.
    #[error("`{0}` is not an address of the loopback interface")]
    NotLocal(String),
    /// The address is taken, or may not be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The state directory could not be made.
    #[error("state directory `{}` cannot be made", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The projects file is not usable.
    #[error(transparent)]
    Projects(#[from] ProjectsError),
    /// One engine cannot be made fresh for one build while another runs in it.
    #[error("several machines need the simulated builder")]
    TooManyMachines,
    /// The builder is not usable.
    #[error(transparent)]
    Builder(#[from] BuilderError),
}

/// Which builder builds use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BuilderKind {
    /// The Docker engine that the `docker` command reaches.
    Docker,
    /// The simulated one.
    Simulated,
}

/// How to start.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where to listen, on the loopback interface
    #[arg(long, default_value = "127.0.0.1:4568")]
    pub listen: SocketAddr,
    /// The stand-in for AWS
    #[arg(long, default_value = "http://127.0.0.1:4567")]
    pub aws: String,
    /// The registry, which builds are told as `ECR_REGISTRY`
    #[arg(long, default_value = "127.0.0.1:4567")]
    pub registry: String,
    /// The projects file
    #[arg(long)]
    pub projects: PathBuf,
    /// The directory for logs, checkouts and the journal of events
    #[arg(long)]
    pub state: PathBuf,
    /// The builder
    #[arg(long, value_enum, default_value = "docker")]
    pub builder: BuilderKind,
    /// How many builds run at a time
    #[arg(long, default_value = "1")]
    pub machines: std::num::NonZeroU8,
    /// The image that builds are told as `BASE_IMAGE`
    #[arg(long)]
    pub base_image: Option<String>,
    /// The program whose `docker` command is the simulated builder; without it, this one
    #[arg(skip)]
    pub program: Option<PathBuf>,
}

/// The local stand-ins, running.
#[derive(Debug)]
pub struct Local {
    address: SocketAddr,
    machines: Vec<(Arc<Machine>, JoinHandle<()>)>,
    tasks: Vec<JoinHandle<()>>,
}

impl Local {
    /// Starts.
    pub async fn start(options: Options) -> Result<Self, ServeError> {
        if !options.listen.ip().is_loopback() {
            return Err(ServeError::NotLocal(options.listen.to_string()));
        }
        if !is_local(&options.aws) {
            return Err(ServeError::NotLocal(options.aws));
        }
        let projects = Project::read(&options.projects)?;
        let logs = options.state.join("logs");
        std::fs::create_dir_all(&logs)
            .and_then(|()| options.state.canonicalize())
            .map_err(|source| ServeError::State { path: options.state.clone(), source })?;
        let state = options.state.canonicalize().unwrap_or(options.state);
        let machines = options.machines.get();
        let mut builders = Vec::new();
        match options.builder {
            BuilderKind::Docker if machines > 1 => return Err(ServeError::TooManyMachines),
            BuilderKind::Docker => builders.push(Builder::docker(&state).await?),
            BuilderKind::Simulated => {
                let program = options.program.or_else(|| std::env::current_exe().ok());
                let program = program.unwrap_or_else(|| "stoker-local".into());
                for _ in 0..machines {
                    builders.push(Builder::simulated(&state, &program)?);
                }
            }
        }
        let requests = std::fs::File::create(state.join("requests.jsonl"))
            .map_err(|source| ServeError::State { path: state.clone(), source })?;
        let (listener, address) = listen(options.listen).await?;

        let aws = Aws::new(&options.aws);
        let (bus, queue) = Bus::new(aws.clone(), Some(state.join("events.jsonl")));
        let bus = Arc::new(bus);
        let ledger = Arc::new(Ledger::new(projects, state.join("logs")));
        let setup = LocalSetup {
            state,
            aws: aws.endpoint().to_owned(),
            registry: options.registry,
            base_image: options.base_image,
        };
        let machine =
            |builder| Arc::new(Machine::new(Arc::clone(&ledger), Arc::clone(&bus), builder, setup.clone()));
        let machines: Vec<Arc<Machine>> = builders.into_iter().map(machine).collect();

        let api = Api {
            ledger: Arc::clone(&ledger),
            bus: Arc::clone(&bus),
            aws: aws.clone(),
            requests: Some(Arc::new(requests)),
        };
        let looks = Arc::new(AtomicU64::new(0));
        let control =
            Control { ledger, bus: Arc::clone(&bus), machines: machines.clone(), looks: Arc::clone(&looks) };
        let router =
            Router::new().route("/", post(api::handle)).with_state(api).merge(control::router(control));
        let server = async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the server ended");
            }
        };
        let tasks = vec![
            tokio::spawn(server),
            tokio::spawn(Arc::clone(&bus).deliver_all(queue)),
            tokio::spawn(images::watch(aws, bus, looks)),
        ];
        let run = |machine: Arc<Machine>| {
            let running = Arc::clone(&machine);
            (machine, tokio::spawn(async move { running.run().await }))
        };
        Ok(Self { address, machines: machines.into_iter().map(run).collect(), tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the running builds and everything else.
    pub async fn stop(self) {
        for (machine, _) in &self.machines {
            machine.shut_down();
        }
        for (_, task) in self.machines {
            if let Err(error) = task.await {
                tracing::error!(%error, "a machine ended badly");
            }
        }
        for task in self.tasks {
            task.abort();
        }
    }
}

async fn listen(at: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let listener =
        TcpListener::bind(at).await.map_err(|source| ServeError::Listen { address: at, source })?;
    let address = listener.local_addr().unwrap_or(at);
    Ok((listener, address))
}
