//! Bringing blobs to where a cache is written: what is there stays, the rest is mounted or copied.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use buildkit_cache::{Cache, Descriptor};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body::{Body, Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use stoker_aws::registry::{BlobBody, Mounted, Presence, Status, Upload};
use stoker_core::error::{CallError, Cause, Failure};
use stoker_core::names::Digest;

use crate::problem::Problem;
use crate::progress::{Progress, Unit};
use crate::reference::Reference;
use crate::remote::{Held, Remotes, present};

/// Blobs that move at a time.
const MOVES: usize = 4;
/// How often a copy is tried.
const ATTEMPTS: u32 = 3;
/// A copy in which no byte moves for so long has failed.
const PATIENCE: Duration = Duration::from_mins(2);

/// A blob, and a ref whose repository has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) blob: Descriptor,
    pub(crate) from: Reference,
}

/// What has to be done so that a repository has every blob of a cache.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Blobs that are there.
    pub(crate) present: usize,
    /// Blobs of the same registry.
    pub(crate) mount: Vec<Move>,
    /// Blobs of other registries.
    pub(crate) copy: Vec<Move>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) mounted: usize,
    /// Blobs that the registry did not mount, and that were copied instead.
    pub(crate) refused: usize,
    pub(crate) copied: usize,
    pub(crate) copied_bytes: u64,
}

/// Finds out what has to be done. `sources` are the caches that `cache` was made from.
pub(crate) async fn plan(
    remotes: &Remotes,
    into: &Reference,
    cache: &Cache,
    sources: &[Held],
) -> Result<Plan, Problem> {
    let blobs: Vec<&Descriptor> = cache.blobs().collect();
    let found = present(remotes, into, &blobs).await?;
    let mut by_digest: BTreeMap<&Digest, &Reference> = BTreeMap::new();
    // The nearest source wins: it may mount what others have to copy.
    for source in sources {
        let is_near = source.reference.host() == into.host();
        for blob in source.cache.blobs() {
            let place = by_digest.entry(&blob.digest).or_insert(&source.reference);
            if is_near {
                *place = &source.reference;
            }
        }
    }
    let mut plan = Plan::default();
    for (blob, found) in blobs.into_iter().zip(found) {
        let from = by_digest.get(&blob.digest);
        if let (Presence::Missing, Some(from)) = (found, from)
            && (from.host(), &from.repository) == (into.host(), &into.repository)
        {
            let why = format!("{from} names blob {}, which its repository does not have", blob.digest);
            return Err(Problem::no(why, format!("see `stoker cache verify {from}`")));
        }
        match (found, from) {
            (Presence::Missing, Some(&from)) => {
                let list = if from.host() == into.host() { &mut plan.mount } else { &mut plan.copy };
                list.push(Move { blob: blob.clone(), from: from.clone() });
            }
            _ => plan.present += 1,
        }
    }
    Ok(plan)
}

/// The compressed bytes of blobs.
pub(crate) fn bytes_of(moves: &[Move]) -> u64 {
    moves.iter().fold(0, |sum, step| sum.saturating_add(step.blob.size))
}

/// Does it.
pub(crate) async fn carry_out(remotes: &Remotes, into: &Reference, plan: &Plan) -> Result<Moved, Problem> {
    let mut moved = Moved::default();
    let mounts = plan.mount.iter().map(|step| mount(remotes, into, step));
    let mounts: Vec<Option<Upload>> =
        futures_util::stream::iter(mounts).buffered(MOVES).try_collect().await?;
    let mut copies: Vec<(&Move, Option<Upload>)> = plan.copy.iter().map(|step| (step, None)).collect();
    for (step, upload) in plan.mount.iter().zip(mounts) {
        match upload {
            None => moved.mounted += 1,
            Some(upload) => {
                moved.refused += 1;
                copies.push((step, Some(upload)));
            }
        }
    }
    moved.copied = copies.len();
    moved.copied_bytes = copies.iter().fold(0, |sum: u64, (step, _)| sum.saturating_add(step.blob.size));
    let progress = Arc::new(Progress::new("copying", Unit::Bytes, moved.copied_bytes));
    let copies = copies.into_iter().map(|(step, upload)| copy(remotes, into, step, upload, &progress));
    futures_util::stream::iter(copies).buffer_unordered(MOVES).try_collect::<Vec<()>>().await?;
    Ok(moved)
}

