//! What the commands of a buildspec do: which builders they make and choose, and what builds with which.

use std::collections::BTreeMap;

use stoker_core::build_inputs::variable;
use stoker_core::policy::Project;

use super::shell::{self, Command, Variable, base_name};
use super::spec::Spec;

/// Options of `docker buildx create` that have a value of their own word.
const CREATE_VALUES: [&str; 8] = [
    "--name",
    "--driver",
    "--driver-opt",
    "--node",
    "--platform",
    "--buildkitd-flags",
    "--buildkitd-config",
    "--config",
];

/// What builds images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `docker buildx build`.
    Buildx,
    /// `docker buildx bake`.
    Bake,
    /// `docker build` and the like, by which nobody knows the builder.
    Docker,
    /// `docker compose build`, which takes no flags of caches.
    Compose,
    /// BuildKit's own client.
    Buildctl,
}

/// The builder that a command builds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// Docker's own.
    Docker,
    /// The one that this command made.
    Made(usize),
    /// One that is made elsewhere.
    Elsewhere,
}

/// A builder that is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Builder {
    name: Option<String>,
    pub(crate) driver: Option<String>,
    /// The image that it is made of, where the command names one.
    pub(crate) image: Option<String>,
}

/// A command that builds.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) tool: Tool,
    pub(crate) command: Command,
    /// The variables that its words need, those included that other variables were set to.
    pub(crate) variables: Vec<Variable>,
    pub(crate) builder: Chosen,
}

/// What all commands do.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) builders: Vec<Builder>,
    pub(crate) builds: Vec<Build>,
    /// Names of the variables that other commands are given, but for those that only print.
    pub(crate) passed_on: Vec<String>,
    /// Names of all variables that any command needs.
    mentioned: Vec<String>,
    pub(crate) substitutes_processes: bool,
    /// The start of a command that cannot be read.
    pub(crate) unread: Option<String>,
    current: Chosen,
    /// The builder that `BUILDX_BUILDER` chooses over the current one.
    by_variable: Option<Chosen>,
    /// Whether `docker buildx install` has made `docker build` the same as `docker buildx build`.
    is_installed: bool,
    /// What variables were set to.
    set: BTreeMap<String, Vec<Variable>>,
}

impl Done {
    pub(crate) fn read(project: &Project, spec: &Spec) -> Self {
        let mut done = Self {
            builders: Vec::new(),
            builds: Vec::new(),
            passed_on: Vec::new(),
            mentioned: Vec::new(),
            substitutes_processes: false,
            unread: None,
            current: Chosen::Docker,
            by_variable: None,
            is_installed: false,
            set: BTreeMap::new(),
        };
        for (name, value) in &spec.variables {
            done.learn_builder(name, value);
        }
        for script in &spec.commands {
            match shell::commands(script) {
                Some(commands) => commands.into_iter().for_each(|command| done.run(project, command)),
                None if done.unread.is_none() => done.unread = script.lines().next().map(str::to_owned),
                None => {}
            }
        }
        done
    }

