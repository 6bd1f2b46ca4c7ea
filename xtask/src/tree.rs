//! Holds the dependency tree to its rules: the arrows between our crates, and `deny.toml`'s bans,
//! licences and sources, over what cargo itself says is resolved. Installs nothing.
//!
//! The shipped binary is asked with `cargo tree -p cli`, because `cargo metadata` unifies the
//! features of the whole workspace, and the test clients of e2e bring a TLS stack of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Which of our crates may depend on which. A new arrow is written into docs/ARCHITECTURE.md with
/// its reason first.
const ARROWS: [(&str, &[&str]); 9] = [
    ("rules", &[]),
    ("seam", &[]),
    ("sandbox", &["rules"]),
    ("control", &["rules", "seam", "sandbox"]),
    ("edge", &["rules", "seam", "sandbox"]),
    ("sdk-wasm", &["rules"]),
    ("cli", &["control", "edge", "sandbox", "rules"]),
    ("e2e", &["rules", "seam", "sandbox", "control", "edge", "sdk-wasm", "cli"]),
    ("xtask", &[]),
];

/// The part of `deny.toml` that is enforced here.
#[derive(Debug, Deserialize)]
struct Deny {
    bans: Bans,
    licenses: Licenses,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: Vec<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// One resolved package, as far as the rules look at it.
#[derive(Debug, Clone, Default)]
struct Package {
    name: String,
    license: Option<String>,
    /// `None` for a crate of this workspace.
    source: Option<String>,
    /// Names of the packages that it depends on, of every kind.
    dependencies: Vec<String>,
}

/// Checks everything; the error lists every violation.
pub fn check() -> anyhow::Result<String> {
    let deny = rules()?;
    let packages = resolved()?;
    let shipped = shipped()?;
    let mut problems = arrows(&packages);
    problems.extend(bans(&deny.bans.deny, &packages, &shipped));
    problems.extend(licenses(&deny.licenses.allow, &packages));
    problems.extend(sources(&deny.sources.allow_registry, &packages));
    if problems.is_empty() {
        return Ok(format!(
            "{} packages resolved, {} of them in the shipped binary",
            packages.len(),
            shipped.len()
        ));
    }
    bail!("{}", problems.join("\n"))
}

fn rules() -> anyhow::Result<Deny> {
    let path = crate::root().join("deny.toml");
    let text = std::fs::read_to_string(&path).context("deny.toml")?;
    toml::from_str(&text).context("deny.toml")
}

fn resolved() -> anyhow::Result<Vec<Package>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(crate::root().join("Cargo.toml"))
        .features(cargo_metadata::CargoOpt::SomeFeatures(vec!["cli/etcd".to_owned()]))
        .other_options(vec![
            "--locked".to_owned(),
            // Other platforms' crates are neither shipped nor worth downloading.
            "--filter-platform=x86_64-unknown-linux-gnu".to_owned(),
        ])
        .exec()
        .context("cargo metadata")?;
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
    let graph = metadata.resolve.as_ref().context("cargo metadata gave no graph")?;
    let edges: BTreeMap<_, Vec<String>> = graph
        .nodes
        .iter()
        .map(|node| {
            (&node.id, node.deps.iter().filter_map(|dep| names.get(&dep.pkg).cloned()).collect())
        })
        .collect();
    Ok(metadata
        .packages
        .iter()
        .map(|package| Package {
            name: package.name.to_string(),
            license: package.license.clone(),
            source: package.source.as_ref().map(|source| source.repr.clone()),
            dependencies: edges.get(&package.id).cloned().unwrap_or_default(),
        })
        .collect())
}

