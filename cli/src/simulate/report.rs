//! What an event leads to, as people and programs read it.

use serde::Serialize;
use stoker_core::names::ProjectName;

use super::input::Given;
use super::lookup::GivenInputs;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) policy: String,
    #[serde(flatten)]
    pub(super) given: Given,
    /// Everything in a few words.
    pub(super) summary: String,
    /// Why Stoker acts on nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ignored: Option<String>,
    /// Whether the registry was asked.
    pub(super) offline: bool,
    pub(super) events: Vec<Reported>,
}

/// An event, and what it leads to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reported {
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repository: Option<String>,
    pub(super) summary: String,
    pub(super) decisions: Vec<Choice>,
}

/// A decision as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    pub(super) function: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<ProjectName>,
    /// The entry of the policy that is the project's rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy_entry: Option<String>,
    pub(super) action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    pub(super) rule: &'static str,
    pub(super) summary: String,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) build: Option<GivenInputs>,
}
