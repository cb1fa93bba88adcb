//! ECR: manifests in batches and the catalogue through its own API, content through the distribution API.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{
    self, DescribeImagesFilter, ImageDetail, ImageFailureCode, ImageIdentifier, ImageStatus,
    ImageStatusFilter, ImageTagMutability, LayerAvailability,
};
use bytes::Bytes;

use super::limit::{self, AtMost};
use super::{Aws, call_error, timestamp};
use crate::registry::{self, Authorize};
use stoker_core::error::{CallError, Failure};
use stoker_core::names::{CacheRepository, Digest, Tag};
use stoker_core::onboard::safety_net;
use stoker_core::ports::{
    Catalogue, CheckBlobs, FindDigests, Image, ListedImage, MakeRepositories, MountBlobs, Mounted, ReadBlobs,
    ReadImages, ReadManifests, WriteImages,
};

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// How many layers one request may name.
const LAYERS_PER_CALL: usize = 100;
/// Renewed this long before it ends, so that no upload outlives it.
const TOKEN_MARGIN: Duration = Duration::from_mins(30);

impl Authorize for Aws {
    async fn authorization(&self) -> Result<Option<String>, CallError> {
        let known = self.token.0.lock().ok().and_then(|token| token.clone());
        if let Some((token, ends)) = known
            && SystemTime::now() + TOKEN_MARGIN < ends
        {
            return Ok(Some(format!("Basic {token}")));
        }
        let operation = "ecr:GetAuthorizationToken";
        let answer = self.ecr().get_authorization_token().send().await;
        let answer = answer.map_err(|error| call_error(operation, &self.registry_host, error))?;
        let data = answer.authorization_data().first();
        let token = data.and_then(|data| Some((data.authorization_token()?.to_owned(), data.expires_at()?)));
        let (token, ends) = token.ok_or_else(|| {
            CallError::new(operation, &self.registry_host, Failure::Unavailable, "the answer holds no token")
        })?;
        let ends = SystemTime::try_from(*ends).unwrap_or_else(|_| SystemTime::now());
        if let Ok(mut known) = self.token.0.lock() {
            *known = Some((token.clone(), ends));
        }
        Ok(Some(format!("Basic {token}")))
    }
}

impl Aws {
    /// Makes a repository; in an immutable one no tag ever moves. `false` where there is one of that name,
    /// which stays as it is.
    pub async fn create_repository(
        &self,
        repository: &CacheRepository,
        is_immutable: bool,
        tag: Option<(&str, &str)>,
    ) -> Result<bool, CallError> {
        let operation = "ecr:CreateRepository";
        let tag = tag.map(|(key, value)| types::Tag::builder().key(key).value(value).build()).transpose();
        let tag = tag.map_err(|error| CallError::new(operation, repository, Failure::Refused, error))?;
        let mutability =
            if is_immutable { ImageTagMutability::Immutable } else { ImageTagMutability::Mutable };
        let asked = self.ecr().create_repository().repository_name(repository.as_str());
        let answer = asked.image_tag_mutability(mutability).set_tags(tag.map(|tag| vec![tag])).send().await;
        match answer {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("RepositoryAlreadyExistsException") => Ok(false),
            Err(error) => Err(call_error(operation, repository, error)),
        }
    }

    /// Gives a repository the lifecycle policy that is its safety net.
    pub async fn put_safety_net(&self, repository: &CacheRepository, days: u32) -> Result<(), CallError> {
        let asked = self.ecr().put_lifecycle_policy().repository_name(repository.as_str());
        let answer = asked.lifecycle_policy_text(safety_net(days)).send().await;
        answer.map(drop).map_err(|error| call_error("ecr:PutLifecyclePolicy", repository, error))
    }
}

impl MakeRepositories for Aws {
    async fn make_repository(
        &self,
        repository: &CacheRepository,
        is_immutable: bool,
    ) -> Result<bool, CallError> {
        let Some(days) = self.safety_net_days else { return Ok(false) };
        let is_made = self.create_repository(repository, is_immutable, None).await?;
        if is_made {
            self.put_safety_net(repository, days).await?;
        }
        Ok(is_made)
    }
}

