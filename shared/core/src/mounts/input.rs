//! What a build is given of cache mounts, and the files by which it restores and saves them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::image::ID;
use crate::names::{Commit, Digest, MountId, Scope, Tag};
use crate::policy::{Mount, Project};

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

/// The mounts of one part of a build.
#[derive(Debug, Clone, Copy)]
pub struct PartMounts<'a> {
    /// The mounts of its target.
    pub mounts: &'a [Mount],
    /// What the build is given of each.
    pub inputs: &'a [MountInput],
    /// Where the part's cache is exported to.
    pub export: Option<&'a Tag>,
}

/// How a note begins of what is given.
pub(super) const GIVEN: &str = "given ";

/// What a build's environment says of its mounts, for people: [`read_not_given`] reads it.
pub(crate) fn notes<'a>(mounts: impl Iterator<Item = (&'a Mount, &'a MountInput)>) -> Option<String> {
    let notes: Vec<String> = mounts.map(|(mount, input)| format!("{}: {}", mount.id, input.note)).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// The mounts that a build was not given, by what its environment says, each with the reason.
#[must_use]
pub fn read_not_given(notes: &str) -> Vec<(MountId, String)> {
    let mut found: Vec<(MountId, String)> = Vec::new();
    for part in notes.split("; ") {
        match part.split_once(": ").and_then(|(id, why)| Some((MountId::new(id).ok()?, why))) {
            Some((id, why)) => found.push((id, why.to_owned())),
            // A reason may hold what parts two of them.
            None => {
                if let Some((_, why)) = found.last_mut() {
                    why.push_str("; ");
                    why.push_str(part);
                }
            }
        }
    }
    found.retain(|(_, why)| !why.starts_with(GIVEN));
    found
}

/// Has a build of main save these mounts, each to a tag of its own. One that was not asked about, as the
/// build is from scratch, is saved whole.
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

/// The files for `docker buildx bake` by which a build restores and saves its mounts; `None` where there is
/// nothing to do.
#[must_use]
pub fn bake_files<'a>(
    parts: impl Iterator<Item = PartMounts<'a>>,
    commit: Option<&Commit>,
    registry: &str,
    project: &Project,
) -> [Option<String>; 2] {
    let (mut restore, mut save) = (BTreeMap::new(), BTreeMap::new());
    for part in parts {
        for (mount, input) in part.mounts.iter().zip(part.inputs) {
            let image = input
                .image
                .as_ref()
                .map(|digest| format!("{registry}/{}@{digest}", project.cache_repository));
            if let Some(image) = &image {
                let to = json!(["type=cacheonly"]);
                let secret = input.save.as_ref().or(part.export).map(Tag::to_string);
                let nonce = secret.or_else(|| commit.map(Commit::to_string)).unwrap_or_default();
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

/// Copies an image's files into the mount: to a folder beside first, so that a build that is stopped half way
/// leaves a mount without them and none with some. A mount that holds something stays as it is. A builder
/// that has run the very same before would not run it again: the nonce is this build's.
fn restoring(tools: &str, mount: &Mount, image: &str, nonce: &str) -> String {
    let cache = cache_mount(mount);
    format!(
        "FROM {tools}\n\
         RUN --mount=type=bind,from={image},source=/m,target=/.s {cache} : {nonce}; rm -rf /.m/.stoker; \
         if [ -z \"$(ls -A /.m)\" ]; then mkdir /.m/.stoker && cp -a /.s/. /.m/.stoker/ && cd /.m/.stoker && \
         find . -mindepth 1 -maxdepth 1 -exec mv {{}} /.m/ \\; ; cd /; rm -rf /.m/.stoker; fi\n"
    )
}

/// Copies the mount into `/m` of a layer upon `base`, or upon nothing: all of it, or what differs from what
/// is there. With `--no-cache` BuildKit empties mounts, so it is the tag, which no other build has, that
/// makes it run.
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