/// Mounts a blob; where the registry does not, the upload that it opened instead.
async fn mount(remotes: &Remotes, into: &Reference, step: &Move) -> Result<Option<Upload>, Problem> {
    let remote = remotes.of(into);
    let failed = |error| Problem::call("write layers to", into, &error);
    let access = remote.push(&into.repository, Some(&step.from.repository));
    let digest = &step.blob.digest;
    match remote.registry.mount(&access, &into.repository, digest, &step.from.repository).await {
        Ok(Mounted::Done) => Ok(None),
        Ok(Mounted::Refused(upload)) => Ok(Some(upload)),
        // Some refuse by an error, for instance because tokens of theirs know one repository only.
        Err(error) if matches!(error.failure, Failure::Refused | Failure::NotFound) => {
            let access = remote.push(&into.repository, None);
            remote.registry.open_upload(&access, &into.repository, digest).await.map(Some).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Copies a blob, with new tries where that can help.
async fn copy(
    remotes: &Remotes,
    into: &Reference,
    step: &Move,
    mut upload: Option<Upload>,
    progress: &Arc<Progress>,
) -> Result<(), Problem> {
    let mut attempt = 1;
    loop {
        let sent = Arc::new(AtomicU64::new(0));
        let error = match copy_once(remotes, into, step, upload.take(), progress, &sent).await {
            Ok(()) => return Ok(()),
            Err((doing, reference, error)) => {
                let may_pass = matches!(error.failure, Failure::Throttled | Failure::Unavailable);
                // A stream cannot be sent again with a better token; a new upload is opened with one.
                let may_pass = may_pass || is_unauthorised(&error);
                if !may_pass || attempt == ATTEMPTS {
                    return Err(Problem::call(doing, reference, &error));
                }
                error
            }
        };
        drop(error);
        progress.take_back(sent.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(1) * attempt).await;
        attempt += 1;
    }
}

async fn copy_once<'a>(
    remotes: &Remotes,
    into: &'a Reference,
    step: &'a Move,
    upload: Option<Upload>,
    progress: &Arc<Progress>,
    sent: &Arc<AtomicU64>,
) -> Result<(), (&'static str, &'a Reference, CallError)> {
    let digest = &step.blob.digest;
    let reads = |error| ("read a layer of", &step.from, error);
    let writes = |error| ("write a layer to", into, error);
    let source = remotes.of(&step.from);
    let target = remotes.of(into);
    // An upload that a refused mount opened goes on under that request's token.
    let push = target.push(&into.repository, upload.as_ref().map(|_| step.from.repository.as_str()));
    let upload = match upload {
        Some(upload) => upload,
        None => target.registry.open_upload(&push, &into.repository, digest).await.map_err(writes)?,
    };
    let pull = source.pull(&step.from.repository);
    let open = source.registry.open_blob(&pull, &step.from.repository, digest).await.map_err(reads)?;
    let wrong = |why: &str| CallError::new("registry:GetBlob", digest, Failure::Refused, why.to_owned());
    if open.length.is_some_and(|length| length != step.blob.size) {
        return Err(reads(wrong("the layer is not as long as its cache says")));
    }
    let relay = Relay {
        source: open.body,
        hash: Sha256::new(),
        left: step.blob.size,
        digest: digest.clone(),
        progress: Arc::clone(progress),
        sent: Arc::clone(sent),
    };
    let fill =
        target.registry.fill_upload(&push, &upload, digest, step.blob.size, BlobBody::from_body_1_x(relay));
    tokio::select! {
        filled = fill => filled.map_err(writes),
        () = stalled(sent) => Err(writes(CallError::new(
            "registry:PutBlob", digest, Failure::Unavailable, "no byte moved for two minutes"))),
    }
}

fn is_unauthorised(error: &CallError) -> bool {
    let status = error.source().and_then(|cause| cause.downcast_ref::<Status>());
    status.is_some_and(|status| status.code == 401)
}

/// Ends when nothing has been sent for too long.
async fn stalled(sent: &AtomicU64) {
    let mut before = sent.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(PATIENCE).await;
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

/// A blob on its way from one registry to the other: neither longer nor other than its digest says.
struct Relay {
    source: BlobBody,
    hash: Sha256,
    left: u64,
    digest: Digest,
    progress: Arc<Progress>,
    sent: Arc<AtomicU64>,
}

impl Relay {
    fn take(&mut self, data: &Bytes) -> Result<(), Cause> {
        let length = data.len() as u64;
        self.left = self.left.checked_sub(length).ok_or("the layer is longer than its cache says")?;
        self.hash.update(data);
        // Whoever sends this body stops at its length and asks for no end, so it is checked before the last byte.
        if self.left == 0 {
            let actual = std::mem::take(&mut self.hash).finalize();
            if self.digest.as_bytes()[..] != actual[..] {
                return Err("the layer has other bytes than its digest's".into());
            }
        }
        self.progress.add(length);
        self.sent.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let relay = self.get_mut();
        loop {
            return match Pin::new(&mut relay.source).poll_frame(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) if relay.left > 0 => {
                    relay.left = 0;
                    Poll::Ready(Some(Err("the layer is shorter than its cache says".into())))
                }
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    // Trailers say nothing of interest; nor do empty frames.
                    Err(_) => continue,
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => Poll::Ready(Some(relay.take(&data).map(|()| Frame::data(data)))),
                },
            };
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
