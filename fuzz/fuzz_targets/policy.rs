//! Any text is a policy, or all that is wrong with it is told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker::names::Scope;
use stoker::policy::Policy;

fuzz_target!(|text: &str| match Policy::parse("p", text) {
    Ok(policy) => {
        for project in policy.named_projects() {
            assert_eq!(policy.project(&project.name).as_ref(), Some(&project));
            assert!(policy.projects_of(&project.repository).contains(&project));
            assert!(policy.project_of_scope(&Scope::of(&project.name)).is_some());
        }
    }
    Err(mistakes) => assert!(mistakes.iter().count() > 0 && !mistakes.to_string().is_empty()),
});
