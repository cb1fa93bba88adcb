//! The control API: what happened, and what is to be different.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::build::Build;
use crate::bus::Bus;
use crate::ledger::Ledger;
use crate::machine::Machine;

/// What the handlers work with.
#[derive(Clone)]
pub struct Control {
    /// The builds.
    pub ledger: Arc<Ledger>,
    /// The events.
    pub bus: Arc<Bus>,
    /// The machines, at least one.
    pub machines: Vec<Arc<Machine>>,
    /// How often the registry was looked at for images that came or went.
    pub looks: Arc<AtomicU64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineSettings {
    fresh: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Same,
    Reverse,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    #[serde(default)]
    order: Order,
}

/// The routes under `/control`.
pub fn router(control: Control) -> Router {
    Router::new()
        .route("/control/builds", get(builds))
        .route("/control/events", get(events))
        .route("/control/health", get(health))
        .route("/control/machine", post(machine))
        .route("/control/replay", post(replay))
        .with_state(control)
}

async fn builds(State(control): State<Control>) -> Json<Value> {
    let mut builds = control.ledger.builds();
    // In the order in which they started; those that wait come last.
    builds.sort_by_key(|build| (build.started_at.is_none(), build.started_at, build.queued_at));
    Json(builds.iter().map(Build::to_control).collect())
}

async fn events(State(control): State<Control>) -> Json<Value> {
    Json(json!(control.bus.events()))
}

async fn health(State(control): State<Control>) -> Json<Value> {
    let builds = control.ledger.builds();
    let (running, queued): (Vec<_>, Vec<_>) =
        builds.iter().filter(|b| !b.is_over()).partition(|b| b.started_at.is_some());
    // The machines are all alike.
    let machine = control.machines.first();
    let setup = machine.map(|machine| machine.setup());
    Json(json!({
        "builder": machine.map(|machine| machine.builder().name()),
        "fresh": machine.map(|machine| machine.is_fresh()),
        "aws": setup.map(|setup| &setup.aws),
        "registry": setup.map(|setup| &setup.registry),
        "base_image": setup.map(|setup| &setup.base_image),
        "running": running.first().map(|b| b.id()),
        "queued": queued.len(),
        "builds": builds.len(),
        "events": control.bus.events().len(),
        "undelivered": control.bus.undelivered(),
        "looks": control.looks.load(Ordering::Relaxed),
    }))
}

async fn machine(State(control): State<Control>, Json(settings): Json<MachineSettings>) -> Json<Value> {
    for machine in &control.machines {
        machine.set_fresh(settings.fresh);
    }
    Json(json!({"fresh": settings.fresh}))
}

async fn replay(State(control): State<Control>, Json(replay): Json<Replay>) -> Json<Value> {
    let count = control.bus.replay(matches!(replay.order, Order::Reverse));
    Json(json!({"replayed": count}))
}