    /// Whether any command needs a variable of this name, or another variable is set to it.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.mentioned.iter().any(|mentioned| mentioned == name)
    }

    /// Whether a variable of exactly this name is needed by one of these builds.
    pub(crate) fn uses(&self, name: &str, is_of: impl Fn(&Build) -> bool) -> bool {
        let mut builds = self.builds.iter().filter(|build| is_of(build));
        builds.any(|build| build.variables.iter().any(|variable| variable.name == name))
    }

    fn run(&mut self, project: &Project, command: Command) {
        self.substitutes_processes |= command.substitutes_processes;
        let set = command.sets.iter().flat_map(|(_, value)| &value.variables);
        self.mentioned.extend(command.variables().chain(set).map(|variable| variable.name.clone()));
        for (name, value) in &command.sets {
            let variables = self.resolved(&value.variables);
            self.set.insert(name.clone(), variables);
        }
        let texts = command.texts();
        let only_sets = texts.is_empty() || texts.first() == Some(&"export");
        if only_sets {
            for (name, value) in &command.sets {
                self.learn_builder(name, &value.text);
            }
        }
        let Some((name, arguments)) = texts.split_first() else { return };
        match (base_name(name), arguments) {
            ("docker" | "podman", ["buildx", rest @ ..]) | ("docker-buildx" | "buildx", rest) => {
                let rest: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
                self.buildx(project, command, &rest);
            }
            ("docker", ["build", ..] | ["image" | "builder", "build", ..]) => {
                self.builds(Tool::Docker, command);
            }
            ("docker", ["compose", rest @ ..]) | ("docker-compose", rest)
                if rest.iter().any(|word| ["build", "--build"].contains(word)) =>
            {
                self.builds(Tool::Compose, command);
            }
            ("buildctl" | "buildctl-daemonless.sh", arguments) if arguments.contains(&"build") => {
                self.builds(Tool::Buildctl, command);
            }
            ("set", _) => {
                let variables = self.resolved(&command.variables().cloned().collect::<Vec<_>>());
                self.set.insert("@".to_owned(), variables);
            }
            ("echo" | "printf" | "[" | "test" | ":" | "export" | "true", _) => {}
            _ => self.passed_on.extend(command.variables().map(|variable| variable.name.clone())),
        }
    }

    fn buildx(&mut self, project: &Project, command: Command, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["create", options @ ..] => self.create(project, &command, options),
            ["use", options @ ..] => {
                if let Some(name) = options.iter().find(|option| !option.starts_with('-')) {
                    self.current = self.named(name);
                }
            }
            ["rm", names @ ..] => {
                if let Chosen::Made(made) = self.current
                    && self
                        .builders
                        .get(made)
                        .is_some_and(|of| names.iter().any(|name| of.name.as_deref() == Some(*name)))
                {
                    self.current = Chosen::Docker;
                }
            }
            ["install", ..] => self.is_installed = true,
            ["build" | "b", ..] => self.builds(Tool::Buildx, command),
            // It carries cache mounts, and builds no target of the project's (docs/mounts.md).
            ["bake", "--file", "-"] => {}
            ["bake" | "f", ..] => self.builds(Tool::Bake, command),
            // Options of `docker buildx` itself, such as `--builder b build`.
            [option, ..] if option.starts_with("--") && words.contains(&"bake") => {
                self.builds(Tool::Bake, command);
            }
            [option, ..] if option.starts_with("--") && words.contains(&"build") => {
                self.builds(Tool::Buildx, command);
            }
            _ => {}
        }
    }

    fn create(&mut self, project: &Project, command: &Command, options: &[&str]) {
        let mut builder = Builder::default();
        let flags = command
            .variables()
            .any(|of| of.name == variable::BUILDER || self.stands_for(&of.name, variable::BUILDER));
        if flags {
            builder.driver = Some("docker-container".to_owned());
            builder.image = Some(project.builder_image.clone());
        }
        let is_used = options.iter().any(|option| matches!(*option, "--use" | "--use=true"));
        for (option, value) in values(options) {
            match option {
                "--name" => builder.name = Some(value.to_owned()),
                "--driver" => builder.driver = Some(value.to_owned()),
                "--driver-opt" => {
                    let unquoted = value.trim_matches('"');
                    let image = unquoted.split(',').find_map(|option| option.strip_prefix("image="));
                    builder.image = image.map(str::to_owned).or(builder.image);
                }
                _ => {}
            }
        }
        self.builders.push(builder);
        if is_used {
            self.current = Chosen::Made(self.builders.len() - 1);
        }
    }

    fn builds(&mut self, tool: Tool, command: Command) {
        let texts = command.texts();
        let named =
            values(&texts).into_iter().find(|(option, _)| *option == "--builder").map(|(_, name)| name);
        let by_prefix =
            command.sets.iter().find(|(name, _)| name == "BUILDX_BUILDER").map(|(_, value)| &value.text);
        let builder = named.map(|name| self.named(name)).or_else(|| by_prefix.map(|name| self.named(name)));
        let variables = self.resolved(&command.variables().cloned().collect::<Vec<_>>());
        // `docker build` is by Docker's own builder, whichever buildx has chosen, unless a variable says otherwise.
        let is_own = tool == Tool::Docker && !self.is_installed;
        let current = if is_own { Chosen::Docker } else { self.current };
        let builder = builder.or(self.by_variable).unwrap_or(current);
        self.builds.push(Build { tool, command, variables, builder });
    }

    fn named(&self, name: &str) -> Chosen {
        let made = self.builders.iter().rposition(|builder| builder.name.as_deref() == Some(name));
        match made {
            Some(made) => Chosen::Made(made),
            None if name == "default" => Chosen::Docker,
            None => Chosen::Elsewhere,
        }
    }

    /// `BUILDX_BUILDER` and `BUILDKIT_HOST` choose what builds.
    fn learn_builder(&mut self, name: &str, value: &str) {
        match name {
            "BUILDX_BUILDER" => self.by_variable = Some(self.named(value)),
            "BUILDKIT_HOST" => self.by_variable = Some(Chosen::Elsewhere),
            _ => {}
        }
    }

    fn stands_for(&self, name: &str, wanted: &str) -> bool {
        self.set.get(name).is_some_and(|variables| variables.iter().any(|variable| variable.name == wanted))
    }

    /// These variables, and those that they were set to.
    fn resolved(&self, variables: &[Variable]) -> Vec<Variable> {
        let mut all = variables.to_vec();
        for variable in variables {
            for inner in self.set.get(&variable.name).into_iter().flatten() {
                let is_quoted = variable.is_quoted || inner.is_quoted;
                all.push(Variable { name: inner.name.clone(), is_quoted });
            }
        }
        all.truncate(1000);
        all
    }
}

