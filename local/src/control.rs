//! The control API: what happened, and what is to be different.

use std::sync::Arc;

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
    /// The machine.
    pub machine: Arc<Machine>,
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
    let world = control.machine.world();
    Json(json!({
        "builder": control.machine.builder().name(),
        "fresh": control.machine.is_fresh(),
        "aws": world.aws,
        "registry": world.registry,
        "base_image": world.base_image,
        "running": running.first().map(|b| b.id()),
        "queued": queued.len(),
        "builds": builds.len(),
        "events": control.bus.events().len(),
    }))
}

async fn machine(State(control): State<Control>, Json(settings): Json<MachineSettings>) -> Json<Value> {
    control.machine.set_fresh(settings.fresh);
    Json(json!({"fresh": settings.fresh}))
}

async fn replay(State(control): State<Control>, Json(replay): Json<Replay>) -> Json<Value> {
    let count = control.bus.replay(matches!(replay.order, Order::Reverse));
    Json(json!({"replayed": count}))
}
