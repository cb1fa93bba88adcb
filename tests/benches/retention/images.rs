//! The images of the benchmark: each is known by its number, and made from it whenever somebody asks.

use std::fmt::Write as _;

use buildkit_cache::{CONFIG_MEDIA_TYPE, MANIFEST_MEDIA_TYPE};
use jiff::{SignedDuration, Timestamp};
use stoker_core::names::Digest;

/// ECR's quota of images in a repository.
pub(crate) const IMAGES: u32 = 100_000;
/// In a repository that somebody has filled, the first of so many manifests are as long as ECR takes them,
/// and so many after them are little but names of blobs that no other manifest names.
pub(crate) const LONGEST: u32 = 100;
pub(crate) const OF_BLOBS: u32 = 400;
/// Layers of an image that no other has.
const OWN_LAYERS: u32 = 5;
/// Layers that it shares with the hundred images around it, and with all.
const SHARED_LAYERS: u32 = 15;
const BASE_LAYERS: u32 = 10;

/// When the runs are.
pub(crate) fn night() -> Timestamp {
    "2026-11-20T05:30:00Z".parse().unwrap()
}

pub(crate) fn pushed_at(number: u32) -> Timestamp {
    // A hundred days of them, the newest two days old.
    let age = i64::from(IMAGES - number) * 86 + 2 * 86_400;
    night() - SignedDuration::from_secs(age)
}

pub(crate) fn tags(number: u32, digest: &Digest) -> Vec<String> {
    let branch = number / 5;
    let left = |line: &str| {
        let time = pushed_at(number).strftime("%Y%m%dT%H%M%SZ");
        format!("app.history.{line}.{time}-{}", &digest.short()[..8])
    };
    if number == IMAGES - 1 {
        return vec!["app.main".to_owned()];
    }
    match number % 5 {
        0 => vec![format!("app.commit.{}", commit(number))],
        1 | 2 => vec![left("main")],
        3 => vec![format!("app.branch.b{branch}"), format!("app.commit.{}", commit(number))],
        _ => vec![left(&format!("branch.b{branch}"))],
    }
}

/// What stands for a hash, without the time that one takes.
fn hex(kind: u64, number: u32, words: usize) -> String {
    let mut state = kind << 32 | u64::from(number);
    let mut text = String::with_capacity(words * 16);
    for _ in 0..words {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let _ = write!(text, "{:016x}", mixed ^ mixed >> 31);
    }
    text
}

fn commit(number: u32) -> String {
    hex(1, number, 3)[..40].to_owned()
}

/// A cache's manifest as promote-cache writes it.
pub(crate) fn manifest(number: u32) -> String {
    let base = (0..BASE_LAYERS).map(|at| (2, at));
    let shared = (0..SHARED_LAYERS).map(|at| (3, number / 100 * SHARED_LAYERS + at));
    let own = (0..OWN_LAYERS).map(|at| (4, number * OWN_LAYERS + at));
    let mut text = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_MEDIA_TYPE}\",\"config\":{{\"mediaType\":\"{CONFIG_MEDIA_TYPE}\",\
         \"digest\":\"sha256:{}\",\"size\":{}}},\"layers\":[",
        hex(5, number, 4),
        20_000 + number % 1000
    );
    for (index, (kind, layer)) in base.chain(shared).chain(own).enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(
            text,
            "{comma}{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:{}\",\"size\":{},\
             \"annotations\":{{\"buildkit/createdat\":\"2026-11-19T09:30:15.123456789Z\",\
             \"containerd.io/uncompressed\":\"sha256:{}\"}}}}",
            hex(kind, layer, 4),
            1_000_000 + layer % 50_000_000,
            hex(kind + 10, layer, 4),
        );
    }
    let line = if number % 5 < 3 { "main".to_owned() } else { format!("branch/b{}", number / 5) };
    let _ = write!(
        text,
        "],\"annotations\":{{\"stoker.project\":\"app\",\"stoker.line\":\"{line}\",\"stoker.trust\":\"trusted\",\
         \"stoker.commit\":\"{}\",\"stoker.build\":\"app:{}\",\"stoker.built-at\":\"{}\",\"stoker.reused-percent\":\"80\"}}}}",
        commit(number),
        hex(6, number, 3).split_at(36).0,
        pushed_at(number),
    );
    text
}

/// The worst manifest with that number.
pub(crate) fn worst(number: u32) -> String {
    let mut text = format!("{{\"n\":{number},\"layers\":[");
    let bytes = if number < LONGEST { 4 << 20 } else { 1 << 20 };
    let mut blob = number << 16;
    while text.len() < bytes - 100 {
        let _ = write!(text, "{{\"digest\":\"sha256:{}\"}},", hex(7, blob, 4));
        blob += 1;
    }
    text.pop();
    text + "]}"
}