impl ReadImages for Aws {
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError> {
        let operation = "ecr:BatchGetImage";
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let ids = tags.iter().map(|tag| ImageIdentifier::builder().image_tag(tag.as_str()).build()).collect();
        let answer = self
            .ecr()
            .batch_get_image()
            .repository_name(repository.as_str())
            .set_image_ids(Some(ids))
            .set_accepted_media_types(Some(MANIFEST_TYPES.map(str::to_owned).to_vec()))
            .send()
            .await;
        let answer = match answer.map_err(|error| call_error(operation, repository, error)) {
            Ok(answer) => answer,
            Err(error) if error.failure == Failure::NotFound => return Ok(vec![None; tags.len()]),
            Err(error) => return Err(error),
        };
        let malformed =
            |why: &str| CallError::new(operation, repository, Failure::Unavailable, why.to_owned());
        let mut missing = Vec::new();
        for failure in answer.failures() {
            let tag = failure.image_id().and_then(|id| id.image_tag());
            match (failure.failure_code(), tag) {
                (Some(ImageFailureCode::ImageNotFound), Some(tag)) => missing.push(tag),
                // What is archived serves no build, and to bring it back takes somebody's decision.
                (Some(ImageFailureCode::ImageInaccessible), Some(tag)) => {
                    let why = failure.failure_reason().unwrap_or_default();
                    tracing::error!(cache.tag = tag, cache.repository = %repository, why, "a cache cannot be \
                         read; is it archived?");
                    missing.push(tag);
                }
                (code, tag) => {
                    let why = format!("{tag:?}: {code:?}: {}", failure.failure_reason().unwrap_or_default());
                    return Err(malformed(&why));
                }
            }
        }
        let mut found = Vec::new();
        for image in answer.images() {
            let id = image.image_id();
            let digest = id.and_then(|id| id.image_digest()).and_then(|digest| Digest::new(digest).ok());
            let manifest = image.image_manifest();
            let (Some(digest), Some(manifest)) = (digest, manifest) else {
                return Err(malformed("an image without digest or manifest"));
            };
            let media_type = image.image_manifest_media_type().unwrap_or(MANIFEST_TYPES[0]).to_owned();
            let tag = id.and_then(|id| id.image_tag()).unwrap_or_default();
            let manifest = Bytes::copy_from_slice(manifest.as_bytes());
            found.push((tag, Image { digest, media_type, manifest }));
        }
        // ECR answers each image with the tag it was asked for. A registry that answers another of the image's tags
        // is understood by the order of its answer, which is that of the question without what is missing.
        let by_tag: HashMap<&str, &Image> = found.iter().map(|(tag, image)| (*tag, image)).collect();
        let mut in_order = found.iter();
        let images = tags.iter().map(|tag| {
            if missing.contains(&tag.as_str()) {
                return None;
            }
            let next = in_order.next().map(|(_, image)| image);
            by_tag.get(tag.as_str()).copied().or(next).cloned()
        });
        Ok(images.collect())
    }
}

impl ReadBlobs for Aws {
    async fn blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError> {
        if let Some(bytes) = self.blobs.find(repository, digest).filter(|bytes| bytes.len() <= limit) {
            return Ok(bytes);
        }
        let bytes = self.registry().blob(self, repository, digest, limit).await?;
        self.blobs.remember(repository, digest, &bytes);
        Ok(bytes)
    }
}

impl WriteImages for Aws {
    async fn put_blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        self.registry().put_blob(self, repository, digest, bytes).await
    }

    async fn put_image(
        &self,
        repository: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        self.registry().put_manifest(self, repository, tag, media_type, manifest).await
    }
}

impl MountBlobs for Aws {
    async fn mount(
        &self,
        to: &CacheRepository,
        from: &CacheRepository,
        digest: &Digest,
    ) -> Result<Mounted, CallError> {
        match self.registry().mount(self, to, digest, from).await? {
            registry::Mounted::Done => Ok(Mounted::Done),
            registry::Mounted::Refused(_) => match self.registry().find_blob(self, from, digest).await? {
                registry::Presence::Missing => Ok(Mounted::Missing),
                registry::Presence::There { .. } => Ok(Mounted::Refused),
            },
        }
    }
}

