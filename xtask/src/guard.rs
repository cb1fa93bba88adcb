//! The rules in `guard/`, asked of `template.yaml`, and of copies of it that break them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{process, tools};

/// A change of the template that breaks a rule.
#[derive(Debug, Clone, Deserialize)]
struct Breach {
    rule: String,
    /// A JSON pointer; `-` appends to a list.
    at: String,
    /// The new value; null takes away what is there.
    to: Value,
}

/// What cfn-guard says of a file.
#[derive(Debug, Deserialize)]
struct Report {
    name: String,
    not_compliant: Vec<NotCompliant>,
    not_applicable: BTreeSet<String>,
    compliant: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NotCompliant {
    rule: Named,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// The template keeps every rule, and every rule can be broken.
pub(crate) fn check() -> anyhow::Result<()> {
    let cfn_guard = tools::cfn_guard()?;
    let rules = crate::paths::root().join("guard/stoker.guard");
    let dir = crate::paths::home().join("guard");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    let output = tools::sam_python()?
        .arg(crate::paths::root().join("guard/template.py"))
        .arg(crate::paths::root().join("template.yaml"))
        .output()?;
    ensure!(
        output.status.success(),
        "guard/template.py failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let template: Value = serde_json::from_slice(&output.stdout)?;
    let file = dir.join("template.json");
    fs::write(&file, serde_json::to_vec_pretty(&template)?)?;
    let validate = |data: &Path| {
        let mut command = std::process::Command::new(&cfn_guard);
        command.arg("validate").arg("--data").arg(data).arg("--rules").arg(&rules);
        command
    };
    let log = crate::paths::home().join("logs/check-guard.log");
    process::run(&mut validate(&file), "checking (guard)", &log, |_| None)?;

    let breaches: Vec<Breach> =
        serde_json::from_slice(&fs::read(crate::paths::root().join("guard/breaches.json"))?)?;
    let documents = documents(&breaches);
    for (i, breaches) in documents.iter().enumerate() {
        let mut broken = template.clone();
        for breach in breaches {
            apply(&mut broken, breach)
                .with_context(|| format!("guard/breaches.json: there is no {}", breach.at))?;
        }
        fs::write(dir.join(format!("breaches-{i}.json")), serde_json::to_vec_pretty(&broken)?)?;
    }
    // It ends with an error, as rules are broken.
    let output = validate(&dir)
        .args(["--structured", "--output-format", "json", "--show-summary", "none"])
        .output()?;
    let reports: Vec<Report> =
        serde_json::from_slice(&output.stdout).context("cfn-guard gives no reports")?;
    ensure!(reports.len() == documents.len() + 1, "cfn-guard gives {} reports", reports.len());
    for report in reports {
        let name = Path::new(&report.name).file_stem().unwrap_or_default().to_string_lossy();
        let broken: BTreeSet<String> = report.not_compliant.into_iter().map(|said| said.rule.name).collect();
        let Some(i) = name.strip_prefix("breaches-") else {
            // A rule whose question finds nothing to ask is skipped: it would hold of anything.
            ensure!(broken.is_empty(), "not kept: {broken:?}");
            ensure!(report.not_applicable.is_empty(), "nothing was asked: {:?}", report.not_applicable);
            let untested: Vec<_> =
                report.compliant.iter().filter(|rule| !breaches.iter().any(|b| b.rule == **rule)).collect();
            ensure!(untested.is_empty(), "guard/breaches.json does not break {untested:?}");
            continue;
        };
        for breach in &documents[i.parse::<usize>()?] {
            ensure!(broken.contains(&breach.rule), "{} lets {} be {}", breach.rule, breach.at, breach.to);
        }
    }
    Ok(())
}

/// As few documents as break each rule at most once: two breaches of one rule could not be told apart.
fn documents(breaches: &[Breach]) -> Vec<Vec<Breach>> {
    let mut documents: Vec<Vec<Breach>> = Vec::new();
    for breach in breaches {
        match documents.iter_mut().find(|others| others.iter().all(|other| other.rule != breach.rule)) {
            Some(document) => document.push(breach.clone()),
            None => documents.push(vec![breach.clone()]),
        }
    }
    documents
}

/// Makes the change; nothing is answered where there is no such place.
fn apply(document: &mut Value, breach: &Breach) -> Option<()> {
    let (parent, last) = breach.at.rsplit_once('/')?;
    match document.pointer_mut(parent)? {
        Value::Object(map) if breach.to.is_null() => {
            map.remove(last)?;
        }
        Value::Object(map) => {
            map.insert(last.to_owned(), breach.to.clone());
        }
        Value::Array(list) if last == "-" => list.push(breach.to.clone()),
        _ => return None,
    }
    Some(())
}
