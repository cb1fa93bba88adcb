//! The outcome as a status of the commit that was built, for those who look at it at their forge.

use super::{Args, Reported, render};
use crate::doctor::project::repository_of;
use crate::forecast::Repository;
use crate::onboard::forge::{Forge, Kind};
use crate::problem::Problem;
use crate::retain::call_problem;
use crate::text::plain;

/// Writes the status. A token goes to no host that the checkout alone names, but to the forges that everybody knows.
pub(super) async fn write(args: &Args, kind: Kind, reported: &Reported) -> Result<(), Problem> {
    let variable = kind.token();
    let token = std::env::var(variable).ok().filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| {
        Problem::usage(format!("{variable} is not set"), "set it to a token that may write commit statuses")
    })?;
    let origin = || Repository::open(&args.git).map(|repository| repository.origin());
    let repository = match &args.repository {
        Some(repository) => repository_of(repository),
        None => origin()?.map(|origin| repository_of(&origin)).unwrap_or_default(),
    };
    let is_known = repository.split_once('/').is_some_and(|(host, _)| host == kind.host());
    if !is_known && args.repository.is_none() && args.forge_url.is_none() {
        let why = format!("the checkout's origin is not at {}: {}", kind.host(), plain(&repository));
        return Err(Problem::usage(why, "name the repository with --repository HOST/PATH"));
    }
    let forge = Forge::of(kind, &repository, args.forge_url.as_deref(), &token).ok_or_else(|| {
        Problem::usage("a token goes over https only".to_owned(), "see --repository and --forge-url")
    })?;
    forge.write_status(&reported.commit, &render::line(reported)).await.map_err(|error| call_problem(&error))
}
