//! What `docker buildx bake --print` says of a build.

use std::collections::BTreeMap;
use std::path::Path;

use dockerfile_keys::{Options, normal};
use serde::Deserialize;
use stoker_core::names::Platform;

use super::replay::Image;
use crate::problem::Problem;
use crate::text::plain;

#[derive(Deserialize)]
struct Bake {
    target: BTreeMap<String, Target>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    context: String,
    #[serde(default)]
    dockerfile: Option<String>,
    #[serde(default, rename = "target")]
    stage: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, Option<String>>,
    #[serde(default)]
    platforms: Vec<String>,
    #[serde(default, rename = "dockerfile-inline")]
    inline: Option<String>,
}

/// The images of a file: one for each target and each of its platforms. What names none is for the given ones.
pub(super) fn images(path: &Path, platforms: &[Platform]) -> Result<Vec<Image>, Problem> {
    let shown = plain(&path.display().to_string());
    let advice = "write it with `docker buildx bake --print > FILE`";
    let text = std::fs::read(path)
        .map_err(|error| Problem::usage(format!("cannot read {shown}: {error}"), advice))?;
    let bake: Bake = serde_json::from_slice(&text)
        .map_err(|error| Problem::usage(format!("{shown} holds no bake targets in JSON: {error}"), advice))?;
    let mut all = Vec::new();
    for (name, target) in bake.target {
        let context = normal(&target.context);
        if target.inline.is_some() || target.context.contains("://") || target.context.starts_with('/') {
            return Err(Problem::usage(
                format!("target {} of {shown} is not built from the repository alone", plain(&name)),
                "print the others: `docker buildx bake --print TARGET... > FILE`",
            ));
        }
        // The Dockerfile's path counts from the context's directory.
        let dockerfile = target.dockerfile.as_deref().unwrap_or("Dockerfile");
        let given = || platforms.iter().map(|platform| platform.as_str().to_owned()).collect();
        let platforms = if target.platforms.is_empty() { given() } else { target.platforms };
        let build_platform = platforms.first().cloned();
        let arguments: BTreeMap<String, String> =
            target.args.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        all.extend(platforms.into_iter().map(|platform| Image {
            dockerfile: normal(&format!("{context}/{dockerfile}")),
            context: context.clone(),
            options: Options {
                target: target.stage.clone(),
                arguments: arguments.clone(),
                platform,
                build_platform: build_platform.clone(),
                ..Options::default()
            },
        }));
    }
    if all.is_empty() { Err(Problem::usage(format!("{shown} names no target"), advice)) } else { Ok(all) }
}
