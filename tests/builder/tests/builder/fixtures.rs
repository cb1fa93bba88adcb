//! What an engine says of the fixtures' project, written down for tests that have no engine: a first build, and a second
//! one of a changed file from the first one's cache, told as text and as JSON.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::engine::{Engine, without_removals};
use crate::registry::Registry;

/// Named after the fixture of 0.13 that has the same steps, whose token stands in its Dockerfile.
const DOCKERFILE: &str = include_str!("../../../../shared/cache-misses/tests/fixtures/Dockerfile");
const TOKEN: &str = "why16697";

/// Writes the fixtures of an engine into a folder of its own.
pub(crate) fn write(folder: &Path, engine: &Engine, registry: &Registry, dir: &Path) -> anyhow::Result<()> {
    let docker = engine.versions.strip_prefix("Docker ").context("the engine says its version")?;
    let version: Vec<&str> = docker.split(|c: char| !c.is_ascii_digit()).take(2).collect();
    let folder = folder.join(format!("docker-{}", version.join(".")));
    std::fs::create_dir_all(&folder)?;
    // What an engine has built under this token it would not build again.
    let token = format!("why{}", std::process::id());
    let dockerfile = DOCKERFILE.replace(TOKEN, &token).replace("localhost/base:1", &engine.base_image);
    std::fs::write(folder.join("Dockerfile"), &dockerfile)?;
    let context = dir.join("fixtures");
    std::fs::create_dir_all(context.join("src"))?;
    for (path, content) in [("Dockerfile", dockerfile.as_str()), ("package.json", "1\n"), ("src/a", "1\n")] {
        std::fs::write(context.join(path), content)?;
    }
    let first = registry.reference(&format!("{token}-first"));
    let mut blobs = BTreeSet::new();
    for (name, progress, from) in
        [("first", "plain", None), ("plain", "plain", Some(&first)), ("rawjson", "rawjson", Some(&first))]
    {
        let tag = format!("{token}-{name}");
        let mut command = Command::new("docker");
        command.args(["buildx", "build", "--provenance=mode=max", &format!("--progress={progress}")]);
        command.arg("--output").arg(format!("type=local,\"dest={}\"", dir.join(name).display()));
        let how = "mode=max,image-manifest=true,oci-mediatypes=true";
        command.arg(format!("--cache-to=type=registry,ref={},{how}", registry.reference(&tag)));
        command.args(from.map(|from| format!("--cache-from=type=registry,ref={from}")));
        let built = without_removals(command.arg(&context).stdin(Stdio::null()))?;
        let log = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "the build failed:\n{log}");
        let manifest = registry.manifest(&tag)?;
        let of_manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
        let config = of_manifest["config"]["digest"].as_str().context("a cache has a config")?;
        std::fs::write(folder.join(format!("{name}.log")), log.as_bytes())?;
        std::fs::write(folder.join(format!("{name}.manifest.json")), &manifest)?;
        std::fs::write(folder.join(format!("{name}.config.json")), registry.blob(config)?)?;
        if from.is_some() {
            let provenance = std::fs::read(dir.join(name).join("provenance.json"))?;
            std::fs::write(folder.join(format!("{name}.provenance.json")), provenance)?;
        }
        blobs.extend(registry.read(&tag)?.blobs().map(|blob| blob.digest.to_string()));
        Engine::free(&[&token], &blobs)?;
        std::fs::write(context.join("src/a"), "2\n")?;
    }
    println!("WROTE the fixtures of {} to {}: commit them", engine.versions, folder.display());
    Ok(())
}
