//! Moving the lines of cache mounts. A mount cannot be joined: what main's newest build saved is the mount.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Error, NothingToPromote, Outcome, Ports};
use crate::build_inputs::GivenInputs;
use crate::error::Failure;
use crate::line_update::LineUpdate;
use crate::mounts::{self, LONGEST_CONFIG, MountImage, MountManifest, Samples, mount_of};
use crate::names::{Line, ProjectName, Scope, Tag, TagKind};
use crate::policy::{Mount, Project};
use crate::ports::{Image, Mounted, read_images};
use crate::provenance::{Built, Provenance};

/// What a build of main did with a mount.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    /// Where it saved it, if it was to.
    tag: Option<Tag>,
    /// Whether it was given it.
    had_mount: bool,
    built: Built,
    /// How long the build took.
    seconds: Option<u64>,
}

/// A reason to look whether the line of a mount should move.
#[derive(Debug)]
pub(super) struct Request {
    /// The hint's place in the batch.
    pub(super) trigger: usize,
    pub(super) project: Project,
    pub(super) scope: Scope,
    pub(super) saved: Saved,
}

/// The requests of each mount, which are one read and one write of its line.
pub(super) type Requests = BTreeMap<(ProjectName, Scope), Vec<Request>>;

/// What a build did with the mounts of its project. Only main's own builds save any, whatever else a build says.
pub(super) fn saved(
    project: &Project,
    inputs: &GivenInputs,
    built: &Built,
    seconds: Option<u64>,
) -> Vec<(Scope, Saved)> {
    let of = |mount: &Mount| {
        let tag = inputs.saves.iter().find_map(|tag| match Tag::parse(tag)? {
            (scope, TagKind::Export(key)) if scope == mount.scope => Some(Tag::export(&scope, &key)),
            _ => None,
        });
        let had_mount = inputs.mounts.contains_key(&mount.scope.to_string());
        (mount.scope.clone(), Saved { tag, had_mount, built: built.clone(), seconds })
    };
    if inputs.line == Line::Main { project.mounts().map(of).collect() } else { Vec::new() }
}

/// Moves a mount's line to what the newest of these builds saved, and counts how long they took.
pub(super) async fn update(
    ports: &impl Ports,
    mut requests: Vec<Request>,
    now: Timestamp,
) -> Result<Outcome, Error> {
    let nothing = |why| Ok(Outcome::Nothing(why));
    let Some((project, scope)) = requests.first().map(|one| (one.project.clone(), one.scope.clone())) else {
        return nothing(NothingToPromote::UnknownMount);
    };
    let Some(mount) = project.mount(&scope) else {
        return nothing(NothingToPromote::UnknownMount);
    };
    requests.sort_by(|a, b| {
        (a.saved.built.at, &a.saved.built.build).cmp(&(b.saved.built.at, &b.saved.built.build))
    });
    let line = Tag::line(&scope, &Line::Main);
    let current =
        read_images(ports, &project.cache_repository, std::slice::from_ref(&line)).await?.pop().flatten();
    let current = match current {
        Some(image) => Some((own(&project, mount, &line, &image)?, image)),
        None => None,
    };
    let annotations = current.as_ref().map(|(manifest, _)| manifest.annotations.clone()).unwrap_or_default();
    let (before, was_measured) = (Provenance::read(&annotations), Samples::read(&annotations));
    let mut samples = was_measured.clone();
    for saved in requests.iter().map(|request| &request.saved) {
        match saved.seconds.filter(|_| current.is_some()) {
            Some(seconds) => samples.add(saved.built.at, seconds, saved.had_mount),
            // The very first build is not to be compared with: all else was cold as well.
            None => samples.measured_at = samples.measured_at.max(Some(saved.built.at)),
        }
    }
    let is_wanted = |saved: &&Saved| {
        let is_newer = before.built.as_ref().is_none_or(|known| known.at < saved.built.at);
        is_newer && before.rolled_back.is_none_or(|time| time <= saved.built.at)
    };
    let mut found = None;
    for saved in requests.iter().rev().map(|request| &request.saved).filter(is_wanted) {
        if let Some(image) = exported(ports, &project, mount, saved).await? {
            found = Some((saved.built.clone(), image));
            break;
        }
    }
    let annotated = |provenance: &Provenance| {
        let mut annotations = provenance.annotations(&Line::Main);
        annotations.insert(mounts::ID.to_owned(), mount.id.to_string());
        annotations.extend(samples.annotations());
        annotations
    };
    match (found, current) {
        (Some((built, image)), current) => {
            let parent = current.as_ref().map(|(_, image)| image.digest.clone());
            let (project_name, build) = (project.name.clone(), built.build.clone());
            let provenance =
                Provenance { project: Some(project.name.clone()), built: Some(built), parent, ..before };
            let manifest = image.manifest.annotated(&annotated(&provenance));
            let outcome = Outcome::MountSaved {
                project: project_name,
                mount: mount.id.clone(),
                to: crate::names::Digest::of(&manifest),
                bytes: image.manifest.bytes(),
                layers: image.manifest.layers().count(),
                build,
            };
            let update = LineUpdate {
                config: Some((image.manifest.config().clone(), Bytes::from(image.config))),
                history: current
                    .map(|(_, image)| (Tag::history(&scope, &Line::Main, now, &image.digest), image)),
                line: Some((line, Bytes::from(manifest))),
                ..LineUpdate::default()
            };
            update.apply(ports, &project.cache_repository).await?;
            Ok(outcome)
        }
        (None, Some((manifest, _))) if samples != was_measured => {
            let manifest = manifest.annotated(&annotated(&before));
            let update = LineUpdate { line: Some((line, Bytes::from(manifest))), ..LineUpdate::default() };
            update.apply(ports, &project.cache_repository).await?;
            nothing(NothingToPromote::MountMeasured(mount.id.clone()))
        }
        _ => nothing(NothingToPromote::MountUnchanged(mount.id.clone())),
    }
}

