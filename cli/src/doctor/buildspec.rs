//! What a buildspec does, as far as its text tells: it is shell in YAML, and hostile.

use stoker_core::build_inputs::variable;
use stoker_core::policy::{Mount, Project, Target};

use super::checkout::{Checkout, LONGEST};
use super::commands::{Build, Chosen, Done, Tool, values};
use super::finding::Finding;
use super::spec::{self, Spec};
use crate::text::plain;

/// What the documents show: a builder that exports registry caches, of the BuildKit that the policy names.
const CREATE: &str = "docker buildx create --use $STOKER_BUILDER_FLAGS";
/// BuildKit writes a cache as an image manifest, which is all that ECR takes, from this version on.
const FIRST_VERSION: (u32, u32) = (0, 12);
/// How a file for bake is written in any shell.
const WRITE_BAKE: &str =
    "printf %s \"${STOKER_BAKE:-{\\}}\" >/tmp/stoker-bake.json, then -f /tmp/stoker-bake.json";

/// Whether CodeBuild reads this as a buildspec itself, and not as the place of one.
pub(crate) fn is_inline(buildspec: &str) -> bool {
    buildspec.contains('\n') || buildspec.trim_start().starts_with('{') || buildspec.contains(": ")
}

/// Whether an inline buildspec says how a batch is built.
pub(crate) fn has_batch(buildspec: &str) -> bool {
    is_inline(buildspec)
        && buildspec.len() <= LONGEST
        && spec::read(buildspec).is_some_and(|spec| spec.has_batch)
}

/// The text of a buildspec that is a file of the source, where its checkout has it.
pub(crate) fn of_source(described: Option<&str>, checkout: &Checkout) -> Option<String> {
    let place = described.filter(|text| !text.trim().is_empty()).unwrap_or("buildspec.yml");
    if is_inline(place) { None } else { checkout.read(place) }
}

/// What is to be said of a project's buildspec. `None` is the file `buildspec.yml` of the source.
///
/// Of CodeBuild's own images it is known that their Docker exports no registry cache; `image` may be another.
pub(crate) fn check(
    project: &Project,
    buildspec: Option<&str>,
    image: &str,
    is_forks: bool,
    checkout: Option<&Checkout>,
) -> Vec<Finding> {
    let buildspec = buildspec.filter(|text| !text.trim().is_empty());
    let Some(inline) = buildspec.filter(|text| is_inline(text)) else {
        let place = plain(buildspec.unwrap_or("buildspec.yml"));
        return vec![Finding::unknown(
            "buildspec",
            match checkout {
                Some(_) => format!("it is the file {place} of the source, which the checkout does not have"),
                None => format!("it is the file {place} of the source, which is not read here"),
            },
            format!(
                "run this with --checkout and a checkout of the source; or see yourself that it makes a builder \
                 (`{CREATE}`), and \
                 that `docker buildx build` is given $STOKER_CACHE_FLAGS"
            ),
        )];
    };
    if inline.len() > LONGEST {
        return vec![Finding::unknown("buildspec", "it is too long to be read", "look at it yourself")];
    }
    let Some(spec) = spec::read(inline) else {
        return vec![Finding::unknown(
            "buildspec",
            "it is no YAML that can be read here",
            "see in a build's log whether CodeBuild reads it, and that it does what docs/ci.md says",
        )];
    };
    let done = Done::read(project, &spec);
    if let Some(finding) = buildctl(&done) {
        return vec![finding];
    }
    let mut findings = vec![variables(project, &done), builder(&done, inline, image, is_forks)];
    findings.extend(not_text(&spec));
    findings.extend(unread(&done));
    findings.extend(quotes(&done));
    findings.extend(chosen(&done).filter(|_| !is_forks));
    findings.extend(platforms(&done));
    findings.extend(bake_targets(project, &done, checkout));
    findings.extend(mounts(project, &done, checkout));
    findings.extend(shell(&spec, &done));
    findings.extend(by_hand(&done));
    findings.extend(exported(project, &spec, is_forks));
    findings
}

/// BuildKit's own client has flags of its own, and asks a daemon that is started elsewhere.
fn buildctl(done: &Done) -> Option<Finding> {
    const CHECK: &str = "buildctl";
    let is_buildctl = |build: &Build| build.tool == Tool::Buildctl;
    if done.builds.is_empty() || !done.builds.iter().all(is_buildctl) {
        return None;
    }
    let of_stoker = |build: &Build| {
        let names = build.variables.iter().map(|variable| variable.name.as_str());
        names.into_iter().any(|name| [variable::FROM, variable::TO].iter().any(|ours| name.starts_with(ours)))
    };
    let all = done.builds.iter().all(of_stoker);
    let flags = done.uses(variable::FLAGS, is_buildctl);
    let repair = "its flags are ${STOKER_CACHE_FROM:+--import-cache $STOKER_CACHE_FROM} and \
         ${STOKER_CACHE_TO:+--export-cache \
                $STOKER_CACHE_TO}; the daemon that it asks has to be of BuildKit 0.12 or newer";
    Some(if flags {
        Finding::wrong(
            CHECK,
            "$STOKER_CACHE_FLAGS are flags of Docker's, which `buildctl build` does not know",
            repair,
        )
    } else if all {
        Finding::ok(CHECK, "`buildctl build` is given Stoker's caches")
    } else {
        Finding::wrong(
            CHECK,
            "`buildctl build` is given none of Stoker's caches: every build is cold",
            repair,
        )
    })
}

