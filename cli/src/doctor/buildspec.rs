//! What a buildspec does, as far as it can be told from its text: it is shell in YAML, and hostile.

use stoker::handout::variable;
use stoker::policy::Project;

use super::{Finding, commands};
use crate::text::plain;

/// What the documents show: a builder that exports registry caches, of the BuildKit that the policy names.
const CREATE: &str = "docker buildx create --use $STOKER_BUILDER_FLAGS";
/// CodeBuild takes shorter ones only.
const LONGEST: usize = 256 * 1024;
/// BuildKit writes a cache as an image manifest, which is all that ECR takes, from this version on.
const FIRST_VERSION: (u32, u32) = (0, 12);

/// What was found in a buildspec's text.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command that is in it or not")]
struct Seen {
    /// `docker buildx build` or `docker buildx bake`.
    builds: bool,
    /// `docker build` and the like, by which nobody knows the builder.
    plain_build: bool,
    makes_builder: bool,
    /// BuildKit's own client builds.
    buildctl: bool,
    driver: Option<String>,
    /// The version of BuildKit that the builder is made of.
    version: Option<String>,
    /// A `--cache-from` or `--cache-to` that is not Stoker's.
    by_hand: Vec<String>,
    text: String,
}

/// Whether CodeBuild reads this as a buildspec itself, and not as the place of one.
pub(super) fn is_inline(buildspec: &str) -> bool {
    buildspec.contains('\n') || buildspec.trim_start().starts_with('{') || buildspec.contains(": ")
}

/// Whether an inline buildspec says how a batch is built: by a key of YAML's top level, or of JSON.
pub(super) fn has_batch(buildspec: &str) -> bool {
    let is_key = |rest: &str| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':');
    let of_yaml = |line: &str| line.trim_start_matches(['"', '\'']).strip_prefix("batch").is_some_and(is_key);
    let json = buildspec.trim_start().starts_with('{');
    let of_json =
        || buildspec.match_indices("\"batch\"").any(|(at, key)| is_key(&buildspec[at + key.len()..]));
    if json { of_json() } else { buildspec.lines().any(of_yaml) }
}

/// What is to be said of a project's buildspec. `None` is the file `buildspec.yml` of the source.
///
/// Of CodeBuild's own images it is known that their Docker exports no registry cache; `image` may be another.
pub(super) fn check(project: &Project, buildspec: Option<&str>, image: &str, is_forks: bool) -> Vec<Finding> {
    let buildspec = buildspec.filter(|text| !text.trim().is_empty());
    let inline = buildspec.filter(|text| is_inline(text));
    let Some(inline) = inline else {
        let place = plain(buildspec.unwrap_or("buildspec.yml"));
        return vec![Finding::unknown(
            "buildspec",
            format!("it is the file {place} of the source, which is not read here"),
            format!(
                "see that it makes a builder (`{CREATE}`), and that `docker buildx build` is given $STOKER_CACHE_FLAGS"
            ),
        )];
    };
    if inline.len() > LONGEST {
        return vec![Finding::unknown("buildspec", "it is too long to be read", "look at it yourself")];
    }
    let seen = Seen::read(&commands::text(inline), &project.builder_image);
    if let Some(finding) = buildctl(&seen) {
        return vec![finding];
    }
    let mut findings = vec![variables(project, &seen), builder(&seen, image, is_forks)];
    findings.extend(commands::check(project, &seen.text, is_forks));
    findings.extend(shell(&seen));
    findings.extend(by_hand(&seen));
    findings.extend(exported(project, &seen, is_forks));
    findings
}

/// BuildKit's own client has flags of its own, and asks a daemon that is started elsewhere.
fn buildctl(seen: &Seen) -> Option<Finding> {
    const CHECK: &str = "buildctl";
    if !seen.buildctl || seen.makes_builder {
        return None;
    }
    let uses = seen.text.contains("STOKER_CACHE_FROM") || seen.text.contains("STOKER_CACHE_TO");
    Some(if uses {
        Finding::ok(CHECK, "inline: `buildctl build` is given Stoker's caches")
    } else {
        Finding::wrong(
            CHECK,
            "inline, and `buildctl build` is given none of Stoker's caches: every build is cold",
            "its flags are ${STOKER_CACHE_FROM:+--import-cache $STOKER_CACHE_FROM} and ${STOKER_CACHE_TO:+--export-cache \
             $STOKER_CACHE_TO}; the daemon that it asks has to be of BuildKit 0.12 or newer",
        )
    })
}