/// The options that have values, as `--option value` or `--option=value`.
pub(crate) fn values<'w>(words: &[&'w str]) -> Vec<(&'w str, &'w str)> {
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if let Some((option, value)) = word.split_once('=').filter(|(option, _)| option.starts_with("--")) {
            found.push((option, value));
        } else if word.starts_with("--")
            && (CREATE_VALUES.contains(word)
                || ["--builder", "--cache-from", "--cache-to", "--set", "--import-cache", "--export-cache"]
                    .contains(word))
        {
            found.push((*word, words.get(at + 1).copied().unwrap_or_default()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::projects;
    use super::*;

    fn done(commands: &[&str]) -> Done {
        let commands = commands.iter().map(|command| (*command).to_owned()).collect();
        Done::read(&projects("").remove(0), &Spec { commands, ..Spec::default() })
    }

    #[test]
    fn a_build_is_by_the_builder_that_was_chosen_before_it() {
        let made = Chosen::Made(0);
        let build = "docker buildx build .";
        for (before, chosen) in [
            ("", Chosen::Docker),
            ("docker buildx create", Chosen::Docker),
            ("docker buildx create --use", made),
            ("docker buildx create --use=true --name b", made),
            ("docker buildx create --name b && docker buildx use b", made),
            ("docker buildx create --name \"$B\"; docker buildx use \"$B\"", made),
            ("docker buildx create --use --name b || docker buildx use b", made),
            ("docker buildx create --use; docker buildx use default", Chosen::Docker),
            ("docker buildx use default; docker buildx create --use", made),
            ("docker buildx create --use --name b; docker buildx rm b", Chosen::Docker),
            ("docker buildx use theirs", Chosen::Elsewhere),
            ("docker buildx create --name=b; export BUILDX_BUILDER=b", made),
            ("export BUILDX_BUILDER=theirs", Chosen::Elsewhere),
            ("docker buildx create --use; docker buildx create --use --driver remote", Chosen::Made(1)),
            ("sh -c 'docker buildx create --use'", made),
            ("if ! docker buildx inspect b; then docker buildx create --name b --use; fi", made),
            ("# docker buildx create --use", Chosen::Docker),
            ("echo docker buildx create --use", Chosen::Docker),
            ("NAME=\"docker buildx create --use\"", Chosen::Docker),
        ] {
            let found = done(&[before, build]);
            assert_eq!(found.builds[0].builder, chosen, "{before}");
        }
        let create = "docker buildx create --name b";
        for build in [
            "docker buildx build --builder b .",
            "docker buildx --builder=b build .",
            "BUILDX_BUILDER=b docker buildx bake",
        ] {
            assert_eq!(done(&[create, build]).builds[0].builder, made, "{build}");
        }
        assert_eq!(
            done(&[build, "docker buildx create --use"]).builds[0].builder,
            Chosen::Docker,
            "too late"
        );
        let of_docker = |before: &str| {
            done(&["docker buildx create --use --name b", before, "docker build ."]).builds[0].builder
        };
        assert_eq!(of_docker(""), Chosen::Docker);
        assert_eq!(of_docker("docker buildx install"), made);
        assert_eq!(of_docker("export BUILDX_BUILDER=b"), made);
    }

    #[test]
    fn a_builder_is_made_of_what_its_options_say() {
        let of = |command: &str| done(&[command]).builders.remove(0);
        let plain = of("docker buildx create --use");
        assert_eq!((plain.driver, plain.image), (None, None));
        let ours = of("docker buildx create --use $STOKER_BUILDER_FLAGS");
        assert_eq!(ours.image.as_deref(), Some(stoker_core::policy::DEFAULT_BUILDER_IMAGE));
        let own = of(
            "docker buildx create --driver=remote --driver-opt network=host,image=a/b:1 --driver-opt 'env.X=\"y\"'",
        );
        assert_eq!((own.driver.as_deref(), own.image.as_deref()), (Some("remote"), Some("a/b:1")));
    }

    #[test]
    fn variables_are_followed_from_where_they_are_set() {
        for build in [
            "docker buildx build $STOKER_CACHE_FLAGS .",
            "FLAGS=\"$STOKER_CACHE_FLAGS\"; docker buildx build $FLAGS .",
            "set -- $STOKER_CACHE_FLAGS -t x; docker buildx build \"$@\" .",
            "args=($STOKER_CACHE_FLAGS); docker build \"${args[@]}\" .",
            "export A=$STOKER_CACHE_FLAGS\ndocker image build $A .",
        ] {
            let found = done(&[build]);
            let flags = found.builds[0].variables.iter().find(|of| of.name == "STOKER_CACHE_FLAGS");
            assert!(flags.is_some_and(|of| !of.is_quoted), "{build}: {found:?}");
        }
        for build in [
            "docker buildx build \"$STOKER_CACHE_FLAGS\" .",
            "F=$STOKER_CACHE_FLAGS; docker buildx build \"$F\" .",
            "a=(\"$STOKER_CACHE_FLAGS\"); docker buildx build \"${a[@]}\" .",
        ] {
            let found = done(&[build]);
            assert!(
                found.builds[0].variables.iter().any(|of| of.name == "STOKER_CACHE_FLAGS" && of.is_quoted),
                "{build}"
            );
        }
        assert_eq!(
            done(&["./build.sh $STOKER_CACHE_FLAGS", "echo $STOKER_BAKE"]).passed_on,
            ["STOKER_CACHE_FLAGS"]
        );
    }
}