fn variables(project: &Project, done: &Done) -> Finding {
    const CHECK: &str = "buildspec";
    const COMPOSE: &str = "build with `docker buildx bake -f compose.yaml -f /tmp/stoker-bake.json`, which \
         reads the same file \
                           (docs/ci.md, \"docker compose\")";
    let any = |name: &str| done.uses(name, |_| true);
    let bakes = done.builds.iter().any(|build| build.tool == Tool::Bake);
    // The file may be written by any command before.
    if bakes && done.names(variable::BAKE) {
        return Finding::ok(CHECK, "`docker buildx bake` is given $STOKER_BAKE");
    }
    let names = [variable::FLAGS, variable::FROM, variable::REFS];
    let suffixes: Vec<String> = project.targets.iter().map(Target::suffix).collect();
    let is_missing = |given: &dyn Fn(&str) -> bool| -> Vec<String> {
        let missing =
            suffixes.iter().filter(|suffix| !names.iter().any(|name| given(&format!("{name}{suffix}"))));
        missing.map(|suffix| format!("$STOKER_CACHE_FLAGS{suffix}")).collect()
    };
    let missing = is_missing(&any);
    if missing.is_empty() {
        return Finding::ok(CHECK, "it uses the variables of every target");
    }
    let passed_on = |name: &str| any(name) || done.passed_on.iter().any(|passed| passed == name);
    if is_missing(&passed_on).is_empty() {
        return Finding::unknown(
            CHECK,
            "Stoker's variables are given to a command that is not known here",
            format!("see that it gives {} to `docker buildx build`", missing.join(" ")),
        );
    }
    let uses_some = done
        .builds
        .iter()
        .flat_map(|build| &build.variables)
        .any(|of| names.iter().any(|name| of.name.starts_with(name)));
    if done.builds.is_empty() {
        return Finding::unknown(
            CHECK,
            "no `docker buildx build` is in it: a script may do it",
            format!("see that the script uses {}", missing.join(" ")),
        );
    }
    if done.builds.iter().all(|build| build.tool == Tool::Compose) {
        return Finding::wrong(
            CHECK,
            "`docker compose build` takes no flags of caches: every build is cold",
            COMPOSE,
        );
    }
    let command = |flags: &String| format!("docker buildx build {flags} ...");
    let repair = match missing.as_slice() {
        [one] => format!("give `docker buildx build` the variables: {}", command(one)),
        [first, second, ..] => format!(
            "build each target by a command of its own ({}; {}; ...), or all with `docker buildx bake` (docs/ci.md)",
            command(first),
            command(second)
        ),
        [] => String::new(),
    };
    let found = match missing.as_slice() {
        [one] if uses_some => format!("{one} is not used: that target is built cold"),
        _ if uses_some => {
            format!("{} are not used: those targets are built cold", missing.join(" and "))
        }
        _ => "Stoker's variables are not used: every build is cold".to_owned(),
    };
    Finding::wrong(CHECK, found, repair)
}

