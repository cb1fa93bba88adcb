//! Cache mounts that survive the builder: what a build restores and saves, and when carrying a mount is worth it.
//!
//! BuildKit exports no cache mounts. So a build restores each from an image that an earlier build of main saved, by a build
//! of its own on the same builder, and a build of main saves it by another. Both are files for `docker buildx bake`, and need
//! nothing but an image with a static busybox. What is saved builds upon what was restored, so that only the files that changed
//! are compressed and pushed.

mod image;
mod measure;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use self::image::{LONGEST_CONFIG, MountImage, MountManifest, mount_of};
pub use self::measure::{Carrying, Samples};
use crate::build_inputs::{BuildInputs, Reads};
use crate::error::chain;
use crate::names::{Digest, Line, Scope, Tag};
use crate::policy::{Mount, Project};
use crate::ports::{Build, BuildStatus, ReadImages, read_images};
use crate::provenance::Provenance;
use crate::recent_builds;

/// The annotation of a saved mount that says its id.
pub const ID: &str = "stoker.mount";

/// What a build is given of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountInput {
    /// The image that it is restored from.
    pub image: Option<Digest>,
    /// Whether what is saved builds upon that image, and not upon nothing.
    pub extends: bool,
    /// Whether it is saved, where builds of the line save mounts.
    pub is_carried: bool,
    /// Where it is saved; `None` where it is not.
    pub save: Option<Tag>,
    /// What of it the build is given, for people.
    pub note: String,
}

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
                None => MountInput { is_carried: true, note: "nothing is saved yet".to_owned(), ..MountInput::default() },
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
                tracing::info!(project.name = %project.name, mount.id = %mount.id, why = input.note, "a cache mount is not carried");
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
            note: format!("given {}", digest.short()),
            extends: manifest.is_extendable() && newest == built.as_ref().map(|built| built.build.as_str()),
            image: Some(digest),
            is_carried: true,
            save: None,
        },
    }
}

/// Has a build of main save these mounts, each to a tag of its own. One that was not asked about, as the build is from scratch, is
/// saved whole.
pub fn save(mounts: &[Mount], inputs: &mut Vec<MountInput>, tag: impl Fn(&Scope) -> Option<Tag>) {
    if inputs.is_empty() {
        let scratch = MountInput {
            is_carried: true,
            note: "the build is from scratch".to_owned(),
            ..MountInput::default()
        };
        inputs.resize(mounts.len(), scratch);
    }
    for (mount, input) in mounts.iter().zip(inputs).filter(|(_, input)| input.is_carried) {
        input.save = tag(&mount.scope);
    }
}

/// Whether the newest build of the line failed with mounts: the next goes without, so that none fails twice because of one.
fn has_failed(line: &Line, recent: &[Arc<Build>]) -> bool {
    let ended = |build: &Build| matches!(build.status, BuildStatus::Succeeded | BuildStatus::Failed);
    recent_builds::of_line(recent, line)
        .find(|(build, _)| ended(build))
        .is_some_and(|(build, inputs)| build.status == BuildStatus::Failed && !inputs.mounts.is_empty())
}

/// The files for `docker buildx bake` by which a build restores and saves its mounts; `None` where there is nothing to do.
#[must_use]
pub fn bake_files(inputs: &BuildInputs, registry: &str, project: &Project) -> [Option<String>; 2] {
    let (mut restore, mut save) = (BTreeMap::new(), BTreeMap::new());
    for part in &inputs.parts {
        for (mount, input) in part.target.mounts.iter().zip(&part.reads.mounts) {
            let image = input
                .image
                .as_ref()
                .map(|digest| format!("{registry}/{}@{digest}", project.cache_repository));
            if let Some(image) = &image {
                let to = json!(["type=cacheonly"]);
                let secret = input.save.as_ref().or(part.export.as_ref()).map(Tag::to_string);
                let nonce = secret.or_else(|| Some(inputs.commit.as_ref()?.to_string())).unwrap_or_default();
                let file = restoring(&project.tools_image, mount, image, &nonce);
                restore.insert(name(mount, &restore), target(&file, &to));
            }
            if let Some(tag) = &input.save {
                let reference = format!("{registry}/{}:{tag}", project.exports());
                let to = json!([format!(
                    "type=image,name={reference},push=true,compression=zstd,oci-mediatypes=true,annotation.{ID}={}",
                    mount.id
                )]);
                let file =
                    saving(&project.tools_image, mount, image.as_deref().filter(|_| input.extends), tag);
                save.insert(name(mount, &save), target(&file, &to));
            }
        }
    }
    [restore, save].map(|targets| {
        let group: Vec<&String> = targets.keys().collect();
        let file = json!({ "group": { "default": { "targets": group } }, "target": targets });
        (!targets.is_empty()).then(|| file.to_string())
    })
}