fn variables(project: &Project, seen: &Seen) -> Finding {
    const CHECK: &str = "buildspec";
    let has = |word: &str| seen.names(word);
    if has("STOKER_BAKE") {
        return Finding::ok(CHECK, "inline: `docker buildx bake` is given $STOKER_BAKE");
    }
    let names = ["STOKER_CACHE_FLAGS", "STOKER_CACHE_FROM", "STOKER_CACHE_REFS"];
    let suffixes: Vec<String> = project.targets.iter().map(stoker::policy::Target::suffix).collect();
    let missing: Vec<String> = suffixes
        .iter()
        .filter(|suffix| !names.iter().any(|name| has(&format!("{name}{suffix}"))))
        .map(|suffix| format!("$STOKER_CACHE_FLAGS{suffix}"))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, "inline: it uses the variables of every target");
    }
    // A script of the source, or a variable put together at run time, cannot be seen.
    let uses_some = names.iter().any(|name| seen.text.contains(name));
    if !uses_some && !seen.builds && !seen.plain_build {
        return Finding::unknown(
            CHECK,
            "inline, and no `docker buildx build` is in it: a script may do it",
            format!("see that the script uses {}", missing.join(" ")),
        );
    }
    let mend =
        format!("give `docker buildx build` the variables: docker buildx build {} ...", missing.join(" "));
    let found = if uses_some {
        format!("inline, and {} is not used: that target is built cold", missing.join(" and "))
    } else {
        "inline, and Stoker's variables are not used: every build is cold".to_owned()
    };
    Finding::wrong(CHECK, found, mend)
}

fn builder(seen: &Seen, image: &str, is_forks: bool) -> Finding {
    const CHECK: &str = "builder";
    let make = || format!("make one before building: {CREATE}");
    if let Some(version) = &seen.version
        && is_too_old(version)
    {
        let (major, minor) = FIRST_VERSION;
        return Finding::wrong(
            CHECK,
            format!("BuildKit is pinned to {}, which writes caches that ECR does not take", plain(version)),
            format!("pin v{major}.{minor}.0 or newer: {CREATE}"),
        );
    }
    let made = |driver: &str| match seen.version.as_deref() {
        Some(version) => Finding::ok(CHECK, format!("driver {}, BuildKit {}", plain(driver), plain(version))),
        None => Finding::warn(
            CHECK,
            format!(
                "driver {}, and its BuildKit is whichever is the newest when a build runs",
                plain(driver)
            ),
            format!("pin one that is known to read caches whole: {CREATE} (docs/ci.md, \"The builder\")"),
        ),
    };
    match (seen.makes_builder, seen.driver.as_deref()) {
        (true, Some("docker-container") | None) => made("docker-container"),
        (true, Some("kubernetes")) => made("kubernetes"),
        (true, Some("remote")) => {
            Finding::ok(CHECK, "driver remote: whoever runs that builder chooses its BuildKit")
        }
        (true, Some(driver)) => Finding::wrong(
            CHECK,
            format!("the driver `{}` cannot be made a builder that exports a registry cache", plain(driver)),
            make(),
        ),
        (false, _)
            if seen.names("BUILDX_BUILDER")
                || seen.text.contains("--builder")
                || seen.names("BUILDKIT_HOST") =>
        {
            Finding::unknown(
                CHECK,
                "a builder is chosen that is made elsewhere",
                "see that its driver is docker-container",
            )
        }
        (false, _) if seen.text.contains("containerd-snapshotter") => {
            Finding::ok(CHECK, "Docker's own, with the containerd image store")
        }
        (false, _) if is_forks => Finding::ok(CHECK, "Docker's own, which is enough to read caches"),
        (false, _) if !seen.builds && !seen.plain_build => {
            Finding::unknown(CHECK, "no builder is made in the buildspec: a script may do it", make())
        }
        (false, _) if !image.starts_with("aws/codebuild/") => Finding::unknown(
            CHECK,
            format!(
                "Docker's own, of {}: it exports caches only with the containerd image store",
                plain(image)
            ),
            make(),
        ),
        (false, _) => {
            let what = if seen.builds { "`docker buildx build`" } else { "`docker build`" };
            Finding::wrong(
                CHECK,
                format!(
                    "{what} by Docker's own builder, which fails when it is asked to export a registry cache"
                ),
                make(),
            )
        }
    }
}