fn builder(done: &Done, text: &str, image: &str, is_forks: bool) -> Finding {
    const CHECK: &str = "builder";
    let make = || format!("make one before building: {CREATE}");
    // Of several the one that builds; where none of them does, `chosen` tells so.
    let by = done
        .builds
        .iter()
        .find_map(|build| if let Chosen::Made(made) = build.builder { Some(made) } else { None });
    let is_elsewhere = done.builds.iter().any(|build| build.builder == Chosen::Elsewhere);
    let made =
        by.map_or_else(|| done.builders.last().filter(|_| !is_elsewhere), |made| done.builders.get(made));
    let Some(made) = made else {
        return match done.builds.first() {
            _ if is_elsewhere => Finding::unknown(
                CHECK,
                "a builder is chosen that is made elsewhere",
                "see that its driver is docker-container",
            ),
            _ if text.contains("containerd-snapshotter") => {
                Finding::ok(CHECK, "Docker's own, with the containerd image store")
            }
            _ if is_forks => Finding::ok(CHECK, "Docker's own, which is enough to read caches"),
            None => {
                Finding::unknown(CHECK, "no builder is made in the buildspec: a script may do it", make())
            }
            Some(_) if !image.starts_with("aws/codebuild/") => Finding::unknown(
                CHECK,
                format!(
                    "Docker's own, of {}: it exports caches only with the containerd image store",
                    plain(image)
                ),
                make(),
            ),
            Some(build) => {
                let what = match build.tool {
                    Tool::Buildx | Tool::Bake => "`docker buildx build`",
                    Tool::Compose => "`docker compose build`",
                    Tool::Docker | Tool::Buildctl => "`docker build`",
                };
                Finding::wrong(
                    CHECK,
                    format!(
                        "{what} by Docker's own builder, which fails when it is asked to export a registry cache"
                    ),
                    make(),
                )
            }
        };
    };
    let version = made.image.as_deref().and_then(tag_of);
    if let Some(version) = version
        && is_too_old(version)
    {
        let (major, minor) = FIRST_VERSION;
        return Finding::wrong(
            CHECK,
            format!("BuildKit is pinned to {}, which writes caches that ECR does not take", plain(version)),
            format!("pin v{major}.{minor}.0 or newer: {CREATE}, by the policy's `builder.image`"),
        );
    }
    match made.driver.as_deref() {
        driver @ (Some("docker-container" | "kubernetes") | None) => {
            let driver = driver.unwrap_or("docker-container");
            match version {
                Some(version) => Finding::ok(CHECK, format!("driver {driver}, BuildKit {}", plain(version))),
                None => Finding::warn(
                    CHECK,
                    format!("driver {driver}, and its BuildKit is whichever is the newest when a build runs"),
                    format!(
                        "let the policy pin one that is known to read caches whole: {CREATE} (docs/ci.md, \"The \
                         builder\")"
                    ),
                ),
            }
        }
        Some(driver @ ("remote" | "cloud")) => {
            Finding::ok(CHECK, format!("driver {driver}: whoever runs that builder chooses its BuildKit"))
        }
        Some(driver) if driver.contains('$') => Finding::unknown(
            CHECK,
            format!("the driver is what {} says", plain(driver)),
            "see that it is docker-container",
        ),
        Some(driver) => Finding::wrong(
            CHECK,
            format!("the driver `{}` cannot be made a builder that exports a registry cache", plain(driver)),
            make(),
        ),
    }
}

/// A command that is no text is one that CodeBuild refuses, and with it the whole buildspec.
fn not_text(spec: &Spec) -> Option<Finding> {
    spec.has_other_commands.then(|| {
        Finding::wrong(
            "commands",
            "a command is no text to YAML, as one with `: ` in it without quotes: CodeBuild refuses the buildspec",
            "put the command in quotes, or after `|` on lines of its own",
        )
    })
}

fn unread(done: &Done) -> Option<Finding> {
    let first = done.unread.as_deref()?;
    Some(Finding::unknown(
        "commands",
        format!("a command cannot be read as shell, and what it does is not known: {}", plain(first)),
        "see in a build's log that the shell reads it",
    ))
}

/// `"$STOKER_CACHE_FLAGS"` is one word to the shell: a flag that nobody knows, or an empty context.
fn quotes(done: &Done) -> Option<Finding> {
    let is_quoted = |build: &Build| {
        build
            .variables
            .iter()
            .any(|variable| variable.is_quoted && variable.name.starts_with(variable::FLAGS))
    };
    done.builds.iter().any(is_quoted).then(|| {
        Finding::wrong(
            "quotes",
            "\"$STOKER_CACHE_FLAGS\" in quotes is one word, which Docker takes for an unknown flag, or for the context",
            "write it without quotes: its words are the flags",
        )
    })
}

/// Whether the builder that is made is the one that builds.
fn chosen(done: &Done) -> Option<Finding> {
    let is_docker = |build: &&Build| build.builder == Chosen::Docker && build.tool != Tool::Buildctl;
    let build = done.builds.iter().find(is_docker)?;
    if done.builders.is_empty() {
        return None;
    }
    let found = match build.tool {
        Tool::Docker | Tool::Compose => {
            "a builder is made, and `docker build` is by Docker's own, which exports no registry cache"
        }
        _ => {
            "a builder is made, and Docker's own builds, which exports no registry cache: the one that is made \
             is not chosen, or another is after it"
        }
    };
    Some(Finding::wrong(
        "chosen builder",
        found,
        "give `docker buildx create` the flag --use before `docker buildx build`, and choose no other after it",
    ))
}

/// Platforms that are built by one command share its flags, and so one cache.
fn platforms(done: &Done) -> Option<Finding> {
    let several = |build: &Build| -> Option<String> {
        let uses = build.variables.iter().any(|variable| variable.name.starts_with("STOKER_CACHE_"));
        let texts = build.command.texts();
        let value =
            values(&texts).into_iter().find(|(option, value)| *option == "--platform" && value.contains(','));
        value.filter(|_| uses).map(|(_, value)| value.to_owned())
    };
    let value = done.builds.iter().find_map(several)?;
    Some(Finding::warn(
        "platforms",
        format!(
            "one command builds several platforms ({}): they share one cache, and the last that is exported is \
             all of it",
            plain(&value)
        ),
        "name the platforms in the policy (`targets: [{ platforms: [linux/amd64, linux/arm64] }]`) and build \
         each by a command of \
         its own with its own flags, then join the images by `docker buildx imagetools create`; a builder of \
         several native nodes \
         needs the same, as each command runs on one",
    ))
}