/// A target's name in a bake file: of the mount's id what bake takes, and its number, which tells it apart.
fn name(mount: &Mount, known: &BTreeMap<String, Value>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let id: String = mount.id.as_str().chars().map(plain).collect();
    format!("mount-{}-{}", id.trim_matches('-'), known.len() + 1)
}

fn target(dockerfile: &str, output: &Value) -> Value {
    // On the builder's own platform, whatever the target's: files are copied.
    json!({
        "context": ".",
        "dockerfile-inline": dockerfile,
        "output": output,
        "attest": ["type=provenance,disabled=true"],
    })
}

/// A mount of a Dockerfile's RUN, at `/.m`.
fn cache_mount(mount: &Mount) -> String {
    let comma = if mount.options.is_empty() { "" } else { "," };
    format!("--mount=type=cache,id={},target=/.m{comma}{}", mount.id, mount.options)
}

/// Copies an image's files into the mount: to a folder beside first, so that a build that is stopped half way leaves a mount
/// without them and none with some. A mount that holds something stays as it is. A builder that has run the very same
/// before would not run it again: the nonce is this build's.
fn restoring(tools: &str, mount: &Mount, image: &str, nonce: &str) -> String {
    let cache = cache_mount(mount);
    format!(
        "FROM {tools}\n\
         RUN --mount=type=bind,from={image},source=/m,target=/.s {cache} : {nonce}; rm -rf /.m/.stoker; \
         if [ -z \"$(ls -A /.m)\" ]; then mkdir /.m/.stoker && cp -a /.s/. /.m/.stoker/ && cd /.m/.stoker && \
         find . -mindepth 1 -maxdepth 1 -exec mv {{}} /.m/ \\; ; cd /; rm -rf /.m/.stoker; fi\n"
    )
}

/// Copies the mount into `/m` of a layer upon `base`, or upon nothing: all of it, or what differs from what is there. With
/// `--no-cache` BuildKit empties mounts, so it is the tag, which no other build has, that makes it run.
fn saving(tools: &str, mount: &Mount, base: Option<&str>, tag: &Tag) -> String {
    let script = format!(": {tag}; most={}; {SAVE}", mount.limit / 1024);
    let command = json!(["/.t/bin/busybox", "sh", "-ec", script]);
    let (cache, base) = (cache_mount(mount), base.unwrap_or("scratch"));
    format!("FROM {base}\nRUN --mount=type=bind,from={tools},target=/.t {cache} {command}\n")
}

/// Without `${` and `%{`, which bake would take for its own. Only busybox is there, and its applets alone are used.
const SAVE: &str = "\
export PATH=/.t/bin; rm -rf /.m/.stoker; \
[ $(du -sk /.m | cut -f1) -le $most ] || { echo the mount is over its limit of $most KiB; exit 1; }; \
if [ ! -d /m ]; then mkdir /m; cp -a /.m/. /m/; exit; fi; \
files() { find . ! -type d -print0 | xargs -0 -r stat -c '%s|%Y|%f|%u:%g|%n'; }; \
dirs() { find . -type d -print0 | xargs -0 -r stat -c '%u:%g|%a|%n'; }; \
new() { awk 'NR==FNR{b[$0];next}!($0 in b)' $1 $2; }; \
names() { sed 's/^[^|]*|[^|]*|[^|]*|[^|]*|//' | tr '\\n' '\\0'; }; \
cd /m; files >/.a; dirs >/.b; cd /.m; files >/.c; dirs >/.d; \
cd /m; new /.c /.a | names | xargs -0 -r rm -rf; \
new /.b /.d | while IFS='|' read -r o m n; do mkdir -p \"$n\"; chown $o \"$n\"; chmod $m \"$n\"; done; \
cd /.m; new /.a /.c | names | xargs -0 -r sh -c 'exec cp -a --parents -- \"$@\" /m' cp; \
rm /.a /.b /.c /.d";

#[cfg(test)]
mod tests;