/// CodeBuild runs commands with `sh` unless the buildspec names another shell.
fn shell(seen: &Seen) -> Option<Finding> {
    let names_bash = |(at, key): (usize, &str)| {
        let value = seen.text[at + key.len()..].trim_start_matches(|c: char| "\"': ".contains(c));
        value.starts_with("bash")
    };
    let is_bash = seen.text.match_indices("shell").any(names_bash);
    (seen.text.contains("<(") && !is_bash).then(|| {
        Finding::wrong(
            "shell",
            "`<( )` is bash's, and CodeBuild runs commands with `sh`: the command is a syntax error",
            "write the file first: printf %s \"${STOKER_BAKE:-{\\}}\" >/tmp/stoker-bake.json, then -f /tmp/stoker-bake.json \
             (docs/ci.md); or say `shell: bash` under `env`",
        )
    })
}

fn by_hand(seen: &Seen) -> Option<Finding> {
    let first = seen.by_hand.first()?;
    Some(Finding::warn(
        "cache flags",
        format!(
            "`{}` is written by hand: Stoker neither checks nor promotes nor deletes that cache",
            plain(first)
        ),
        "leave it out: $STOKER_CACHE_FLAGS has both flags; a cache of others is `more-sources` in the policy",
    ))
}

/// Where others start the builds, promotion learns of their exports from the variables that they export.
fn exported(project: &Project, seen: &Seen, is_forks: bool) -> Option<Finding> {
    const NAMES: [&str; 3] = ["STOKER_LINE", "STOKER_COMMIT", "STOKER_EXPORT"];
    if project.builds.start || is_forks {
        return None;
    }
    let tells = seen.text.contains("exported-variables") && NAMES.iter().all(|name| seen.names(name));
    Some(if tells {
        Finding::ok("exported variables", NAMES.join(" "))
    } else {
        Finding::warn(
            "exported variables",
            "the buildspec does not export STOKER_LINE, STOKER_COMMIT and STOKER_EXPORT: branches get no cache of their own",
            "under `env`: exported-variables: [STOKER_LINE, STOKER_COMMIT, STOKER_EXPORT, STOKER_CACHE_FROM] (docs/ci.md)",
        )
    })
}

impl Seen {
    /// `image` is what `$STOKER_BUILDER_FLAGS` has builders made of.
    fn read(text: &str, image: &str) -> Self {
        let lines = text.lines().map(str::trim_end).filter(|line| {
            let line = line.trim_start().trim_start_matches("- ").trim_start();
            !line.starts_with('#')
        });
        // Commands go on after a backslash.
        let text: String = lines
            .map(|line| line.strip_suffix('\\').map_or(format!("{line}\n"), |l| format!("{l} ")))
            .collect();
        let mut seen = Self::default();
        for line in text.lines() {
            let words: Vec<&str> =
                line.split(|c: char| c.is_whitespace() || "\"';|&(){}`".contains(c)).collect();
            seen.learn(&words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>());
        }
        seen.text = text;
        if seen.makes_builder && seen.version.is_none() && seen.names(variable::BUILDER) {
            seen.version = tag_of(image);
        }
        seen
    }