/// What the line holds; what is no mount of this id is not Stoker's to replace.
fn own(project: &Project, mount: &Mount, line: &Tag, image: &Image) -> Result<MountManifest, Error> {
    let manifest = MountManifest::parse(&image.manifest).and_then(|manifest| {
        let is_it = mount_of(&manifest.annotations).as_ref() == Some(&mount.id);
        is_it.then_some(manifest).ok_or_else(|| format!("it does not say that it is the mount {}", mount.id))
    });
    manifest.map_err(|why| Error::ForeignLine {
        tag: line.clone(),
        repository: project.cache_repository.clone(),
        why,
    })
}

/// What a build saved, checked, with its layers in the line's repository; `None` where there is nothing that
/// could be used.
async fn exported(
    ports: &impl Ports,
    project: &Project,
    mount: &Mount,
    saved: &Saved,
) -> Result<Option<MountImage>, Error> {
    let Some(tag) = &saved.tag else { return Ok(None) };
    let from = project.exports();
    let Some(image) = read_images(ports, from, std::slice::from_ref(tag)).await?.pop().flatten() else {
        return Ok(None);
    };
    let left_alone = |why: String| {
        tracing::warn!(cache.digest = %image.digest, cache.repository = %from, mount.id = %mount.id, why, "left alone");
        Ok(None)
    };
    let manifest = match MountManifest::parse(&image.manifest) {
        Ok(manifest) if manifest.bytes() > mount.limit => {
            return left_alone(format!(
                "{} bytes, and the mount's limit is {}",
                manifest.bytes(),
                mount.limit
            ));
        }
        Ok(manifest) => manifest,
        Err(why) => return left_alone(why),
    };
    let config = match ports.blob(from, manifest.config(), LONGEST_CONFIG).await {
        Ok(config) => config,
        Err(error) if error.failure == Failure::NotFound => return left_alone(crate::error::chain(&error)),
        Err(error) => return Err(error.into()),
    };
    let layers: Vec<_> = manifest.layers().cloned().collect();
    let image = match MountImage::new(manifest, &config) {
        Ok(image) => image,
        Err(why) => return left_alone(why),
    };
    if project.builds_repository.is_some() {
        let to = &project.cache_repository;
        for layer in &layers {
            match ports.mount(to, from, layer).await? {
                Mounted::Done => {}
                Mounted::Missing => return left_alone("it lacks a layer".to_owned()),
                Mounted::Refused => {
                    return Err(Error::NotMounted { from: from.clone(), to: to.clone() });
                }
            }
        }
    }
    Ok(Some(image))
}