/// `STOKER_BAKE` sets caches of targets by their names, which have the platform in them where the policy names one.
fn bake_targets(project: &Project, done: &Done, checkout: Option<&Checkout>) -> Option<Finding> {
    const CHECK: &str = "bake targets";
    let bake = done.builds.iter().find(|build| build.tool == Tool::Bake)?;
    if !done.names(variable::BAKE) {
        return None;
    }
    let names: Vec<String> = project.targets.iter().map(Target::bake_name).collect();
    let texts = bake.command.texts();
    let files: Vec<&str> = bake_files(&texts);
    if let Some((there, files)) = checkout.and_then(|checkout| checkout.bake_targets(&files)) {
        let missing: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !there.contains(*name)).collect();
        let of_file = plain(&there.into_iter().collect::<Vec<_>>().join(", "));
        return Some(if missing.is_empty() {
            Finding::ok(CHECK, format!("{} has the targets that $STOKER_BAKE names", plain(&files)))
        } else {
            Finding::wrong(
                CHECK,
                format!(
                    "$STOKER_BAKE sets the caches of {}, and {} has {of_file}: a target that it does not have \
                     is built cold, or not at all",
                    missing.join(", "),
                    plain(&files)
                ),
                "name the targets in the policy as the bake file does; for several platforms have a target for \
                 each platform, with \
                 one platform (docs/ci.md, \"Several platforms\")",
            )
        });
    }
    let name = names.iter().zip(&project.targets).find(|(_, target)| target.platform.is_some())?.0;
    Some(Finding::unknown(
        CHECK,
        format!(
            "$STOKER_BAKE sets the caches of `{name}` and its like: a bake file with one target for several \
             platforms has none"
        ),
        format!(
            "run this with --checkout and a checkout of the source; or see yourself that the bake file has a \
             target `{name}` for \
             each platform of the policy, each with one platform (docs/ci.md, \"Several platforms\")"
        ),
    ))
}

/// Cache mounts: those that the policy carries have to be restored, saved, and of ids that the Dockerfile has.
fn mounts(project: &Project, done: &Done, checkout: Option<&Checkout>) -> Option<Finding> {
    const CHECK: &str = "cache mounts";
    let dockerfile = checkout.and_then(|checkout| checkout.read("Dockerfile"));
    let there = dockerfile.and_then(|text| dockerfile_keys::parse(&text).ok());
    let there = there.map(|file| dockerfile_keys::cache_mounts(&file)).unwrap_or_default();
    let list = |ids: &[&str]| plain(&ids.join(", "));
    let carried: Vec<&str> = project.mounts().map(|mount| mount.id.as_str()).collect();
    if carried.is_empty() {
        let ids: Vec<&str> = there.iter().map(|mount| mount.id.as_str()).collect();
        let hint = "they start empty in every build, and `targets[].mounts` of the policy carries them \
             (docs/mounts.md)";
        return (!ids.is_empty()).then(|| {
            Finding::ok(CHECK, format!("the Dockerfile has the cache mounts {}: {hint}", list(&ids)))
        });
    }
    let lines = [variable::RESTORE_MOUNTS, variable::SAVE_MOUNTS];
    if let Some(missing) = lines.into_iter().find(|name| !done.names(name)) {
        let what =
            format!("the policy carries {}, and the buildspec does not use ${missing}", list(&carried));
        return Some(Finding::wrong(CHECK, what, "write both lines of docs/mounts.md, around the build"));
    }
    let is_there = |mount: &&Mount| {
        there.iter().any(|known| known.id == mount.id.as_str() && known.options == mount.options)
    };
    let unknown: Vec<&str> =
        project.mounts().filter(|mount| !is_there(mount)).map(|mount| mount.id.as_str()).collect();
    if !there.is_empty() && !unknown.is_empty() {
        let ids: Vec<String> = there.iter().map(|mount| format!("{} {}", mount.id, mount.options)).collect();
        let what = format!(
            "the Dockerfile has no such cache mounts as {}, but {}",
            list(&unknown),
            plain(ids.join(", ").trim_end())
        );
        return Some(Finding::warn(
            CHECK,
            what,
            "write `id` and `options` in the policy as the Dockerfile has them",
        ));
    }
    Some(Finding::ok(CHECK, format!("{} restored and saved", list(&carried))))
}

/// The files that bake is told to read, but for Stoker's own, which is none of the source.
fn bake_files<'w>(words: &[&'w str]) -> Vec<&'w str> {
    let named = words.windows(2).filter_map(|pair| match pair {
        ["-f" | "--file", file] => Some(*file),
        _ => None,
    });
    let joined = words.iter().filter_map(|word| word.strip_prefix("--file=").or(word.strip_prefix("-f=")));
    named.chain(joined).filter(|file| !file.starts_with(['/', '<']) && !file.contains("STOKER")).collect()
}

