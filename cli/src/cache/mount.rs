//! What is in the image of a saved cache mount.

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::mounts::{Carrying, MountManifest, Samples, mount_of};
use stoker_core::names::{Commit, Digest, Line};
use stoker_core::provenance::{self, Provenance};

use crate::remote::Found;
use crate::text::{Align, ago, count, plain, size, table};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SavedMount {
    reference: String,
    digest: Digest,
    mount: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<String>,
    /// Compressed bytes of all layers.
    bytes: u64,
    layers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<Commit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    built_at: Option<Timestamp>,
    /// Seconds that builds of main took with the mount, the newest last.
    seconds_with: Vec<u64>,
    /// Seconds that those took that went without.
    seconds_without: Vec<u64>,
    /// Why the next build of a branch is not given it, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_carried: Option<String>,
}

impl SavedMount {
    /// Reads what was found, if it is a saved mount.
    pub(crate) fn of(found: &Found, now: Timestamp) -> Option<Self> {
        let manifest = MountManifest::parse(&found.bytes).ok()?;
        let mount = mount_of(&manifest.annotations)?;
        let Provenance { built, .. } = Provenance::read(&manifest.annotations);
        let samples = Samples::read(&manifest.annotations);
        let saved_at = built.as_ref().map_or(Timestamp::MIN, |built| built.at);
        let not_carried = match samples.carrying(false, saved_at, now) {
            Carrying::Yes => None,
            Carrying::No(why) => Some(why),
        };
        Some(Self {
            reference: found.reference.to_string(),
            digest: found.digest.clone(),
            mount: mount.to_string(),
            line: provenance::line(&manifest.annotations).as_ref().map(Line::to_string),
            bytes: manifest.bytes(),
            layers: manifest.layers().count(),
            commit: built.as_ref().map(|built| built.commit.clone()),
            built_at: built.as_ref().map(|built| built.at),
            build: built.map(|built| built.build),
            seconds_with: samples.with,
            seconds_without: samples.without,
            not_carried,
        })
    }

    pub(crate) fn render(&self, now: Timestamp) -> String {
        let seconds = |all: &[u64]| all.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let mut rows = vec![
            ("digest", self.digest.to_string()),
            ("mount", self.mount.clone()),
            ("holds", format!("{} in {}", size(self.bytes), count(self.layers, "layer"))),
        ];
        rows.extend(self.line.as_ref().map(|line| ("line", plain(line))));
        if let (Some(build), Some(commit)) = (&self.build, &self.commit) {
            let when = ago(now, self.built_at, "unknown");
            rows.push(("saved by", format!("{}, {when}, of {}", plain(build), commit.short())));
        }
        let samples = [("with it", &self.seconds_with), ("without", &self.seconds_without)];
        rows.extend(
            samples
                .into_iter()
                .filter(|(_, all)| !all.is_empty())
                .map(|(name, all)| (name, seconds(all) + " s")),
        );
        rows.push((
            "carried",
            self.not_carried.clone().map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")),
        ));
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        format!("{}\n{}", self.reference, table("  ", &[Align::Left, Align::Left], &rows))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_saved_mount_says_what_it_holds_and_why_it_is_not_carried() {
        let blob = |kind: &str, size: u64| {
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": Digest::of(kind.as_bytes()), "size": size })
        };
        let annotations = json!({
            "stoker.mount": "cargo", "stoker.line": "main", "stoker.build": "app:1", "stoker.commit": "ab".repeat(20),
            "stoker.built-at": "2026-11-21T08:00:00Z", "stoker.mount-seconds-with": "90 91 92",
            "stoker.mount-seconds-without": "60 61 62",
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": buildkit_cache::MANIFEST_MEDIA_TYPE, "config": blob("config.v1+json", 900),
            "layers": [blob("layer.v1.tar+zstd", 5_000_000), blob("layer.v1.tar+zstd", 1_000_000)],
            "annotations": annotations,
        });
        let bytes = bytes::Bytes::from(manifest.to_string());
        let found = Found {
            reference: "registry.example/app:main".parse().unwrap(),
            digest: Digest::of(&bytes),
            media_type: buildkit_cache::MANIFEST_MEDIA_TYPE.to_owned(),
            bytes,
        };
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let text = SavedMount::of(&found, now).unwrap().render(now);
        for row in [
            "mount     cargo",
            "holds     6.0 MB in 2 layers",
            "saved by  app:1, 2 h ago, of abababab",
            "with it   90, 91, 92 s",
            "carried   no: carrying it costs more than it spares: 3 builds of main took 91 s with it, 3 took 61 \
             s without",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
        let cache = Found { bytes: bytes::Bytes::from_static(b"{}"), ..found };
        assert!(SavedMount::of(&cache, now).is_none());
    }
}
