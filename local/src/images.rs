//! Watches the registry, and tells of images that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::aws::{Aws, AwsError, Service};
use crate::bus::Bus;
use crate::chain;
use crate::events::envelope;

const INTERVAL: Duration = Duration::from_millis(300);

/// An image of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// Its manifest's type.
    pub media_type: Option<String>,
}

/// All images, by repository and digest.
pub type Images = BTreeMap<(String, String), Image>;

/// An image came under a tag, or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The repository.
    pub repository: String,
    /// The manifest.
    pub digest: String,
    /// The tag, if it has one.
    pub tag: Option<String>,
    /// The manifest's type.
    pub media_type: Option<String>,
    /// Whether it came.
    pub arrived: bool,
}

/// "ECR Image Action" for an image that came or went.
#[must_use]
pub fn image_action(change: &Change, now: Timestamp) -> Value {
    let mut detail = json!({
        "result": "SUCCESS",
        "repository-name": change.repository,
        "image-digest": change.digest,
        "action-type": if change.arrived { "PUSH" } else { "DELETE" },
    });
    if let Some(tag) = &change.tag {
        detail["image-tag"] = json!(tag);
    }
    if let Some(media_type) = &change.media_type {
        detail["manifest-media-type"] = json!(media_type);
    }
    envelope("ECR Image Action", "aws.ecr", &[], &detail, now)
}

/// What happened between two looks. A tag that moved is a push to its new image, and nothing to its old one.
#[must_use]
pub fn changes(before: &Images, after: &Images) -> Vec<Change> {
    let change = |key: &(String, String), image: &Image, tag: Option<&String>, arrived| Change {
        repository: key.0.clone(),
        digest: key.1.clone(),
        tag: tag.cloned(),
        media_type: image.media_type.clone(),
        arrived,
    };
    let mut changes = Vec::new();
    let nothing = BTreeSet::new();
    for (key, image) in after {
        let known = before.get(key);
        let tags = known.map_or(&nothing, |known| &known.tags);
        changes.extend(image.tags.difference(tags).map(|tag| change(key, image, Some(tag), true)));
        if known.is_none() && image.tags.is_empty() {
            changes.push(change(key, image, None, true));
        }
    }
    for (key, image) in before {
        let left = after.get(key);
        let moved = |tag: &String| {
            after
                .iter()
                .any(|(other, image)| other.0 == key.0 && other.1 != key.1 && image.tags.contains(tag))
        };
        let tags = left.map_or(&nothing, |left| &left.tags);
        let gone: Vec<_> = image.tags.difference(tags).filter(|tag| !moved(tag)).collect();
        changes.extend(gone.iter().map(|tag| change(key, image, Some(tag), false)));
        if left.is_none() && image.tags.is_empty() {
            changes.push(change(key, image, None, false));
        }
    }
    changes
}

/// Looks every 300 ms, for ever, and counts the looks. What is there at the first look is not news. Where
/// there is much to look at, it rests for longer, so that others get their answers too.
pub async fn watch(aws: Aws, bus: Arc<Bus>, looks: Arc<AtomicU64>) {
    let mut known: Option<Images> = None;
    let mut answers = true;
    loop {
        let started = Instant::now();
        match look(&aws).await {
            Ok(images) => {
                let now = Timestamp::now();
                for change in changes(known.as_ref().unwrap_or(&images), &images) {
                    bus.emit(image_action(&change, now));
                }
                known = Some(images);
                answers = true;
            }
            Err(error) => {
                if answers {
                    tracing::warn!(error = chain(&error), "the registry cannot be watched");
                }
                answers = false;
            }
        }
        looks.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(INTERVAL.max(started.elapsed() * 2)).await;
    }
}

async fn look(aws: &Aws) -> Result<Images, AwsError> {
    let mut images = Images::new();
    for repository in paged(aws, "DescribeRepositories", json!({}), "repositories").await? {
        let Some(name) = repository["repositoryName"].as_str() else {
            continue;
        };
        let ask = json!({"repositoryName": name});
        let details = match paged(aws, "DescribeImages", ask, "imageDetails").await {
            // It went between the two calls.
            Err(AwsError::Refused { message, .. }) if message.contains("RepositoryNotFound") => continue,
            details => details?,
        };
        for detail in details {
            let Some(digest) = detail["imageDigest"].as_str() else {
                continue;
            };
            let image = images.entry((name.to_owned(), digest.to_owned())).or_default();
            let tags = detail["imageTags"].as_array().into_iter().flatten();
            image.tags.extend(tags.filter_map(Value::as_str).map(str::to_owned));
            image.media_type = detail["imageManifestMediaType"].as_str().map(str::to_owned);
        }
    }
    Ok(images)
}

async fn paged(aws: &Aws, action: &str, mut ask: Value, field: &str) -> Result<Vec<Value>, AwsError> {
    let mut all = Vec::new();
    loop {
        let mut answer = aws.call(Service::Ecr, action, &ask).await?;
        if let Value::Array(items) = answer[field].take() {
            all.extend(items);
        }
        match answer["nextToken"].as_str() {
            Some(token) => ask["nextToken"] = json!(token),
            None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untagged_push_has_no_tag() {
        let change = Change {
            repository: "cache/app".to_owned(),
            digest: "sha256:00".to_owned(),
            tag: None,
            media_type: None,
            arrived: true,
        };
        let event = image_action(&change, Timestamp::UNIX_EPOCH);
        assert_eq!(event["detail"]["action-type"], "PUSH");
        assert!(event["detail"].get("image-tag").is_none());
        assert_eq!(event["resources"], json!([]));
    }

    fn images(list: &[(&str, &[&str])]) -> Images {
        let image =
            |tags: &[&str]| Image { tags: tags.iter().map(|&t| t.to_owned()).collect(), media_type: None };
        list.iter().map(|(digest, tags)| (("app".to_owned(), (*digest).to_owned()), image(tags))).collect()
    }

    fn reported(before: &[(&str, &[&str])], after: &[(&str, &[&str])]) -> Vec<String> {
        changes(&images(before), &images(after))
            .iter()
            .map(|c| {
                let sign = if c.arrived { '+' } else { '-' };
                format!("{sign}{} {}", c.digest, c.tag.as_deref().unwrap_or("untagged"))
            })
            .collect()
    }

    #[test]
    fn every_new_tag_is_a_push() {
        assert_eq!(reported(&[], &[("a", &["1", "2"]), ("b", &[])]), ["+a 1", "+a 2", "+b untagged"]);
        assert_eq!(reported(&[("a", &["1"])], &[("a", &["1", "2"])]), ["+a 2"]);
    }

    #[test]
    fn a_tag_that_moves_is_a_push_and_no_deletion() {
        assert_eq!(reported(&[("a", &["1"])], &[("a", &[]), ("b", &["1"])]), ["+b 1"]);
        assert_eq!(reported(&[("a", &["1"])], &[("b", &["1"])]), ["+b 1"]);
    }

    #[test]
    fn what_goes_is_deleted() {
        assert_eq!(reported(&[("a", &["1", "2"]), ("b", &[])], &[("a", &["1"])]), ["-a 2", "-b untagged"]);
        assert_eq!(reported(&[("a", &["1"])], &[]), ["-a 1"]);
    }
}