/// CodeBuild runs commands with `sh` unless the buildspec names another shell.
fn shell(spec: &Spec, done: &Done) -> Option<Finding> {
    (done.substitutes_processes && !spec.is_bash).then(|| {
        Finding::wrong(
            "shell",
            "`<( )` is bash's, and CodeBuild runs commands with `sh`: the command is a syntax error",
            format!("write the file first: {WRITE_BAKE} (docs/ci.md); or say `shell: bash` under `env`"),
        )
    })
}

fn by_hand(done: &Done) -> Option<Finding> {
    let is_ours = |value: &str| value.contains("$STOKER_") || value.contains("${STOKER_");
    let first = done.builds.iter().find_map(|build| {
        let texts = build.command.texts();
        let found = values(&texts).into_iter().find(|(option, value)| {
            let is_cache = ["--cache-from", "--cache-to"].contains(option)
                || (*option == "--set" && (value.contains(".cache-from") || value.contains(".cache-to")));
            is_cache && !is_ours(value)
        });
        found.map(|(option, value)| format!("{option} {value}"))
    })?;
    Some(Finding::warn(
        "cache flags",
        format!(
            "`{}` is written by hand: Stoker neither checks nor promotes nor deletes that cache",
            plain(&first)
        ),
        "leave it out: $STOKER_CACHE_FLAGS has both flags; a cache of others is `more-sources` in the policy",
    ))
}

/// Where others start the builds, promotion learns of their exports from the variables that they export.
fn exported(project: &Project, spec: &Spec, is_forks: bool) -> Option<Finding> {
    const NAMES: [&str; 3] = [variable::LINE, variable::COMMIT, variable::EXPORT];
    if project.builds.start || is_forks {
        return None;
    }
    let tells = NAMES.iter().all(|name| spec.exported.iter().any(|exported| exported == name));
    Some(if tells {
        Finding::ok("exported variables", NAMES.join(" "))
    } else {
        Finding::warn(
            "exported variables",
            "the buildspec does not export STOKER_LINE, STOKER_COMMIT and STOKER_EXPORT: branches get no cache \
             of their own",
            "under `env`: exported-variables: [STOKER_LINE, STOKER_COMMIT, STOKER_EXPORT, STOKER_CACHE_FROM] \
             (docs/ci.md)",
        )
    })
}