/// The names of everything that is linked into or run to build the `tidegate` binary.
fn shipped() -> anyhow::Result<BTreeSet<String>> {
    let output = Command::new(crate::cargo())
        .current_dir(crate::root())
        .args(["tree", "--locked", "--package", "cli", "--edges", "normal,build"])
        .args(["--features", "etcd"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .context("cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

fn arrows(packages: &[Package]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut problems = Vec::new();
    for package in packages.iter().filter(|package| package.source.is_none()) {
        let Some(may) = allowed.get(package.name.as_str()) else {
            problems.push(format!("crate {} is not in the table of arrows", package.name));
            continue;
        };
        for to in &package.dependencies {
            if allowed.contains_key(to.as_str()) && !may.contains(&to.as_str()) {
                problems.push(format!("{} must not depend on {to}", package.name));
            }
        }
    }
    problems
}

fn bans(deny: &[Ban], packages: &[Package], shipped: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for ban in deny {
        if ban.wrappers.is_empty() {
            if shipped.contains(&ban.name) {
                problems.push(format!("{} is in the shipped binary: {}", ban.name, ban.reason));
            }
            continue;
        }
        for package in packages {
            let of_the_family =
                package.name == ban.name || package.name.starts_with(&format!("{}-", ban.name));
            if package.dependencies.contains(&ban.name)
                && !ban.wrappers.contains(&package.name)
                && !of_the_family
            {
                problems.push(format!(
                    "{} depends on {}, which only {} may: {}",
                    package.name,
                    ban.name,
                    ban.wrappers.join(", "),
                    ban.reason
                ));
            }
        }
    }
    problems
}

fn licenses(allow: &BTreeSet<String>, packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .filter_map(|package| match &package.license {
            None => Some(format!("{} states no licence", package.name)),
            Some(license) if !license_allowed(license, allow) => {
                Some(format!("{} is under {license:?}, which is not allowed", package.name))
            }
            Some(_) => None,
        })
        .collect()
}

fn sources(allow: &[String], packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .filter_map(|package| package.source.as_ref().map(|source| (package, source)))
        .filter(|(_, source)| {
            !allow.iter().any(|registry| *source == &format!("registry+{registry}"))
        })
        .map(|(package, source)| format!("{} comes from {source}", package.name))
        .collect()
}

/// An SPDX expression over licences joined by OR, AND and parentheses; `/` is the old OR.
fn license_allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any_of(&tokens, &mut at, allow);
    result == Some(true) && at == tokens.len()
}

fn any_of(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let mut result = all_of(tokens, at, allow)?;
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all_of(tokens, at, allow)?;
    }
    Some(result)
}

fn all_of(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let mut result = one(tokens, at, allow)?;
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(tokens, at, allow)?;
    }
    Some(result)
}

fn one(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let first = *tokens.get(*at)?;
    *at += 1;
    if first == "(" {
        let inside = any_of(tokens, at, allow)?;
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return closed.then_some(inside);
    }
    let mut name = first.to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1)?);
        *at += 2;
    }
    Some(allow.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, ours: bool, dependencies: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            license: Some("MIT".to_owned()),
            source: (!ours)
                .then(|| "registry+https://github.com/rust-lang/crates.io-index".to_owned()),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn the_tree_obeys_its_rules() {
        check().unwrap();
    }

    #[test]
    fn an_arrow_between_control_and_edge_is_refused() {
        let packages = [
            package("control", true, &["rules", "edge"]),
            package("edge", true, &["rules", "sandbox"]),
        ];
        assert_eq!(arrows(&packages), ["control must not depend on edge"]);
    }

    #[test]
    fn a_crate_without_arrows_in_the_table_is_refused() {
        assert_eq!(
            arrows(&[package("common", true, &[])]),
            ["crate common is not in the table of arrows"]
        );
    }

    #[test]
    fn sqlx_outside_of_control_is_refused() {
        let deny = rules().unwrap();
        let packages = [package("edge", true, &["sqlx"]), package("control", true, &["sqlx"])];
        let problems = bans(&deny.bans.deny, &packages, &BTreeSet::new());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("edge depends on sqlx"), "{problems:?}");
    }

    #[test]
    fn the_brokers_client_outside_of_the_two_ports_is_refused() {
        let deny = rules().unwrap();
        let packages = [
            package("rules", true, &["async-nats"]),
            package("control", true, &["async-nats"]),
            package("edge", true, &["async-nats"]),
        ];
        let problems = bans(&deny.bans.deny, &packages, &BTreeSet::new());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("rules depends on async-nats"), "{problems:?}");
    }

    #[test]
    fn etcds_client_is_looked_at_though_it_is_optional() {
        let control = resolved().unwrap().into_iter().find(|package| package.name == "control");
        let control = control.unwrap();
        assert!(control.dependencies.iter().any(|name| name == "etcd-client"), "{control:?}");
        assert!(shipped().unwrap().contains("etcd-client"));
    }

    #[test]
    fn a_second_tls_provider_in_the_shipped_binary_is_refused() {
        let deny = rules().unwrap();
        let shipped = BTreeSet::from(["aws-lc-rs".to_owned(), "ring".to_owned()]);
        assert_eq!(bans(&deny.bans.deny, &[], &shipped).len(), 1);
    }

    #[test]
    fn a_package_from_git_is_refused() {
        let mut fork = package("hyper", false, &[]);
        fork.source = Some("git+https://example.com/hyper".to_owned());
        let deny = rules().unwrap();
        assert_eq!(sources(&deny.sources.allow_registry, &[fork]).len(), 1);
    }

    #[test]
    fn a_licence_is_allowed_when_some_choice_of_it_is() {
        let allow = BTreeSet::from(["MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()]);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT AND (GPL-3.0", false),
            ("", false),
        ] {
            assert_eq!(license_allowed(expression, &allow), expected, "{expression:?}");
        }
    }
}
