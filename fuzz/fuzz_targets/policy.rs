//! Any text is a policy, or all that is wrong with it is told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker::policy::Policy;

fuzz_target!(|text: &str| match Policy::parse("p", text) {
    Ok(policy) => {
        for project in policy.named_projects() {
            assert_eq!(policy.project(&project.name).as_ref(), Some(&project));
            assert!(policy.projects_of(&project.repository).contains(&project));
            for scope in project.scopes() {
                assert_eq!(policy.project_of_export(project.exports(), scope).as_ref(), Some(&project));
            }
        }
    }
    Err(mistakes) => assert!(mistakes.iter().count() > 0 && !mistakes.to_string().is_empty()),
});