    fn learn(&mut self, words: &[&str]) {
        let at = |n: usize| words.get(n).copied().unwrap_or_default();
        for (n, word) in words.iter().enumerate() {
            match (*word, at(n + 1), at(n + 2)) {
                ("docker", "buildx", "build" | "bake" | "b") => self.builds = true,
                ("buildctl", "build", _) => self.buildctl = true,
                ("docker", "build", _) | ("docker", "image" | "compose", "build") => {
                    self.plain_build = true;
                }
                ("buildx", "create", _) => self.makes_builder = true,
                _ => {}
            }
            let value = word.split_once('=').map_or(at(n + 1), |(_, value)| value);
            match word.split('=').next().unwrap_or_default() {
                "--driver" if self.makes_builder => self.driver = Some(value.to_owned()),
                "--driver-opt" if self.makes_builder => {
                    let image = value.split(',').find_map(|option| option.strip_prefix("image="));
                    self.version = image.and_then(tag_of).or(self.version.take());
                }
                "--cache-from" | "--cache-to" if !value.contains("STOKER_") => {
                    self.by_hand.push((*word).to_owned());
                }
                _ => {}
            }
        }
    }

    /// Whether a variable of exactly this name is in it.
    fn names(&self, name: &str) -> bool {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        self.text.match_indices(name).any(|(at, _)| {
            let before = self.text[..at].chars().next_back().is_some_and(is_part);
            let after = self.text[at + name.len()..].chars().next().is_some_and(is_part);
            !before && !after
        })
    }
}

/// The tag of an image, or the digest that pins it.
fn tag_of(image: &str) -> Option<String> {
    image.rsplit_once(':').map(|(_, tag)| tag.to_owned())
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
    use super::super::{State, projects};
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
        check(project, Some(spec), IMAGE, is_forks)
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
        let told = states(&plain, &spec(&[CREATE, in_bash]), false);
        assert_eq!(told.last(), Some(&("shell", State::Wrong)));
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
        // docs/ci.md itself.
        let pages = include_str!("../../../docs/ci.md");
        let specs: Vec<&str> = pages
            .split("```yaml\n")
            .filter_map(|part| part.split("```").next())
            .filter(|part| part.starts_with("version: 0.2"))
            .collect();
        assert!(specs.len() >= 2);
        for spec in specs {
            assert_eq!(states(&app, spec, false), ALL_OK, "{spec}");
        }
        let others = project("    builds: { start: false }\n");
        let told =
            states(&others, pages.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap(), false);
        assert!(told.contains(&("exported variables", State::Ok)), "{told:?}");
        assert!(
            states(&others, &spec(&[CREATE, BUILD]), false).contains(&("exported variables", State::Warn))
        );
    }

    #[test]
    fn each_mistake_is_told() {
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
        let other = check(&app, Some(&spec(&[BUILD])), "registry.example/ci\u{1b}:1", false);
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
        let told = states(&app, &spec(&[CREATE, by_hand]), false);
        assert_eq!(told.last(), Some(&("cache flags", State::Warn)));
        let ours = "docker buildx build --cache-from=$STOKER_CACHE_FROM --cache-to \"$STOKER_CACHE_TO\" .";
        assert_eq!(states(&app, &spec(&[CREATE, ours]), false), ALL_OK);
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
        let warm = format!("{buildctl} ${{STOKER_CACHE_FROM:+--import-cache $STOKER_CACHE_FROM}}");
        assert_eq!(states(&app, &spec(&[&warm]), false), [("buildctl", State::Ok)]);
    }

    #[test]
    fn files_of_the_source_are_not_known() {
        let app = project("");
        for place in ["", "ci/build.yml", "arn:aws:s3:::bucket/build.yml", "ci\u{1b}[31m.yml"] {
            let found = check(&app, Some(place), IMAGE, false);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].state, State::Unknown);
            assert!(!found[0].found.contains('\u{1b}'));
        }
        assert_eq!(check(&app, None, IMAGE, false)[0].state, State::Unknown);
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
            for finding in check(&app, Some(text), IMAGE, false) {
                assert!(!finding.found.contains('\u{1b}'), "{}", finding.found);
            }
        }
        let long = format!("version: 0.2\n{}", "a ".repeat(LONGEST));
        assert_eq!(check(&app, Some(&long), IMAGE, false)[0].state, State::Unknown);
    }
}
