//! Where a project's buildspec is, and its text: inline, in a checkout, or at the forge.

use std::collections::HashMap;

use stoker_core::onboard::Found;

use super::account::Which;
use super::forge::{Forge, Kind};
use crate::doctor::buildspec::is_inline;
use crate::doctor::checkout::Checkout;
use crate::doctor::project::repository_of;
use crate::problem::Problem;
use crate::text::plain;

/// A project's buildspec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Buildspec {
    Inline(String),
    /// A file of the source; its text, or why it is not known.
    File {
        path: String,
        text: Result<String, String>,
    },
}

impl Buildspec {
    pub(super) fn text(&self) -> Result<&str, &str> {
        match self {
            Self::Inline(text) => Ok(text),
            Self::File { text, .. } => text.as_deref().map_err(String::as_str),
        }
    }

    /// In a word or a path.
    pub(super) fn place(&self) -> &str {
        match self {
            Self::Inline(_) => "inline",
            Self::File { path, .. } => path,
        }
    }
}

/// The forges and the checkout, and what they have answered.
pub(super) struct Sources {
    checkout: Option<Checkout>,
    address: Option<String>,
    token: fn(Kind) -> Option<String>,
    branches: HashMap<String, Result<String, String>>,
}

impl Sources {
    pub(super) fn open(which: &Which) -> Result<Self, Problem> {
        let checkout = which.checkout.as_deref().map(Checkout::open).transpose()?;
        let token = |kind: Kind| std::env::var(kind.token()).ok().filter(|token| !token.is_empty());
        Ok(Self { checkout, address: which.forge_url.clone(), token, branches: HashMap::new() })
    }

    /// The forge of a project's source, where it has an API and there is a token; else what is missing.
    pub(super) fn forge(&self, found: &Found) -> Result<Forge, String> {
        let kind = Kind::of_source(&found.source)
            .ok_or_else(|| format!("{} has no such API here", plain(&found.source)))?;
        let token = (self.token)(kind).ok_or_else(|| format!("{} is not set", kind.token()))?;
        let repository = repository_of(&found.location);
        Forge::of(kind, &repository, self.address.as_deref(), &token).ok_or_else(|| {
            "a token goes over https only: see --forge-url and the project's source".to_owned()
        })
    }

    /// The default branch, as the forge says it.
    pub(super) async fn default_branch(&mut self, found: &Found) -> Result<String, String> {
        let repository = repository_of(&found.location);
        if let Some(known) = self.branches.get(&repository) {
            return known.clone();
        }
        let asked = match self.forge(found) {
            Ok(forge) => forge
                .default_branch()
                .await
                .map_err(|error| crate::retain::call_problem(&error).text().to_owned()),
            Err(why) => Err(why),
        };
        self.branches.insert(repository, asked.clone());
        asked
    }

    pub(super) async fn buildspec(&mut self, found: &Found) -> Buildspec {
        let named = found.buildspec.as_deref().filter(|text| !text.trim().is_empty());
        if let Some(text) = named.filter(|text| is_inline(text)) {
            return Buildspec::Inline(text.to_owned());
        }
        let path = named.unwrap_or("buildspec.yml").trim_start_matches("./").to_owned();
        if let Some(checkout) = &self.checkout {
            let text = checkout.read(&path).ok_or_else(|| format!("the checkout has no {}", plain(&path)));
            return Buildspec::File { path, text };
        }
        if path.starts_with("arn:") {
            return Buildspec::File { path, text: Err("it is in S3, where it is not read".to_owned()) };
        }
        let text = match self.default_branch(found).await {
            Err(why) => Err(why),
            Ok(branch) => match self.forge(found) {
                Err(why) => Err(why),
                Ok(forge) => match forge.file(&branch, &path).await {
                    Ok(text) => text.ok_or_else(|| format!("{} has no {}", plain(&branch), plain(&path))),
                    Err(error) => Err(crate::retain::call_problem(&error).text().to_owned()),
                },
            },
        };
        Buildspec::File { path, text }
    }
}
