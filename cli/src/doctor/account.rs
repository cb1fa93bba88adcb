//! Settings of the whole account.

use stoker_core::policy::Project;

use super::finding::{Fact, Finding};

/// A clock that is off by more than this dates a rollback wrongly.
const MOST_SKEW: i64 = 60;
/// AWS refuses requests that are dated so wrongly.
const REFUSED_SKEW: i64 = 300;

/// What the account's settings and AWS's clock say.
#[derive(Debug)]
pub(super) struct Settings {
    /// The value of `BLOB_MOUNTING`.
    pub(super) mounting: Fact<String>,
    /// By how many seconds this machine's clock is ahead of AWS's.
    pub(super) skew: Option<i64>,
}

pub(super) fn check(settings: &Settings, projects: &[Project]) -> Vec<Finding> {
    let mut findings = vec![clock(settings.skew)];
    let isolated = projects.iter().any(|project| project.builds_repository.is_some());
    if isolated {
        findings.insert(0, mounting(&settings.mounting));
    }
    findings
}

fn mounting(value: &Fact<String>) -> Finding {
    const CHECK: &str = "blob mounting";
    match value.as_deref() {
        Ok("ENABLED") => Finding::ok(CHECK, "ENABLED"),
        Ok(value) => Finding::wrong(
            CHECK,
            format!("{value}: nothing that builds write reaches a line, as `builds-repository` is set"),
            "aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED",
        ),
        Err(missing) => Finding::missing(CHECK, missing),
    }
}

fn clock(skew: Option<i64>) -> Finding {
    const CHECK: &str = "clock";
    const REPAIR: &str = "set this machine's clock: `stoker rollback` dates by it, and AWS refuses requests \
         that are five minutes off";
    let Some(skew) = skew else {
        return Finding::unknown(CHECK, "AWS's answer had no date", "compare `date -u` with any other clock");
    };
    let reported = if skew == 0 {
        "as AWS's".to_owned()
    } else {
        format!("{} s {} AWS's", skew.saturating_abs(), if skew > 0 { "ahead of" } else { "behind" })
    };
    match skew.saturating_abs() {
        REFUSED_SKEW.. => Finding::wrong(CHECK, reported, REPAIR),
        skew if skew > MOST_SKEW => Finding::warn(CHECK, reported, REPAIR),
        _ => Finding::ok(CHECK, reported),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::super::projects;
    use super::*;
    use crate::deployed::Missing;

    fn states(mounting: Fact<String>, skew: Option<i64>, keys: &str) -> Vec<(&'static str, State)> {
        check(&Settings { mounting, skew }, &projects(keys)).iter().map(|f| (f.check, f.state)).collect()
    }

    #[test]
    fn mounting_matters_where_builds_are_isolated() {
        const ISOLATED: &str = "    builds-repository: stoker-builds/app\n";
        let of = |value: &str| states(Ok(value.to_owned()), Some(0), ISOLATED)[0];
        assert_eq!(of("ENABLED"), ("blob mounting", State::Ok));
        assert_eq!(of("DISABLED"), ("blob mounting", State::Wrong));
        let denied = Missing { action: "ecr:GetAccountSetting", is_denied: true, why: String::new() };
        assert_eq!(states(Err(denied), Some(0), ISOLATED)[0], ("blob mounting", State::Unknown));
        assert_eq!(states(Ok("DISABLED".to_owned()), Some(0), ""), [("clock", State::Ok)]);
    }

    #[test]
    fn a_clock_that_is_off_is_reported() {
        for (skew, state) in [
            (Some(0), State::Ok),
            (Some(-60), State::Ok),
            (Some(61), State::Warn),
            (Some(-300), State::Wrong),
            (Some(i64::MAX), State::Wrong),
            (None, State::Unknown),
        ] {
            assert_eq!(clock(skew).state, state, "{skew:?}");
        }
    }
}