impl CheckBlobs for Aws {
    async fn unavailable(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, CallError> {
        let operation = "ecr:BatchCheckLayerAvailability";
        let mut available = BTreeSet::new();
        for some in digests.chunks(LAYERS_PER_CALL) {
            let answer = self
                .ecr()
                .batch_check_layer_availability()
                .repository_name(repository.as_str())
                .set_layer_digests(Some(some.iter().map(Digest::to_string).collect()))
                .send()
                .await
                .map_err(|error| call_error(operation, repository, error))?;
            let layers = answer.layers().iter();
            let layers =
                layers.filter(|layer| layer.layer_availability() == Some(&LayerAvailability::Available));
            available.extend(layers.filter_map(|layer| Digest::new(layer.layer_digest()?).ok()));
        }
        Ok(digests.iter().filter(|digest| !available.contains(digest)).cloned().collect())
    }
}

impl FindDigests for Aws {
    async fn digest_of(&self, repository: &CacheRepository, tag: &str) -> Result<Option<Digest>, CallError> {
        let id = ImageIdentifier::builder().image_tag(tag).build();
        let answer =
            self.ecr().describe_images().repository_name(repository.as_str()).image_ids(id).send().await;
        match answer.map_err(|error| call_error("ecr:DescribeImages", repository, error)) {
            Ok(answer) => {
                let digest = answer.image_details().first().and_then(|image| image.image_digest());
                Ok(digest.and_then(|digest| Digest::new(digest).ok()))
            }
            Err(error) if error.failure == Failure::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl ReadManifests for Aws {
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
        longest: usize,
    ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError> {
        let operation = "ecr:BatchGetImage";
        let ids =
            digests.iter().map(|digest| ImageIdentifier::builder().image_digest(digest.to_string()).build());
        let answer = self
            .ecr()
            .batch_get_image()
            .repository_name(repository.as_str())
            .set_image_ids(Some(ids.collect()))
            .set_accepted_media_types(Some(MANIFEST_TYPES.map(str::to_owned).to_vec()))
            .customize()
            .interceptor(AtMost(longest))
            .send()
            .await;
        let answer = match answer {
            Err(error) if limit::is_exceeded(&error) => return Ok(None),
            answer => answer.map_err(|error| call_error(operation, repository, error))?,
        };
        let found = answer.images.unwrap_or_default().into_iter().filter_map(|image| {
            let digest = Digest::new(image.image_id()?.image_digest()?).ok()?;
            Some((digest, Bytes::from(image.image_manifest?)))
        });
        Ok(Some(found.collect()))
    }
}

fn listed(mut detail: ImageDetail) -> Option<ListedImage> {
    // There may be a hundred thousand of them, most with one tag.
    let mut tags = detail.image_tags.take().unwrap_or_default();
    tags.shrink_to_fit();
    Some(ListedImage {
        digest: Digest::new(detail.image_digest()?).ok()?,
        pushed_at: timestamp(detail.image_pushed_at()),
        bytes: detail.image_size_in_bytes().unwrap_or_default().try_into().unwrap_or_default(),
        pulled_at: detail.last_recorded_pull_time().map(|time| timestamp(Some(time))),
        is_archived: detail.image_status().is_some_and(|status| *status != ImageStatus::Active),
        tags,
    })
}

impl Catalogue for Aws {
    async fn list(&self, repository: &CacheRepository) -> Result<Vec<ListedImage>, CallError> {
        let pages = self.ecr().describe_images().repository_name(repository.as_str()).max_results(1000);
        // Without it ECR leaves out what is archived.
        let pages =
            pages.filter(DescribeImagesFilter::builder().image_status(ImageStatusFilter::Any).build());
        let mut pages = pages.into_paginator().send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            let page = match page.map_err(|error| call_error("ecr:DescribeImages", repository, error)) {
                Ok(page) => page,
                Err(error) if error.failure == Failure::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let account = page.image_details().first().and_then(ImageDetail::registry_id);
            if let Some(account) = account {
                self.account.get_or_init(|| account.to_owned());
            }
            images.extend(page.image_details.unwrap_or_default().into_iter().filter_map(listed));
        }
        Ok(images)
    }

    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError> {
        let ids =
            digests.iter().map(|digest| ImageIdentifier::builder().image_digest(digest.to_string()).build());
        let request = self.ecr().describe_images().repository_name(repository.as_str());
        let answer = request.set_image_ids(Some(ids.collect())).send().await;
        match answer.map_err(|error| call_error("ecr:DescribeImages", repository, error)) {
            Ok(answer) => {
                Ok(answer.image_details.unwrap_or_default().into_iter().filter_map(listed).collect())
            }
            // One that is gone fails the whole request.
            Err(error) if error.failure == Failure::NotFound => {
                let there = self.list(repository).await?;
                Ok(there.into_iter().filter(|image| digests.contains(&image.digest)).collect())
            }
            Err(error) => Err(error),
        }
    }

    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError> {
        let ids =
            digests.iter().map(|digest| ImageIdentifier::builder().image_digest(digest.to_string()).build());
        let answer = self
            .ecr()
            .batch_delete_image()
            .repository_name(repository.as_str())
            .set_image_ids(Some(ids.collect()))
            .send()
            .await
            .map_err(|error| call_error("ecr:BatchDeleteImage", repository, error))?;
        let refused =
            answer.failures().iter().filter(|f| f.failure_code() != Some(&ImageFailureCode::ImageNotFound));
        let refused = refused.filter_map(|failure| {
            let digest = Digest::new(failure.image_id()?.image_digest()?).ok()?;
            Some((digest, failure.failure_reason().unwrap_or("no reason given").to_owned()))
        });
        Ok(refused.collect())
    }
}
