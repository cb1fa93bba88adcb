//! Cache mounts that survive the builder: what a build restores and saves, and when carrying a mount is worth it.
//!
//! BuildKit exports no cache mounts. So a build restores each from an image that an earlier build of main
//! saved, by a build of its own on the same builder, and a build of main saves it by another. Both are files
//! for `docker buildx bake`, and need nothing but an image with a static busybox. What is saved builds upon
//! what was restored, so that only the files that changed are compressed and pushed.

mod image;
pub mod input;
mod measure;

use std::sync::Arc;

use jiff::Timestamp;

pub use self::image::{ID, LONGEST_CONFIG, MountImage, MountManifest, mount_of};
use self::input::{GIVEN, MountInput};
pub use self::measure::{Carrying, Samples};
use crate::build_inputs::Reads;
use crate::error::chain;
use crate::names::{Digest, Line, Tag};
use crate::policy::Project;
use crate::ports::{Build, BuildStatus, ReadImages, read_images};
use crate::provenance::Provenance;
use crate::recent_builds;

/// Puts into `reads` what a build of `line` is given of each target's mounts. A build without is slower, and starts.
pub async fn give(
    ports: &impl ReadImages,
    project: &Project,
    line: &Line,
    reads: &mut Vec<Reads>,
    recent: &[Arc<Build>],
    now: Timestamp,
) {
    let tags: Vec<Tag> = project.mounts().map(|mount| Tag::line(&mount.scope, &Line::Main)).collect();
    if tags.is_empty() {
        return;
    }
    reads.resize(project.targets.len(), Reads::default());
    let images = read_images(ports, &project.cache_repository, &tags).await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), project.name = %project.name, "the build starts without cache mounts");
        vec![None; tags.len()]
    });
    let has_failed = has_failed(line, recent);
    let newest = recent_builds::of_line(recent, &Line::Main)
        .find(|(build, _)| build.status == BuildStatus::Succeeded)
        .map(|(build, _)| build.id.as_str());
    let mut images = images.into_iter();
    for (target, reads) in project.targets.iter().zip(reads) {
        let of_target = target.mounts.iter().zip(images.by_ref()).map(|(mount, image)| {
            let input = match image.map(|image| (MountManifest::parse(&image.manifest), image.digest)) {
                None => MountInput { is_carried: true, note: "nothing is saved \
                     yet".to_owned(), ..MountInput::default() },
                Some((Err(why), digest)) => {
                    tracing::warn!(cache.digest = %digest, why, "not given to the build");
                    MountInput { is_carried: true, note: why, ..MountInput::default() }
                }
                Some((Ok(_), _)) if has_failed => {
                    let note = "the build before failed, so this one is without".to_owned();
                    MountInput { is_carried: true, note, ..MountInput::default() }
                }
                Some((Ok(manifest), digest)) => found(&manifest, digest, line, newest, now),
            };
            if !input.is_carried {
                tracing::info!(project.name = %project.name, mount.id = %mount.id, why = input.note, "a cache \
                     mount is not carried");
            }
            input
        });
        reads.mounts = of_target.collect();
    }
}

/// What a build is given of a mount that is there.
fn found(
    manifest: &MountManifest,
    digest: Digest,
    line: &Line,
    newest: Option<&str>,
    now: Timestamp,
) -> MountInput {
    let built = Provenance::read(&manifest.annotations).built;
    let samples = Samples::read(&manifest.annotations);
    let saved_at = built.as_ref().map_or(Timestamp::MIN, |built| built.at);
    match samples.carrying(*line == Line::Main, saved_at, now) {
        Carrying::No(note) => MountInput { note, ..MountInput::default() },
        // Where the newest build has saved nothing that could be used, what it built upon may be lost.
        Carrying::Yes => MountInput {
            note: format!("{GIVEN}{}", digest.short()),
            extends: manifest.is_extendable() && newest == built.as_ref().map(|built| built.build.as_str()),
            image: Some(digest),
            is_carried: true,
            save: None,
        },
    }
}

/// Whether the newest build of the line failed with mounts: the next goes without, so that none fails twice
/// because of one.
fn has_failed(line: &Line, recent: &[Arc<Build>]) -> bool {
    let ended = |build: &Build| matches!(build.status, BuildStatus::Succeeded | BuildStatus::Failed);
    recent_builds::of_line(recent, line)
        .find(|(build, _)| ended(build))
        .is_some_and(|(build, inputs)| build.status == BuildStatus::Failed && !inputs.mounts.is_empty())
}

#[cfg(test)]
mod tests;
