//! Any text is a policy, or all that is wrong with it is told.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use stoker_core::policy::{
    ForkBuilds, MAXIMUM_PROBATION, MINIMUM_PROBATION, MINIMUM_REFRESH, Policy, Project, Target,
};

fuzz_target!(|text: &str| match Policy::parse("p", text) {
    Ok(policy) => {
        for project in policy.named_projects() {
            assert_eq!(policy.project(&project.name).as_ref(), Some(&project));
            assert!(policy.projects_of(&project.repository).contains(&project));
            for scope in project.scopes() {
                assert_eq!(policy.project_of_export(project.exports(), scope).as_ref(), Some(&project));
            }
            check_targets(&project);
            check_forks(&policy, &project);
            check_values(&project);
        }
    }
    Err(mistakes) => assert!(mistakes.iter().count() > 0 && !mistakes.to_string().is_empty()),
});

fn check_targets(project: &Project) {
    assert!((1..=100).contains(&project.targets.len()));
    let count = |what: fn(&Target) -> String| project.targets.iter().map(what).collect::<HashSet<_>>().len();
    assert_eq!(count(Target::suffix), project.targets.len());
    assert_eq!(count(Target::bake_name), project.targets.len());
    assert_eq!(project.scopes().collect::<HashSet<_>>().len(), project.targets.len());
}

fn check_forks(policy: &Policy, project: &Project) {
    let forks = &project.builds.forks;
    assert!(forks.build == ForkBuilds::None || forks.project.is_some());
    assert!(forks.build != ForkBuilds::AfterApproval || !forks.approvers.is_empty());
    assert!(policy.named_projects().iter().all(|named| forks.project.as_ref() != Some(&named.name)));
}

fn check_values(project: &Project) {
    let builds = &project.builds;
    assert!(builds.on_push || builds.on_tag || !builds.on_pull_request.is_empty());
    assert!(project.warm.refresh.is_none_or(|every| every >= MINIMUM_REFRESH));
    assert!((MINIMUM_PROBATION..=MAXIMUM_PROBATION).contains(&project.probation));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._:/@=,+-".contains(c);
    assert!(project.builder_image.chars().all(is_plain));
    assert!(project.more_sources.len() <= 4);
    assert!(project.more_sources.iter().all(|source| source.chars().all(is_plain)));
    let branch = project.default_branch();
    assert!(!builds.branches.match_all() || builds.branches.matches(branch.as_str()));
}
