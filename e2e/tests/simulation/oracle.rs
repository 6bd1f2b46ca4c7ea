//! What is true: every committed version of every environment, with the value that each flag has in
//! it. Told by the commits themselves, in their order, not by what the product says of them.

use std::collections::BTreeMap;

use control::store::Touched;
use rules::blob::Digest;
use rules::head::Version;

/// Namespace and environment.
pub type Name = (String, String);

/// A flag's value; None: whatever a flag serves that nobody has configured.
pub type Values = BTreeMap<String, Option<i64>>;

/// What a write is about to commit.
#[derive(Debug, Clone)]
pub struct Intent {
    pub write: usize,
    pub touched: Vec<Touched>,
    pub change: Change,
}

#[derive(Debug, Clone)]
pub enum Change {
    Set {
        environment: Name,
        flag: String,
        value: i64,
    },
    Create {
        flag: String,
    },
    Delete {
        flag: String,
    },
    /// Nothing but a new revision.
    Publish,
}

#[derive(Debug, Default)]
pub struct Environment {
    pub id: String,
    pub versions: BTreeMap<Version, Values>,
    pub digests: BTreeMap<Version, Digest>,
}

impl Environment {
    pub fn newest(&self) -> Version {
        self.versions.keys().next_back().copied().unwrap_or(Version { generation: 0, revision: 0 })
    }
}

#[derive(Debug, Default, Clone)]
pub struct Write {
    pub namespace: String,
    pub action: &'static str,
    pub target: String,
    /// What its audit row says of the new state, if that tells it from every other write.
    pub mark: String,
    pub committed: bool,
    pub acknowledged: bool,
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub environments: BTreeMap<Name, Environment>,
    pub writes: Vec<Write>,
    intent: Option<Intent>,
}

impl Oracle {
    /// The next commit, which comes before anything else does, is this one.
    pub fn about_to_commit(&mut self, intent: Intent) {
        self.intent = Some(intent);
    }

    pub fn not_committed(&mut self) {
        self.intent = None;
    }

    /// A commit was made. What is wrong with it, if anything is.
    pub fn committed(&mut self) -> Option<String> {
        let intent = self.intent.take()?;
        self.writes[intent.write].committed = true;
        for touched in &intent.touched {
            let (name, environment) = self
                .environments
                .iter_mut()
                .find(|(_, environment)| environment.id == touched.environment_id)?;
            let version = Version {
                generation: touched.generation as u64,
                revision: touched.revision as u64,
            };
            let newest = environment.newest();
            let next = Version { revision: newest.revision + 1, ..newest };
            if version != next {
                return Some(format!(
                    "revisions have a gap: {name:?} went from {newest:?} to {version:?}"
                ));
            }
            let mut values = environment.versions[&newest].clone();
            match &intent.change {
                Change::Set { environment, flag, value } if environment == name => {
                    values.insert(flag.clone(), Some(*value));
                }
                Change::Create { flag } => drop(values.insert(flag.clone(), None)),
                Change::Delete { flag } => drop(values.remove(flag)),
                Change::Set { .. } | Change::Publish => {}
            }
            environment.versions.insert(version, values);
        }
        None
    }

    /// What an edge serves is what was committed as that version, and the same everywhere.
    pub fn check_served(
        &mut self,
        name: &Name,
        version: Version,
        digest: Digest,
        answers: &Values,
    ) -> Result<(), String> {
        let environment =
            self.environments.get_mut(name).ok_or(format!("{name:?} does not exist"))?;
        let values = environment
            .versions
            .get(&version)
            .ok_or_else(|| format!("I2: {name:?} {version:?} was never committed"))?;
        for (flag, value) in values {
            let answer = answers.get(flag);
            let right = match (value, answer) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(value), Some(answer)) => *answer == Some(*value),
            };
            if !right {
                return Err(format!(
                    "I2: {name:?} {version:?} has {flag} = {value:?}, served is {answer:?}"
                ));
            }
        }
        if let Some(more) = answers.keys().find(|flag| !values.contains_key(*flag)) {
            return Err(format!("I2: {name:?} {version:?} has no flag {more}, which is served"));
        }
        let first = environment.digests.entry(version).or_insert(digest);
        match *first == digest {
            true => Ok(()),
            false => Err(format!("I3: {name:?} {version:?} is served as {first} and as {digest}")),
        }
    }
}
