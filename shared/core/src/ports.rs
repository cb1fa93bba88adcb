//! The ports: everything Stoker asks of the world outside its process, named by capability, domain types in and out.
//! Each function takes only the ports it needs, which is also how its IAM role is written.

#![expect(
    async_fn_in_trait,
    reason = "a Lambda serves one event at a time on one thread; no future has to be Send"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use jiff::Timestamp;

use crate::build_inputs::GivenInputs;
use crate::error::CallError;
use crate::event::Event;
use crate::names::{CacheRepository, Digest, ProjectName, Tag};

/// A manifest as the registry holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes: still hostile, see [`buildkit_cache::classify`].
    pub manifest: Bytes,
}

/// Reads manifests.
pub trait ReadImages {
    /// The manifests under these tags, in the order asked for; `None` where there is none, also when the whole
    /// repository does not exist yet.
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError>;
}

/// Reads blobs.
pub trait ReadBlobs {
    /// A blob of at most `limit` bytes; its digest has been checked.
    async fn blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError>;
}

/// Writes blobs and manifests.
pub trait WriteImages {
    /// Stores a blob.
    async fn put_blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError>;

    /// Stores a manifest under a tag, taking the tag from whatever held it.
    async fn put_image(
        &self,
        repository: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError>;
}

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// The blob is in the other repository too.
    Done,
    /// It is nowhere.
    Missing,
    /// The registry wants its bytes instead.
    Refused,
}

/// Makes blobs of one repository blobs of another.
pub trait MountBlobs {
    /// Mounts one, without moving its bytes.
    async fn mount(
        &self,
        to: &CacheRepository,
        from: &CacheRepository,
        digest: &Digest,
    ) -> Result<Mounted, CallError>;
}

/// Looks whether blobs are there.
pub trait CheckBlobs {
    /// Those of these blobs that nobody could read now: missing, or archived.
    async fn unavailable(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, CallError>;
}

/// Looks up what a tag points to.
pub trait FindDigests {
    /// The digest of the image or the index under a tag; `None` where there is none.
    async fn digest_of(&self, repository: &CacheRepository, tag: &str) -> Result<Option<Digest>, CallError>;
}

/// An image as the registry's catalogue lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// The manifest's digest.
    pub digest: Digest,
    /// All its tags.
    pub tags: Vec<String>,
    /// When it was first pushed.
    pub pushed_at: Timestamp,
    /// Size of its layers in bytes, as billed for this image alone.
    pub bytes: u64,
    /// When somebody last pulled it, as far as the registry knows: to the day.
    pub pulled_at: Option<Timestamp>,
    /// Whether it was moved to where nobody can pull it from.
    pub is_archived: bool,
}

/// Reads manifests by their digests.
pub trait ReadManifests {
    /// The manifests with these digests, at most 100; those that are not there, or cannot be read, are left
    /// out. `None` where the answer is longer than so many bytes: then it is not read.
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
        longest: usize,
    ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError>;
}

/// Lists and deletes images.
pub trait Catalogue {
    /// Every image of the repository; none when the repository does not exist.
    async fn list(&self, repository: &CacheRepository) -> Result<Vec<ListedImage>, CallError>;

    /// These images, at most 100, as they are now; those that are not there are left out.
    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError>;

    /// Deletes images with all their tags; answers those that could not be deleted, with the registry's word for why.
    /// An image that is already gone counts as deleted.
    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError>;
}

/// Makes repositories for caches.
pub trait MakeRepositories {
    /// Makes one that is missing, with its safety net, where the deployment says so; in an immutable one no
    /// tag ever moves. Whether it was made.
    async fn make_repository(
        &self,
        repository: &CacheRepository,
        is_immutable: bool,
    ) -> Result<bool, CallError>;
}

/// How a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStatus {
    /// Queued or running: it may still read what it was given.
    InProgress,
    /// Ended well.
    Succeeded,
    /// Somebody stopped it.
    Stopped,
    /// Ended in any other way.
    Failed,
}

/// A build as CodeBuild remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// `project:uuid`.
    pub id: String,
    /// Its project.
    pub project: ProjectName,
    /// How it stands.
    pub status: BuildStatus,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended; `None` while it runs.
    pub ended_at: Option<Timestamp>,
    /// What it was started to build: a commit, a branch, a reference, or an object of S3.
    pub source_version: Option<String>,
    /// The commit that CodeBuild resolved its source to, once known.
    pub resolved_commit: Option<String>,
    /// What Stoker gave it; `None` for a build that it had no part in.
    pub inputs: Option<GivenInputs>,
    /// Whether that is what the build says of itself: it may say anything. It is not where CodeBuild says
    /// that Stoker's own role started the build, in no batch, with just that.
    pub claims: bool,
}

/// A build to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOrder {
    /// The project.
    pub project: ProjectName,
    /// What to build, whatever version of its source the project itself names: a commit, a reference with a
    /// commit, or a branch. `None` builds what the project names, or the head of the default branch.
    pub source_version: Option<String>,
    /// Environment variables beside the project's own.
    pub environment: Vec<(String, String)>,
    /// Orders with the same token within five minutes are one build.
    pub token: String,
}

/// The answer to a [`BuildOrder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// The id of the build, new or of an earlier order with the same token.
    Started(String),
    /// Another order with the same token and other parameters came first.
    AlreadyOrdered,
    /// CodeBuild knows no such project.
    NoSuchProject,
}

/// Lets time pass.
pub trait Pause {
    /// Goes on after so long.
    async fn pause(&self, time: Duration);
}

/// Starts builds.
pub trait StartBuilds {
    /// Starts one.
    async fn start(&self, order: &BuildOrder) -> Result<Ordered, CallError>;
}

/// Stops builds.
pub trait StopBuilds {
    /// Stops one; one that has ended stays as it is.
    async fn stop(&self, id: &str) -> Result<(), CallError>;
}

/// Reads builds.
pub trait ReadBuilds {
    /// The builds of a project, the newest first: at least the newest 100, and all since `since` or the newest
    /// [`MAX_BUILDS`]. None when there is no such project. Shared, as whoever remembers builds is asked for the same
    /// hundred again and again.
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError>;

    /// The builds with these ids; those that CodeBuild does not know are left out.
    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError>;
}

/// How far back builds are read at most: what a very large project starts in the hours after which a forge's
/// webhook may be delivered once more. Of what came before nobody knows whether it has been built.
pub const MAX_BUILDS: usize = 5000;

/// Lists projects.
pub trait ListProjects {
    /// The names of all CodeBuild projects of the account and region.
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError>;
}

/// Stoker's own event bus.
pub trait Publish {
    /// Puts events on the bus.
    async fn publish(&self, events: &[Event]) -> Result<(), CallError>;
}

/// The secrets that webhooks are signed with.
pub trait ReadSecrets {
    /// Every secret that is valid now, as it is remembered. With `anew`, as what is remembered does not do,
    /// it is read again, unless that was done a moment ago: anybody can send what no secret fits.
    async fn webhook_secrets(&self, anew: bool) -> Result<Vec<Vec<u8>>, CallError>;
}

/// How many images one request may name.
pub(crate) const IMAGES_PER_CALL: usize = 100;

/// Reads images under any number of tags, as many at once as the registry answers.
pub(crate) async fn read_images(
    ports: &impl ReadImages,
    repository: &CacheRepository,
    tags: &[Tag],
) -> Result<Vec<Option<Image>>, CallError> {
    let pages = tags.chunks(IMAGES_PER_CALL).map(|tags| ports.images(repository, tags));
    Ok(try_join_all(pages).await?.into_iter().flatten().collect())
}