/// The tag of an image, or the digest that pins it.
fn tag_of(image: &str) -> Option<&str> {
    image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

/// Whether a tag of BuildKit's image is of a version too old; tags that are no versions are as new as can be.
fn is_too_old(tag: &str) -> bool {
    let mut numbers = tag.trim_start_matches('v').split(['.', '-']).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < FIRST_VERSION,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::super::projects;
    use super::*;

    fn project(keys: &str) -> Project {
        projects(keys).remove(0)
    }

    /// A buildspec with these commands.
    fn spec(commands: &[&str]) -> String {
        let commands: Vec<String> = commands.iter().map(|command| format!("      - {command}\n")).collect();
        format!("version: 0.2\nphases:\n  build:\n    commands:\n{}", commands.concat())
    }

    fn states(project: &Project, spec: &str, is_forks: bool) -> Vec<(&'static str, State)> {
        check(project, Some(spec), IMAGE, is_forks, None)
            .iter()
            .map(|finding| (finding.check, finding.state))
            .collect()
    }

    const IMAGE: &str = "aws/codebuild/standard:7.0";
    const BUILD: &str = "docker buildx build $STOKER_CACHE_FLAGS -t \"$IMAGE\" --push .";
    const ALL_OK: [(&str, State); 2] = [("buildspec", State::Ok), ("builder", State::Ok)];

    #[test]
    fn what_the_docs_show_is_right() {
        let app = project("");
        assert_eq!(states(&app, &spec(&[CREATE, BUILD]), false), ALL_OK);
        let targets = project("    targets: [{ name: api, platforms: [linux/arm64] }, { name: worker }]\n");
        let bake = include_str!("../../../docs/ci.md").split("## docker buildx bake").nth(1).unwrap();
        let bake: Vec<&str> = bake.split("```").nth(1).unwrap().lines().skip(1).collect();
        let plain = project("    targets: [{ name: api }, { name: worker }]\n");
        let bake = spec(&[&[CREATE][..], &bake].concat());
        assert_eq!(states(&plain, &bake, false), ALL_OK);
        assert_eq!(states(&targets, &bake, false).last(), Some(&("bake targets", State::Unknown)));
        let in_bash = "docker buildx bake -f docker-bake.hcl -f <(printf %s \"$STOKER_BAKE\")";
        let reported = states(&plain, &spec(&[CREATE, in_bash]), false);
        assert_eq!(reported.last(), Some(&("shell", State::Wrong)));
        for env in ["env: { shell: bash }", "env:\n  shell: \"bash\""] {
            let spec = format!("{}{env}\n", spec(&[CREATE, in_bash]));
            assert_eq!(states(&plain, &spec, false), ALL_OK, "{env}");
        }
        let both = [
            "docker buildx build ${STOKER_CACHE_FLAGS_API_LINUX_ARM64-} .",
            "docker buildx build $STOKER_CACHE_FLAGS_WORKER .",
        ];
        assert_eq!(states(&targets, &spec(&[CREATE, both[0], both[1]]), false), ALL_OK);
        let continued = "|\n        docker buildx build \\\n          $STOKER_CACHE_FLAGS .";
        assert_eq!(states(&app, &spec(&[CREATE, continued]), false), ALL_OK);
        let own = include_str!("../../../docs/ci/codebuild.yml");
        for spec in [own, include_str!("../../../docs/ci/codepipeline.yml")] {
            assert_eq!(states(&app, spec, false), ALL_OK, "{spec}");
        }
        let others = project("    builds: { start: false }\n");
        let reported = states(&others, own, false);
        assert!(reported.contains(&("exported variables", State::Ok)), "{reported:?}");
        assert!(
            states(&others, &spec(&[CREATE, BUILD]), false).contains(&("exported variables", State::Warn))
        );
    }

    #[test]
    fn bake_targets_are_those_of_the_checkouts_file() {
        let dir = std::env::temp_dir().join(format!("stoker-bake-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let checkout = Checkout::open(&dir).unwrap();
        let targets = project("    targets: [{ name: api, platforms: [linux/arm64] }, { name: worker }]\n");
        let bake = "docker buildx bake -f docker-bake.hcl -f /tmp/stoker-bake.json";
        let write = "printf %s \"${STOKER_BAKE:-{\\}}\" >/tmp/stoker-bake.json";
        std::fs::write(dir.join("buildspec.yml"), spec(&[CREATE, write, bake])).unwrap();
        for (file, state) in [
            ("target \"api\" {}\ntarget \"worker\" {}\n", State::Wrong),
            ("target \"api-linux-arm64\" {}\ntarget \"worker\" {}\n", State::Ok),
            ("target \"${name}\" {}\n", State::Unknown),
        ] {
            std::fs::write(dir.join("docker-bake.hcl"), file).unwrap();
            let text = of_source(None, &checkout);
            let found = check(&targets, text.as_deref(), IMAGE, false, Some(&checkout));
            let reported =
                found.iter().find(|finding| finding.check == "bake targets").map(|finding| finding.state);
            assert_eq!(reported, Some(state), "{file}: {found:?}");
        }
        assert_eq!(of_source(Some("version: 0.2"), &checkout), None, "inline");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn mounts_are_carried_by_the_lines_of_the_docs_and_by_ids_of_the_dockerfile() {
        let lines = include_str!("../../../docs/mounts.md").split("```sh\n").nth(1).unwrap();
        let lines: Vec<&str> = lines.split("```").next().unwrap().lines().collect();
        let carried = project("    targets: [{ mounts: [{ id: /root/.npm }] }]\n");
        let both = spec(&[CREATE, lines[0], BUILD, lines[1]]);
        assert_eq!(
            states(&carried, &both, false),
            [ALL_OK.as_slice(), &[("cache mounts", State::Ok)]].concat()
        );
        assert_eq!(states(&project(""), &both, false), ALL_OK);
        for missing in [spec(&[CREATE, BUILD]), spec(&[CREATE, lines[0], BUILD])] {
            let reported = states(&carried, &missing, false);
            assert_eq!(reported.last(), Some(&("cache mounts", State::Wrong)), "{reported:?}");
        }
        let dir = std::env::temp_dir().join(format!("stoker-mounts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let checkout = Checkout::open(&dir).unwrap();
        for (target, ours, state) in [
            ("/root/.npm", &carried, State::Ok),
            ("/root/.npm,uid=7", &carried, State::Warn),
            ("/cache", &carried, State::Warn),
            ("/cache", &project(""), State::Ok),
        ] {
            let file = format!("FROM a\nRUN --mount=type=cache,target={target} npm ci\n");
            std::fs::write(dir.join("Dockerfile"), file).unwrap();
            let found = check(ours, Some(&both), IMAGE, false, Some(&checkout));
            let reported = found.iter().find(|finding| finding.check == "cache mounts");
            assert_eq!(reported.map(|finding| finding.state), Some(state), "{target}: {found:?}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn each_mistake_is_reported() {
        let app = project("");
        let variables = |state| vec![("buildspec", state), ("builder", State::Ok)];
        let builder = |state| vec![("buildspec", State::Ok), ("builder", state)];
        assert_eq!(
            states(&app, &spec(&[CREATE, "docker buildx build -t x ."]), false),
            variables(State::Wrong)
        );
        assert_eq!(
            states(&app, &spec(&[CREATE, "# $STOKER_CACHE_FLAGS", "docker buildx build ."]), false),
            variables(State::Wrong)
        );
        assert_eq!(states(&app, &spec(&[CREATE, "./build.sh"]), false), variables(State::Unknown));
        assert_eq!(
            states(&app, &spec(&[CREATE, "docker buildx build $STOKER_CACHE_FLAGS_API ."]), false),
            variables(State::Wrong)
        );
        assert_eq!(states(&app, &spec(&[BUILD]), false), builder(State::Wrong));
        assert_eq!(
            states(&app, &spec(&["docker build $STOKER_CACHE_FLAGS ."]), false),
            builder(State::Wrong)
        );
        assert_eq!(states(&app, &spec(&[BUILD]), true), builder(State::Ok), "forks only read");
        let other = check(&app, Some(&spec(&[BUILD])), "registry.example/ci\u{1b}:1", false, None);
        assert_eq!(other[1].state, State::Unknown, "it may have the containerd image store");
        assert_eq!(
            states(&app, &spec(&["docker buildx create --use --driver=docker", BUILD]), false),
            builder(State::Wrong)
        );
        assert_eq!(
            states(&app, &spec(&["export BUILDX_BUILDER=ours", BUILD]), false),
            builder(State::Unknown)
        );
        for (image, state) in [
            ("moby/buildkit:v0.11.6", State::Wrong),
            ("mirror:5000/moby/buildkit:v0.9", State::Wrong),
            ("moby/buildkit:v0.12.0", State::Ok),
            ("moby/buildkit:v1.0.0-rc1", State::Ok),
            ("moby/buildkit:buildx-stable-1", State::Ok),
        ] {
            let create = format!("{CREATE} --driver-opt network=host,image={image}");
            assert_eq!(states(&app, &spec(&[&create, BUILD]), false), builder(state), "{image}");
        }
        let of_policy = project("    builder: { image: \"mirror.example/buildkit:v0.11.6\" }\n");
        assert_eq!(states(&of_policy, &spec(&[CREATE, BUILD]), false), builder(State::Wrong));
        let by_digest = project(&format!("    builder: {{ image: \"a.b/c@sha256:{}\" }}\n", "a".repeat(64)));
        assert_eq!(states(&by_digest, &spec(&[CREATE, BUILD]), false), ALL_OK);
        let newest = "docker buildx create --use --driver docker-container";
        assert_eq!(states(&app, &spec(&[newest, BUILD]), false), builder(State::Warn));
        let theirs = "docker buildx create --use --driver remote tcp://127.0.0.1:1234";
        assert_eq!(states(&app, &spec(&[theirs, BUILD]), false), builder(State::Ok));
        let by_hand = "docker buildx build $STOKER_CACHE_FLAGS --cache-to type=inline .";
        let reported = states(&app, &spec(&[CREATE, by_hand]), false);
        assert_eq!(reported.last(), Some(&("cache flags", State::Warn)));
        let ours = "docker buildx build --cache-from=$STOKER_CACHE_FROM --cache-to \"$STOKER_CACHE_TO\" .";
        assert_eq!(states(&app, &spec(&[CREATE, ours]), false), ALL_OK);
    }

    /// Checks that are not ok.
    fn reported(keys: &str, commands: &[&str]) -> Vec<(&'static str, State)> {
        let mut reported = states(&project(keys), &spec(commands), false);
        reported.retain(|(_, state)| *state != State::Ok);
        reported
    }

    #[test]
    fn what_a_word_does_counts_and_not_that_it_is_there() {
        use State::{Unknown, Wrong};
        let named = "docker buildx create --name b --driver docker-container --driver-opt image=moby/buildkit:v0.25.2";
        let chosen = [("chosen builder", Wrong)];
        assert_eq!(reported("", &[named, BUILD]), chosen);
        assert_eq!(reported("", &[CREATE, "docker buildx use default", BUILD]), chosen);
        assert_eq!(
            reported("", &[CREATE, "docker build $STOKER_CACHE_FLAGS ."]),
            chosen,
            "`docker build` goes past it"
        );
        assert_eq!(reported("", &[named, "docker buildx use b", BUILD]), []);
        assert_eq!(reported("", &[CREATE, "sh -c 'docker buildx build $STOKER_CACHE_FLAGS .'"]), []);
        for flags in
            ["\"$STOKER_CACHE_FLAGS\"", "\"${STOKER_CACHE_FLAGS:-}\"", "\"$STOKER_CACHE_FLAGS --pull\""]
        {
            let build = format!("docker buildx build {flags} .").replace('"', "\\\"");
            assert_eq!(reported("", &[CREATE, &format!("\"{build}\"")]), [("quotes", Wrong)], "{flags}");
        }
        let cold = [("buildspec", Wrong)];
        assert_eq!(reported("", &[CREATE, "echo $STOKER_CACHE_FLAGS", "docker buildx build ."]), cold);
        assert_eq!(reported("", &[CREATE, "|\n        docker buildx build . # $STOKER_CACHE_FLAGS"]), cold);
        assert_eq!(
            reported("", &[CREATE, "\"docker buildx build '$STOKER_CACHE_FLAGS' .\""]),
            cold,
            "no variable"
        );
        let passed = reported("", &[CREATE, "make image FLAGS=\"$STOKER_CACHE_FLAGS\""]);
        assert_eq!(passed, [("buildspec", Unknown)]);
        let several = "docker buildx build --platform=linux/amd64,linux/arm64 $STOKER_CACHE_FLAGS .";
        assert_eq!(reported("", &[CREATE, several]), [("platforms", State::Warn)]);
        let two = check(
            &project("    targets: [{ name: a }, { name: b }]\n"),
            Some(&spec(&[CREATE, BUILD])),
            IMAGE,
            false,
            None,
        );
        let repair = two[0].repair.as_deref().unwrap();
        assert!(
            repair.contains(
                "docker buildx build $STOKER_CACHE_FLAGS_A ...; docker buildx build $STOKER_CACHE_FLAGS_B"
            ),
            "{repair}"
        );
        let mapping = ["docker buildx create --use $STOKER_BUILDER_FLAGS", BUILD, "echo done: yes"];
        assert_eq!(reported("", &mapping), [("commands", Wrong)]);
        assert_eq!(reported("", &[CREATE, BUILD, "echo 'a"]), [("commands", Unknown)]);
        let compose = reported("", &[CREATE, "docker compose -f c.yaml build --push"]);
        assert_eq!(compose, cold);
    }

    #[test]
    fn bake_is_given_names_that_its_file_may_not_have() {
        let bake = "docker buildx bake -f docker-bake.hcl -f $STOKER_BAKE";
        let with_platforms =
            "    targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }, { name: worker }]\n";
        assert_eq!(reported(with_platforms, &[CREATE, bake]), [("bake targets", State::Unknown)]);
        assert_eq!(reported("    targets: [{ name: api }, { name: worker }]\n", &[CREATE, bake]), []);
        let by_hand = "docker buildx bake -f $STOKER_BAKE --set '*.cache-from=type=inline'";
        assert_eq!(reported("", &[CREATE, by_hand]), [("cache flags", State::Warn)]);
    }

    #[test]
    fn other_forms_of_a_buildspec_are_read() {
        let app = project("");
        let json = r#"{"version":"0.2","phases":{"build":{"commands":["set -eu\ndocker buildx create --use --driver docker-container --driver-opt image=moby/buildkit:v0.25.2","cd web\ndocker buildx build \\\n  $STOKER_CACHE_FLAGS \\\n  --push ."]}}}"#;
        assert_eq!(states(&app, json, false), ALL_OK);
        let cold = json.replace("$STOKER_CACHE_FLAGS", "");
        assert_eq!(states(&app, &cold, false), [("buildspec", State::Wrong), ("builder", State::Ok)]);
        let buildctl = "buildctl build --frontend dockerfile.v0 --output type=image,push=true";
        assert_eq!(states(&app, &spec(&[buildctl]), false), [("buildctl", State::Wrong)]);
        let of_docker = format!("{buildctl} $STOKER_CACHE_FLAGS");
        assert_eq!(states(&app, &spec(&[&of_docker]), false), [("buildctl", State::Wrong)]);
        let warm = format!("{buildctl} ${{STOKER_CACHE_FROM:+--import-cache $STOKER_CACHE_FROM}}");
        assert_eq!(states(&app, &spec(&[&warm]), false), [("buildctl", State::Ok)]);
    }

    #[test]
    fn files_of_the_source_are_not_known() {
        let app = project("");
        for place in ["", "ci/build.yml", "arn:aws:s3:::bucket/build.yml", "ci\u{1b}[31m.yml"] {
            let found = check(&app, Some(place), IMAGE, false, None);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].state, State::Unknown);
            assert!(!found[0].found.contains('\u{1b}'));
        }
        assert_eq!(check(&app, None, IMAGE, false, None)[0].state, State::Unknown);
    }

    #[test]
    fn hostile_text_is_only_text() {
        let app = project("");
        for text in [
            "{",
            "\n\\\n\\",
            "version: 0.2\n\u{1b}[31m--cache-to=\u{1b}[2J",
            "é: STOKER_BAKE\u{301}",
            "--driver=\n",
        ] {
            for finding in check(&app, Some(text), IMAGE, false, None) {
                assert!(!finding.found.contains('\u{1b}'), "{}", finding.found);
            }
        }
        let long = format!("version: 0.2\n{}", "a ".repeat(LONGEST));
        assert_eq!(check(&app, Some(&long), IMAGE, false, None)[0].state, State::Unknown);
    }
}
