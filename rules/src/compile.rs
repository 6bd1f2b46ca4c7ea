//! From what authors wrote to a ruleset: resolves, checks, interns, renders. Deterministic: the
//! same state gives the same arenas, whatever order it was read in.
//!
//! Every problem is found, not only the first, and names its place as a JSON pointer.
//!
//! One pass: segments and flags are sorted by key, so that their indices are known before the
//! first of them is compiled; children are pushed before their parents, so that every reference
//! inside an arena points backwards.

mod cel;
mod clients;
mod condition;
pub(crate) mod duplicates;
mod objects;
mod place;
pub(crate) mod render;
mod split;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::de::DeserializeOwned;

use crate::blob::Digest;
use crate::cel::Parse;
use crate::chain;
use crate::date;
use crate::limits::{
    CHAIN_MAX, CONDITION_STEPS_MAX, FLAGS_MAX, KEY_BYTES_MAX, METADATA_BYTES_MAX, POLICIES_MAX,
    POLICY_ATTRIBUTE_BYTES_MAX, POLICY_ATTRIBUTES_MAX, POLICY_PARAMS_BYTES_MAX, PREREQUISITES_MAX,
    RULES_PER_FLAG_MAX, SEGMENTS_MAX, SNAPSHOT_BYTES_MAX, STRING_BYTES_MAX, TAGS_PER_FLAG_MAX,
    VARIANTS_PER_FLAG_MAX,
};
use crate::model::{self, Clients, FlagConfig, FlagDefinition, Metadata, OnFail, Segment};
use crate::references::segments_of;
use crate::ruleset::{self, NONE, Ruleset, Span, Text};
use objects::Objects;
use place::Place;

/// Everything that one environment's ruleset is made of.
///
/// Who compiles again and again, and changes few flags, may share them: `F` is then an `Arc`.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvironmentState<F = FlagState> {
    pub flags: Vec<F>,
    pub segments: Vec<SegmentState>,
    /// What is pinned, by name.
    pub policies: Vec<PolicyState>,
    /// The flag set's metadata.
    pub metadata: Metadata,
}

impl<F> Default for EnvironmentState<F> {
    fn default() -> EnvironmentState<F> {
        EnvironmentState {
            flags: Vec::new(),
            segments: Vec::new(),
            policies: Vec::new(),
            metadata: Metadata::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct FlagState {
    pub definition: FlagDefinition,
    pub config: FlagConfig,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SegmentState {
    pub segment: Segment,
    /// Whether it has such a list; the compiler numbers the lists, the caller knows their blobs.
    pub has_included: bool,
    pub has_excluded: bool,
}

/// A policy version that the environment pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyState {
    pub name: String,
    pub digest: Digest,
    /// Paths that the module declared to read, at its admission.
    pub attributes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    pub ruleset: Ruleset,
    /// `Manifest::boundaries_ms`: edges of windows; starts, ends and steps of ramps. Of a ramp at
    /// most 1,000 steps, evenly thinned; of one that moves every millisecond, every hundredth
    /// part of its way. Past ones too: the compiler does not know the time.
    pub boundaries_ms: Vec<i64>,
    /// The segment and list of each list index, in order.
    pub lists: Vec<ListUse>,
    /// The name of each policy index, in order: those that a rule calls.
    pub policies: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUse {
    pub segment: String,
    pub kind: ListKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Included,
    Excluded,
}

/// One thing that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// RFC 6901, from the root `{"flags": {key: {"definition": …, "config": …}}, "segments":
    /// {key: …}}`: `/flags/checkout/config/rules/2/when/value`.
    pub pointer: String,
    /// A lower-case fragment: what is wrong and what would be right.
    pub message: String,
}

/// Problems that are told at most; the last one then says how many more there are.
pub const PROBLEMS_MAX: usize = 100;

pub use clients::{client_state, compile_clients_with};
pub(crate) use condition::check_pattern;

/// The ruleset, or everything that is wrong. Conditions in CEL are wrong here: see `compile_with`.
pub fn compile<F: Borrow<FlagState>>(
    state: &EnvironmentState<F>,
) -> Result<Compiled, Vec<Problem>> {
    compile_with(state, &crate::cel::no_parser)
}

/// As `compile`, for who has a parser of CEL.
pub fn compile_with<F: Borrow<FlagState>>(
    state: &EnvironmentState<F>,
    parse_cel: &Parse<'_>,
) -> Result<Compiled, Vec<Problem>> {
    let attempt = Builder::new(&Parts::of(state), &Quarantine::default(), parse_cel).build();
    match attempt.problems.is_empty() {
        true => Ok(attempt.compiled),
        false => Err(attempt.problems),
    }
}

/// For state that was stored by an older build and no longer compiles: what has problems is
/// quarantined (a flag answers GENERAL; a segment takes the flags that ask for it along; the
/// set's metadata is left out) and its neighbours keep serving. Fails only for what concerns the
/// environment as a whole, such as too many flags.
pub fn compile_lenient<F: Borrow<FlagState>>(
    state: &EnvironmentState<F>,
) -> Result<(Compiled, Vec<Problem>), Vec<Problem>> {
    compile_lenient_with(state, &crate::cel::no_parser)
}

/// As `compile_lenient`, for who has a parser of CEL.
pub fn compile_lenient_with<F: Borrow<FlagState>>(
    state: &EnvironmentState<F>,
    parse_cel: &Parse<'_>,
) -> Result<(Compiled, Vec<Problem>), Vec<Problem>> {
    let parts = Parts::of(state);
    let mut quarantine = Quarantine::default();
    let mut problems = Vec::new();
    // Each round quarantines at least one thing more, and what only a round's end could see (a
    // chain behind a cycle) comes to light in the next; more rounds than this is nobody's state.
    for _ in 0..PROBLEMS_MAX {
        let attempt = Builder::new(&parts, &quarantine, parse_cel).build();
        if attempt.problems.is_empty() {
            return Ok((attempt.compiled, problems));
        }
        problems.extend(attempt.problems);
        problems.truncate(PROBLEMS_MAX);
        if attempt.hopeless {
            break;
        }
        quarantine.absorb(attempt.faulty);
    }
    Err(problems)
}

/// The strict door for what authors send: the error has the place as a JSON pointer, and lists
/// what is known where a name is not. A name that is given twice is an error too, and so is an array
/// in the place of an object.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    if let Some(problem) = duplicates::first(json) {
        return Err(problem);
    }
    let mut from = serde_json::Deserializer::from_slice(json);
    let parsed = serde_path_to_error::deserialize(Objects(&mut from)).map_err(|error| {
        let mut pointer = String::new();
        for segment in error.path() {
            use serde_path_to_error::Segment;
            match segment {
                Segment::Seq { index } => place::push_index(&mut pointer, *index),
                Segment::Map { key } => place::push_key(&mut pointer, key),
                Segment::Enum { variant } => place::push_key(&mut pointer, variant),
                Segment::Unknown => {}
            }
        }
        Problem { pointer, message: error.inner().to_string() }
    })?;
    from.end().map_err(|error| Problem { pointer: String::new(), message: error.to_string() })?;
    Ok(parsed)
}

/// Whom a problem concerns: what has to be quarantined if the rest shall go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Environment,
    Metadata,
    /// By position among the sorted.
    Flag(usize),
    Segment(usize),
}

#[derive(Debug, Default)]
struct Quarantine {
    /// With the text that the flag answers.
    flags: BTreeMap<usize, String>,
    segments: BTreeSet<usize>,
    metadata: bool,
}

impl Quarantine {
    fn absorb(&mut self, other: Quarantine) {
        self.flags.extend(other.flags);
        self.segments.extend(other.segments);
        self.metadata |= other.metadata;
    }
}

struct Attempt {
    compiled: Compiled,
    problems: Vec<Problem>,
    faulty: Quarantine,
    /// A problem is nobody's in particular.
    hopeless: bool,
}

/// An environment's state, whoever owns its flags.
struct Parts<'a> {
    flags: Vec<&'a FlagState>,
    segments: &'a [SegmentState],
    policies: &'a [PolicyState],
    metadata: &'a Metadata,
}

impl<'a> Parts<'a> {
    fn of<F: Borrow<FlagState>>(state: &'a EnvironmentState<F>) -> Parts<'a> {
        let flags = state.flags.iter().map(Borrow::borrow).collect();
        Parts {
            flags,
            segments: &state.segments,
            policies: &state.policies,
            metadata: &state.metadata,
        }
    }
}

struct Builder<'a> {
    state: &'a Parts<'a>,
    quarantine: &'a Quarantine,
    parse_cel: &'a Parse<'a>,
    /// Sorted by key, unique.
    flags: Vec<&'a FlagState>,
    segments: Vec<&'a SegmentState>,
    /// Position of each flag's first variant in the arena.
    variant_starts: Vec<u32>,
    /// Whether ids that can be guessed decide a segment, itself or through another.
    segment_has_list: Vec<bool>,
    rules: Ruleset,
    lists: Vec<ListUse>,
    /// By their index in the ruleset.
    policies: Vec<String>,
    boundaries_ms: BTreeSet<i64>,
    /// Steps that one ramp may add to the boundaries, so that they stay few however many ramps.
    ramp_steps_max: i64,
    texts: HashMap<String, Text>,
    attrs: HashMap<String, u32>,
    serves: HashMap<(u8, u32), u32>,
    /// By their JSON.
    hashes: HashMap<String, u32>,
    /// Leaf conditions of the rule at hand.
    leaves: usize,
    owner: Owner,
    problems: Vec<Problem>,
    problems_untold: usize,
    faulty: Quarantine,
    hopeless: bool,
}

/// The flag whose parts are being compiled.
#[derive(Clone, Copy)]
struct Subject<'a> {
    index: usize,
    definition: &'a FlagDefinition,
    enabled: bool,
    imported: bool,
}

impl<'a> Builder<'a> {
    fn new(
        state: &'a Parts<'a>,
        quarantine: &'a Quarantine,
        parse_cel: &'a Parse<'a>,
    ) -> Builder<'a> {
        Builder {
            state,
            quarantine,
            parse_cel,
            flags: Vec::new(),
            segments: Vec::new(),
            variant_starts: Vec::new(),
            segment_has_list: Vec::new(),
            rules: Ruleset::default(),
            lists: Vec::new(),
            policies: Vec::new(),
            boundaries_ms: BTreeSet::new(),
            ramp_steps_max: split::ramp_steps_max(state),
            texts: HashMap::new(),
            attrs: HashMap::new(),
            serves: HashMap::new(),
            hashes: HashMap::new(),
            leaves: 0,
            owner: Owner::Environment,
            problems: Vec::new(),
            problems_untold: 0,
            faulty: Quarantine::default(),
            hopeless: false,
        }
    }

    fn build(mut self) -> Attempt {
        let root = Place::Root;
        let (flags_at, segments_at) = (root.key("flags"), root.key("segments"));
        self.admit_flags(&flags_at);
        self.admit_segments(&segments_at);
        self.admit_policies(&root.key("policies"));

        self.owner = Owner::Metadata;
        let set_metadata = match self.quarantine.metadata {
            true => Metadata::default(),
            false => self.state.metadata.clone(),
        };
        self.check_metadata(&set_metadata, &root.key("metadata"));
        let rendered = render::metadata(&[&set_metadata]);
        self.rules.metadata = self.text(&rendered);

        self.segments(&segments_at);
        self.variants(&flags_at);
        self.prerequisite_chains(&flags_at);
        for index in 0..self.flags.len() {
            self.flag(index, &set_metadata, &flags_at);
        }

        self.owner = Owner::Environment;
        self.rules.list_count = len32(self.lists.len());
        if self.problems.is_empty() {
            self.check_condition_steps(&flags_at, &segments_at);
            self.check_whole();
        }
        if self.problems_untold > 0 {
            let untold = self.problems_untold;
            self.problems.push(Problem {
                pointer: String::new(),
                message: format!(
                    "and {untold} more problems, which are told once these are mended"
                ),
            });
        }
        Attempt {
            compiled: Compiled {
                ruleset: self.rules,
                boundaries_ms: self.boundaries_ms.into_iter().collect(),
                lists: self.lists,
                policies: self.policies,
            },
            problems: self.problems,
            faulty: self.faulty,
            hopeless: self.hopeless,
        }
    }

    fn problem(&mut self, at: &Place<'_>, message: impl Into<String>) {
        self.problem_at(at.pointer(), message.into());
    }

    fn problem_at(&mut self, pointer: String, message: String) {
        match self.owner {
            Owner::Environment => self.hopeless = true,
            Owner::Metadata => self.faulty.metadata = true,
            // Duplicates and cycles are seen from outside, also of what is quarantined already.
            Owner::Flag(index) if self.quarantine.flags.contains_key(&index) => return,
            Owner::Segment(index) if self.quarantine.segments.contains(&index) => return,
            Owner::Flag(index) => {
                self.faulty.flags.entry(index).or_insert_with(|| {
                    format!("the flag's configuration does not compile: {message} (at {pointer})")
                });
            }
            Owner::Segment(index) => {
                self.faulty.segments.insert(index);
            }
        }
        // The last place is kept for the count of the untold.
        if self.problems.len() < PROBLEMS_MAX.saturating_sub(1) {
            self.problems.push(Problem { pointer, message });
        } else {
            self.problems_untold = self.problems_untold.saturating_add(1);
        }
    }

    fn admit_flags(&mut self, at: &Place<'_>) {
        let mut flags: Vec<&FlagState> = self.state.flags.clone();
        flags.retain(|flag| !flag.definition.archived);
        flags.sort_by(|a, b| a.definition.key.as_bytes().cmp(b.definition.key.as_bytes()));
        let mut twice = Vec::new();
        for flag in flags {
            let key = flag.definition.key.as_str();
            match self.flags.last() {
                Some(last) if last.definition.key == key => {
                    twice.push((self.flags.len().saturating_sub(1), key));
                }
                _ => self.flags.push(flag),
            }
        }
        for (index, key) in twice {
            self.owner = Owner::Flag(index);
            self.problem(&at.key(key), format!("there are two flags with the key {key:?}"));
        }
        self.owner = Owner::Environment;
        if self.flags.len() > FLAGS_MAX {
            let count = self.flags.len();
            self.problem(at, format!("{count} flags, an environment may have {FLAGS_MAX}"));
        }
    }

    fn admit_segments(&mut self, at: &Place<'_>) {
        let mut segments: Vec<&SegmentState> = self.state.segments.iter().collect();
        segments.sort_by(|a, b| a.segment.key.as_bytes().cmp(b.segment.key.as_bytes()));
        let mut twice = Vec::new();
        for segment in segments {
            let key = segment.segment.key.as_str();
            match self.segments.last() {
                Some(last) if last.segment.key == key => {
                    twice.push((self.segments.len().saturating_sub(1), key));
                }
                _ => self.segments.push(segment),
            }
        }
        for (index, key) in twice {
            self.owner = Owner::Segment(index);
            self.problem(&at.key(key), format!("there are two segments with the key {key:?}"));
        }
        self.owner = Owner::Environment;
        if self.segments.len() > SEGMENTS_MAX {
            let count = self.segments.len();
            self.problem(at, format!("{count} segments, an environment may have {SEGMENTS_MAX}"));
        }
    }

    fn admit_policies(&mut self, at: &Place<'_>) {
        self.owner = Owner::Environment;
        let pinned = self.state.policies;
        if pinned.len() > POLICIES_MAX {
            let count = pinned.len();
            self.problem(at, format!("{count} policies, an environment may have {POLICIES_MAX}"));
        }
        let mut names = BTreeSet::new();
        for policy in pinned {
            let at = at.key(&policy.name);
            self.check_key("policy", &policy.name, &at);
            if !names.insert(policy.name.as_str()) {
                let message = format!("there are two policies with the name {:?}", policy.name);
                self.problem(&at, message);
            }
            if policy.attributes.len() > POLICY_ATTRIBUTES_MAX {
                let count = policy.attributes.len();
                let message =
                    format!("{count} attributes, a policy may read {POLICY_ATTRIBUTES_MAX}");
                self.problem(&at, message);
            }
            for path in &policy.attributes {
                if path.is_empty() || path.len() > POLICY_ATTRIBUTE_BYTES_MAX {
                    let bytes = path.len();
                    let message = format!(
                        "an attribute's path of {bytes} bytes, it has 1 to \
                         {POLICY_ATTRIBUTE_BYTES_MAX}"
                    );
                    self.problem(&at, message);
                }
            }
        }
    }

    fn is_archived(&self, key: &str) -> bool {
        self.state.flags.iter().any(|flag| flag.definition.archived && flag.definition.key == key)
    }

    fn flag_index(&self, key: &str) -> Option<usize> {
        self.flags.binary_search_by(|flag| flag.definition.key.as_bytes().cmp(key.as_bytes())).ok()
    }

    fn segment_index(&self, key: &str) -> Option<usize> {
        self.segments
            .binary_search_by(|segment| segment.segment.key.as_bytes().cmp(key.as_bytes()))
            .ok()
    }

    // ── Segments ────────────────────────────────────────────────────────────────────────────

    fn segments(&mut self, at: &Place<'_>) {
        let nested: Vec<Vec<usize>> = self
            .segments
            .iter()
            .enumerate()
            .map(|(index, state)| {
                let mut keys = Vec::new();
                if !self.quarantine.segments.contains(&index) {
                    for rule in &state.segment.rules {
                        segments_of(rule, crate::limits::NESTING_MAX, &mut keys);
                    }
                }
                keys.iter().filter_map(|key| self.segment_index(key)).collect()
            })
            .collect();
        let order = chain::order(&nested);
        for cycle in &order.cycles {
            let Some(first) = cycle.first() else { continue };
            let path = self.cycle_path(cycle, |builder, index| {
                builder.segments.get(index).map(|state| state.segment.key.as_str())
            });
            let key = self.segments.get(*first).map_or("", |state| state.segment.key.as_str());
            self.owner = Owner::Segment(*first);
            self.problem(&at.key(key).key("rules"), format!("segments contain each other: {path}"));
        }
        for index in &order.circular {
            if !self.quarantine.segments.contains(index) {
                self.faulty.segments.insert(*index);
            }
        }
        self.segment_has_list =
            self.segments.iter().map(|state| state.has_included || state.has_excluded).collect();
        // In the order of dependence, so that one look at each is enough.
        for index in &order.sorted {
            let inherits = nested.get(*index).is_some_and(|deps| {
                deps.iter().any(|dep| self.segment_has_list.get(*dep).copied().unwrap_or(false))
            });
            if let Some(has) = self.segment_has_list.get_mut(*index) {
                *has |= inherits;
            }
        }
        for index in 0..self.segments.len() {
            let Some(state) = self.segments.get(index).copied() else { continue };
            self.owner = Owner::Segment(index);
            let at = at.key(&state.segment.key);
            let depth = order.depths.get(index).copied().unwrap_or(0);
            if depth > CHAIN_MAX {
                self.problem(
                    &at.key("rules"),
                    format!("segments are nested {depth} deep, the limit is {CHAIN_MAX}"),
                );
            }
            self.segment(state, self.quarantine.segments.contains(&index), &at);
        }
    }

    fn segment(&mut self, state: &'a SegmentState, quarantined: bool, at: &Place<'_>) {
        let segment = &state.segment;
        self.check_key("segment", &segment.key, at);
        self.check_string(&segment.description, &at.key("description"));
        let key = self.text(&segment.key);
        let by = self.attr(&segment.by, &at.key("by"));
        let (mut included, mut excluded, mut when) = (NONE, NONE, NONE);
        // A quarantined one contains nobody; the flags that ask for it are quarantined with it.
        if !quarantined {
            if state.has_included {
                included = self.list(&segment.key, ListKind::Included);
            }
            if state.has_excluded {
                excluded = self.list(&segment.key, ListKind::Excluded);
            }
            let rules_at = at.key("rules");
            if segment.rules.len() > RULES_PER_FLAG_MAX {
                let count = segment.rules.len();
                self.problem(
                    &rules_at,
                    format!("{count} rules, a segment may have {RULES_PER_FLAG_MAX}"),
                );
            }
            let mut exprs = Vec::new();
            for (index, rule) in segment.rules.iter().enumerate() {
                exprs.push(self.rule_condition(rule, None, &rules_at.index(index)));
            }
            when = match exprs.as_slice() {
                [] => NONE,
                [one] => *one,
                _ => {
                    let span = self.refs(&exprs);
                    self.expr(ruleset::Expr::Any(span))
                }
            };
        }
        self.rules.segments.push(ruleset::Segment { key, by, included, excluded, when });
    }

    fn list(&mut self, segment: &str, kind: ListKind) -> u32 {
        let index = len32(self.lists.len());
        self.lists.push(ListUse { segment: segment.to_owned(), kind });
        index
    }

    // ── Flags ───────────────────────────────────────────────────────────────────────────────

    /// All flags' variants come first, so that prerequisites can name those of any flag.
    fn variants(&mut self, at: &Place<'_>) {
        for index in 0..self.flags.len() {
            self.variant_starts.push(len32(self.rules.variants.len()));
            let Some(state) = self.flags.get(index).copied() else { continue };
            if self.quarantine.flags.contains_key(&index) {
                continue;
            }
            self.owner = Owner::Flag(index);
            let definition = &state.definition;
            let flag_at = at.key(&definition.key);
            let definition_at = flag_at.key("definition");
            let variants_at = definition_at.key("variants");
            if definition.variants.is_empty() {
                let message = "a flag has at least one variant: there is nothing to serve else";
                self.problem(&variants_at, message.to_owned());
            }
            if definition.variants.len() > VARIANTS_PER_FLAG_MAX {
                let count = definition.variants.len();
                self.problem(
                    &variants_at,
                    format!("{count} variants, a flag may have {VARIANTS_PER_FLAG_MAX}"),
                );
            }
            for (key, value) in &definition.variants {
                let at = variants_at.key(key);
                self.check_key("variant", key, &at);
                let rendered = match render::value(definition.kind, value) {
                    Ok(rendered) => rendered,
                    Err(message) => {
                        self.problem(&at, message);
                        continue;
                    }
                };
                let variant = ruleset::Variant {
                    key: self.text(key),
                    json: self.text(&render::variant(&rendered, key)),
                    value: self.text(&rendered),
                };
                self.rules.variants.push(variant);
            }
        }
    }

    fn prerequisite_chains(&mut self, at: &Place<'_>) {
        let wanted: Vec<Vec<usize>> = self
            .flags
            .iter()
            .enumerate()
            .map(|(index, state)| match self.quarantine.flags.contains_key(&index) {
                true => Vec::new(),
                false => prerequisites_of(&state.config)
                    .filter_map(|prerequisite| self.flag_index(&prerequisite.flag))
                    .collect(),
            })
            .collect();
        let order = chain::order(&wanted);
        let mut found = Vec::new();
        for cycle in &order.cycles {
            let Some(first) = cycle.first() else { continue };
            let path = self.cycle_path(cycle, |builder, index| {
                builder.flags.get(index).map(|state| state.definition.key.as_str())
            });
            found.push((*first, format!("flags are prerequisites of each other: {path}")));
        }
        for (index, depth) in order.depths.iter().enumerate() {
            if *depth > CHAIN_MAX {
                found.push((
                    index,
                    format!("a chain of {depth} flags, prerequisites may go {CHAIN_MAX} deep"),
                ));
            }
        }
        for (index, message) in found {
            let Some(state) = self.flags.get(index).copied() else { continue };
            self.owner = Owner::Flag(index);
            let flag_at = at.key(&state.definition.key);
            self.problem(&flag_at.key("config").key("prerequisites"), message);
        }
        for index in order.circular {
            if !self.quarantine.flags.contains_key(&index) {
                self.faulty
                    .flags
                    .entry(index)
                    .or_insert_with(|| "the flag's prerequisites lead back to itself".to_owned());
            }
        }
    }

    fn cycle_path(&self, cycle: &[usize], key: impl Fn(&Self, usize) -> Option<&str>) -> String {
        // The first once more, so that the reader sees it close.
        let keys: Vec<String> = cycle
            .iter()
            .chain(cycle.first())
            .map(|index| format!("{:?}", key(self, *index).unwrap_or_default()))
            .collect();
        keys.join(" → ")
    }

    fn flag(&mut self, index: usize, set_metadata: &Metadata, at: &Place<'_>) {
        let Some(state) = self.flags.get(index).copied() else { return };
        let (definition, config) = (&state.definition, &state.config);
        self.owner = Owner::Flag(index);
        let at = at.key(&definition.key);
        let (definition_at, config_at) = (at.key("definition"), at.key("config"));
        let broken = self.quarantine.flags.get(&index).cloned();
        let key = self.text(&definition.key);
        let json_head = self.text(&render::head(&definition.key));
        let variants_start = self.variant_starts.get(index).copied().unwrap_or(0);

        if let Some(broken) = broken {
            let code_default = self.serve_of(ruleset::Serve::CodeDefault);
            let json_tail = self.text(&render::tail(&[set_metadata]));
            let broken = self.text(&broken);
            self.rules.flags.push(ruleset::Flag {
                key,
                kind: definition.kind,
                clients: definition.clients,
                enabled: config.enabled,
                is_static: false,
                json_head,
                json_tail,
                variants: Span { start: variants_start, len: 0 },
                off: code_default,
                prerequisites: Span::default(),
                rules: Span::default(),
                fallthrough: code_default,
                salt: key,
                broken: Some(broken),
            });
            return;
        }

        self.check_key("flag", &definition.key, &at);
        self.check_string(&definition.description, &definition_at.key("description"));
        if definition.tags.len() > TAGS_PER_FLAG_MAX {
            let count = definition.tags.len();
            let message = format!("{count} tags, a flag may have {TAGS_PER_FLAG_MAX}");
            self.problem(&definition_at.key("tags"), message);
        }
        for (index, tag) in definition.tags.iter().enumerate() {
            self.check_string(tag, &definition_at.key("tags").index(index));
        }
        if let Some(salt) = &definition.salt {
            self.check_string(salt, &definition_at.key("salt"));
        }
        self.check_lifecycle(definition, &definition_at);
        self.check_metadata(&definition.metadata, &definition_at.key("metadata"));
        let none = Metadata::default();
        let origin = config.origin.as_ref().map_or(&none, |origin| &origin.metadata);
        self.check_metadata(origin, &config_at.key("origin").key("metadata"));
        let json_tail = self.text(&render::tail(&[set_metadata, &definition.metadata, origin]));
        let salt = self.text(definition.salt.as_deref().unwrap_or(&definition.key));

        let subject = Subject {
            index,
            definition,
            enabled: config.enabled,
            imported: config.origin.is_some(),
        };
        let off = match &config.off {
            Some(off) => self.serve_variant(subject, off, &config_at.key("off")),
            None => self.serve_of(ruleset::Serve::CodeDefault),
        };
        let prerequisites =
            self.prerequisites(subject, &config.prerequisites, &config_at.key("prerequisites"));
        let rules = self.rules_of(subject, &config.rules, &config_at.key("rules"));
        let fallthrough = self.fallthrough(subject, &config.fallthrough, &config_at);
        let is_static = config.prerequisites.is_empty()
            && config.rules.is_empty()
            && matches!(config.fallthrough, model::Serve::Variant(_));
        self.rules.flags.push(ruleset::Flag {
            key,
            kind: definition.kind,
            clients: definition.clients,
            enabled: config.enabled,
            is_static,
            json_head,
            json_tail,
            variants: Span { start: variants_start, len: len32(definition.variants.len()) },
            off,
            prerequisites,
            rules,
            fallthrough,
            salt,
            broken: None,
        });
    }

    fn check_lifecycle(&mut self, definition: &FlagDefinition, at: &Place<'_>) {
        self.check_string(&definition.owner, &at.key("owner"));
        let Some(day) = &definition.expected_end else { return };
        let at = at.key("expectedEnd");
        if date::day_ms(day).is_none() {
            self.problem(&at, format!("{day:?} is no day, such as 2027-01-31"));
        } else if definition.lifetime == model::Lifetime::Permanent {
            self.problem(&at, "a permanent flag has no expected end; leave it out");
        }
    }

    fn fallthrough(
        &mut self,
        subject: Subject<'a>,
        serve: &'a model::Serve,
        config_at: &Place<'_>,
    ) -> u32 {
        let at = config_at.key("fallthrough");
        match serve {
            model::Serve::Next => self.problem(
                &at,
                "nothing comes after the fallthrough, so it cannot be next; write codeDefault \
                 to leave the value to the caller",
            ),
            model::Serve::Logic(_) => self.problem(
                &at.key("logic"),
                "a logic tree may choose nobody, and nothing comes after the fallthrough; write \
                 it as a rule without a condition",
            ),
            model::Serve::Split(split) => {
                let at = at.key("split");
                if split.ramp.is_some() {
                    self.problem(
                        &at.key("ramp"),
                        "a ramp leaves units to what comes after it, and nothing comes after the \
                         fallthrough; write the split as a rule without a condition",
                    );
                }
                for (index, arm) in split.arms.iter().enumerate() {
                    if arm.serve == model::Serve::Next {
                        self.problem(
                            &at.key("arms").index(index).key("serve"),
                            "nothing comes after the fallthrough, so no arm of it can be next",
                        );
                    }
                }
            }
            model::Serve::Variant(_) | model::Serve::CodeDefault => {}
        }
        self.serve(subject, serve, &at)
    }

    fn prerequisites(
        &mut self,
        subject: Subject<'a>,
        prerequisites: &'a [model::Prerequisite],
        at: &Place<'_>,
    ) -> Span {
        if prerequisites.len() > PREREQUISITES_MAX {
            let count = prerequisites.len();
            self.problem(at, format!("{count} prerequisites, the limit is {PREREQUISITES_MAX}"));
        }
        let mut compiled = Vec::new();
        for (index, prerequisite) in prerequisites.iter().enumerate() {
            compiled.push(self.prerequisite(subject, prerequisite, &at.index(index)));
        }
        append(&mut self.rules.prerequisites, compiled)
    }

    fn prerequisite(
        &mut self,
        subject: Subject<'a>,
        prerequisite: &'a model::Prerequisite,
        at: &Place<'_>,
    ) -> ruleset::Prerequisite {
        let on_fail: OnFail = prerequisite.on_fail;
        let missing = ruleset::Prerequisite { flag: NONE, variants: Span::default(), on_fail };
        let flag_at = at.key("flag");
        let Some(index) = self.flag_index(&prerequisite.flag) else {
            // Other platforms let flags name what is not there, and mean "not satisfied".
            if !subject.imported {
                let key = &prerequisite.flag;
                let message = match self.is_archived(key) {
                    true => format!("the flag {key:?} is archived"),
                    false => format!("there is no flag {key:?} in this environment"),
                };
                self.problem(&flag_at, message);
            }
            return missing;
        };
        let Some(wanted) = self.flags.get(index).copied() else { return missing };
        let wanted = &wanted.definition;
        if subject.definition.clients == Clients::Local && wanted.clients != Clients::Local {
            self.problem(
                &flag_at,
                format!(
                    "this flag's rules travel to browsers (clients is local), but those of {:?} \
                     do not; make clients edge here or local there",
                    wanted.key
                ),
            );
        }
        let variants_at = at.key("variants");
        if prerequisite.variants.is_empty() {
            self.problem(
                &variants_at,
                "no variants, so nothing could satisfy it; name at least one",
            );
        }
        let mut variants = Vec::new();
        // A quarantined flag has none, so what waits for it is not satisfied.
        if !self.quarantine.flags.contains_key(&index) {
            for (position, variant) in prerequisite.variants.iter().enumerate() {
                let at = variants_at.index(position);
                variants.extend(self.variant_of(index, wanted, variant, &at));
            }
        }
        variants.sort_unstable();
        variants.dedup();
        let variants = self.refs(&variants);
        ruleset::Prerequisite { flag: len32(index), variants, on_fail }
    }

    fn rules_of(&mut self, subject: Subject<'a>, rules: &'a [model::Rule], at: &Place<'_>) -> Span {
        if rules.len() > RULES_PER_FLAG_MAX {
            let count = rules.len();
            self.problem(at, format!("{count} rules, a flag may have {RULES_PER_FLAG_MAX}"));
        }
        let mut ids = HashMap::new();
        let mut compiled = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let at = at.index(index);
            self.check_key("rule", &rule.id, &at.key("id"));
            if let Some(first) = ids.insert(rule.id.as_str(), index) {
                self.problem(
                    &at.key("id"),
                    format!("the id {:?} is rule {first}'s already; ids are unique", rule.id),
                );
            }
            compiled.push(self.rule(subject, rule, &at));
        }
        append(&mut self.rules.rules, compiled)
    }

    fn rule(
        &mut self,
        subject: Subject<'a>,
        rule: &'a model::Rule,
        at: &Place<'_>,
    ) -> ruleset::Rule {
        self.check_string(&rule.description, &at.key("description"));
        let id = self.text(&rule.id);
        let when = match &rule.when {
            Some(condition) => self.rule_condition(condition, Some(subject), &at.key("when")),
            None => NONE,
        };
        let (from_ms, to_ms) = match &rule.active {
            Some(window) => self.window(window, subject.enabled, &at.key("active")),
            None => (i64::MIN, i64::MAX),
        };
        let prerequisites =
            self.prerequisites(subject, &rule.prerequisites, &at.key("prerequisites"));
        let serve = match (&rule.serve, &rule.policy) {
            (Some(serve), None) => self.serve(subject, serve, &at.key("serve")),
            (None, Some(policy)) => self.policy_call(subject, policy, &at.key("policy")),
            (Some(_), Some(_)) => {
                self.problem(at, "a rule has serve or policy, not both");
                0
            }
            (None, None) => {
                self.problem(at, "the rule does not say what it serves; add serve");
                0
            }
        };
        ruleset::Rule {
            id,
            when,
            from_ms,
            to_ms,
            to_inclusive: rule.active.as_ref().is_some_and(|window| window.inclusive),
            prerequisites,
            serve,
            on_error: rule.on_error,
            reason: rule.reason,
        }
    }

    fn window(&mut self, window: &model::Window, enabled: bool, at: &Place<'_>) -> (i64, i64) {
        let from = window.from.as_ref().and_then(|text| self.time(text, &at.key("from")));
        let to = window.to.as_ref().and_then(|text| self.time(text, &at.key("to")));
        if let (Some(from), Some(to)) = (from, to) {
            let empty = if window.inclusive { from > to } else { from >= to };
            if empty {
                self.problem(at, "from is not before to, so the window never opens");
            }
        }
        if enabled {
            self.boundaries_ms.extend(from);
            // The first millisecond at which the answer is another.
            self.boundaries_ms.extend(to.map(|to| to.saturating_add(i64::from(window.inclusive))));
        }
        (from.unwrap_or(i64::MIN), to.unwrap_or(i64::MAX))
    }

    fn time(&mut self, text: &str, at: &Place<'_>) -> Option<i64> {
        let parsed = condition::rfc3339_ms(text);
        if parsed.is_none() {
            self.problem(at, format!("{text:?} is no RFC 3339 time, such as 2026-01-31T08:00:00Z"));
        }
        parsed
    }

    // ── Serves ──────────────────────────────────────────────────────────────────────────────

    fn serve(&mut self, subject: Subject<'a>, serve: &'a model::Serve, at: &Place<'_>) -> u32 {
        match serve {
            model::Serve::Variant(key) => self.serve_variant(subject, key, &at.key("variant")),
            model::Serve::Split(split) => {
                let index = self.split(subject, split, &at.key("split"));
                self.serve_of(ruleset::Serve::Split(index))
            }
            model::Serve::Logic(logic) => {
                let logic_at = at.key("logic");
                let root = self.logic(&logic.tree, logic.fractional, &logic_at.key("tree"));
                self.serve_of(ruleset::Serve::Logic(root))
            }
            model::Serve::CodeDefault => self.serve_of(ruleset::Serve::CodeDefault),
            model::Serve::Next => self.serve_of(ruleset::Serve::Next),
        }
    }

    fn policy_call(
        &mut self,
        subject: Subject<'a>,
        called: &'a model::PolicyRef,
        at: &Place<'_>,
    ) -> u32 {
        if subject.definition.clients == Clients::Local {
            self.problem(
                at,
                "this flag's rules travel to browsers (clients is local), and policies run at the \
                 edge only; make clients edge",
            );
        }
        let params = match render::check_nested(&called.params, 1) {
            Ok(()) => render::canonical(&called.params),
            Err(message) => {
                self.problem(&at.key("params"), message);
                String::new()
            }
        };
        if params.len() > POLICY_PARAMS_BYTES_MAX {
            let bytes = params.len();
            self.problem(
                &at.key("params"),
                format!("{bytes} bytes of params as JSON, the limit is {POLICY_PARAMS_BYTES_MAX}"),
            );
        }
        let fallback = self.serve(subject, &called.fallback, &at.key("fallback"));
        let pinned = self.state.policies;
        let Some(policy) = pinned.iter().find(|policy| policy.name == called.name) else {
            let message = format!(
                "no policy {:?} is pinned in this environment; pinned: {}",
                called.name,
                listed(pinned.iter().map(|policy| &policy.name))
            );
            self.problem(&at.key("name"), message);
            return 0;
        };
        let policy = self.policy(policy, at);
        let params = self.text(&params);
        let call = len32(self.rules.policy_calls.len());
        self.rules.policy_calls.push(ruleset::PolicyCall { policy, params, fallback });
        self.serve_of(ruleset::Serve::Policy(call))
    }

    /// Its index; pushed when the first rule calls it.
    fn policy(&mut self, policy: &'a PolicyState, at: &Place<'_>) -> u32 {
        if let Some(known) = self.policies.iter().position(|known| *known == policy.name) {
            return len32(known);
        }
        let mut paths: Vec<Vec<&str>> =
            policy.attributes.iter().map(|path| path.split('.').collect()).collect();
        paths.sort_unstable();
        // What lies under another path is in that one's value.
        paths.dedup_by(|path, parent| path.starts_with(parent));
        let attrs: Vec<u32> = paths.iter().map(|path| self.attr(&path.join("."), at)).collect();
        let attrs = self.refs(&attrs);
        let name = self.text(&policy.name);
        let digest = self.text(&policy.digest.to_string());
        self.rules.policies.push(ruleset::Policy { name, digest, attrs });
        self.policies.push(policy.name.clone());
        len32(self.policies.len().saturating_sub(1))
    }

    fn serve_variant(&mut self, subject: Subject<'a>, key: &str, at: &Place<'_>) -> u32 {
        match self.variant_of(subject.index, subject.definition, key, at) {
            Some(variant) => self.serve_of(ruleset::Serve::Variant(variant)),
            None => 0,
        }
    }

    /// Its absolute index.
    fn variant_of(
        &mut self,
        flag: usize,
        definition: &FlagDefinition,
        key: &str,
        at: &Place<'_>,
    ) -> Option<u32> {
        let start = self.variant_starts.get(flag).copied().unwrap_or(0);
        match definition.variants.get_index_of(key) {
            Some(position) => Some(start.saturating_add(len32(position))),
            None => {
                let message = format!(
                    "flag {:?} has no variant {key:?}; it has {}",
                    definition.key,
                    listed(definition.variants.keys())
                );
                self.problem(at, message);
                None
            }
        }
    }

    fn serve_of(&mut self, serve: ruleset::Serve) -> u32 {
        let identity = match serve {
            ruleset::Serve::Variant(index) => (0, index),
            ruleset::Serve::Split(index) => (1, index),
            ruleset::Serve::Logic(index) => (2, index),
            ruleset::Serve::CodeDefault => (3, 0),
            ruleset::Serve::Next => (4, 0),
            ruleset::Serve::Policy(index) => (5, index),
        };
        let next = len32(self.rules.serves.len());
        let index = *self.serves.entry(identity).or_insert(next);
        if index == next {
            self.rules.serves.push(serve);
        }
        index
    }

    // ── Arenas ──────────────────────────────────────────────────────────────────────────────

    fn text(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return *known;
        }
        // Past the limit nothing is kept: `check_size` refuses the whole, and memory stays bounded.
        if self.rules.text.len() > SNAPSHOT_BYTES_MAX {
            return Text::default();
        }
        let new = Text { start: len32(self.rules.text.len()), len: len32(text.len()) };
        self.rules.text.push_str(text);
        self.texts.insert(text.to_owned(), new);
        new
    }

    fn attr(&mut self, path: &str, at: &Place<'_>) -> u32 {
        self.check_string(path, at);
        if path.is_empty() {
            self.problem(at, "an attribute needs a name, such as targetingKey or app.version");
        }
        if let Some(known) = self.attrs.get(path) {
            return *known;
        }
        let parts: Vec<Text> = path.split('.').map(|part| self.text(part)).collect();
        let first = path.split('.').next().unwrap_or_default();
        let attr = ruleset::Attr {
            path: self.text(path),
            path_hash: crate::context::key_hash(path),
            parts: append(&mut self.rules.attr_parts, parts),
            first_hash: crate::context::key_hash(first),
        };
        let index = len32(self.rules.attrs.len());
        self.rules.attrs.push(attr);
        self.attrs.insert(path.to_owned(), index);
        index
    }

    fn expr(&mut self, expr: ruleset::Expr) -> u32 {
        let index = len32(self.rules.exprs.len());
        self.rules.exprs.push(expr);
        index
    }

    fn refs(&mut self, refs: &[u32]) -> Span {
        append(&mut self.rules.refs, refs.iter().copied())
    }

    // ── Checks that many places need ────────────────────────────────────────────────────────

    fn check_key(&mut self, noun: &str, key: &str, at: &Place<'_>) {
        let bytes = key.len();
        if key.is_empty() {
            self.problem(at, format!("the {noun}'s key is empty"));
        } else if bytes > KEY_BYTES_MAX {
            self.problem(
                at,
                format!("the {noun}'s key is {bytes} bytes long, the limit is {KEY_BYTES_MAX}"),
            );
        } else if let Some(control) = key.chars().find(|c| c.is_control()) {
            self.problem(
                at,
                format!("the {noun}'s key has a control character, U+{:04X}", u32::from(control)),
            );
        }
    }

    fn check_string(&mut self, text: &str, at: &Place<'_>) {
        let bytes = text.len();
        if bytes > STRING_BYTES_MAX {
            self.problem(at, format!("{bytes} bytes of text, the limit is {STRING_BYTES_MAX}"));
        }
    }

    fn check_metadata(&mut self, metadata: &Metadata, at: &Place<'_>) {
        let bytes = render::metadata(&[metadata]).len();
        if bytes > METADATA_BYTES_MAX {
            self.problem(
                at,
                format!("{bytes} bytes of metadata as JSON, the limit is {METADATA_BYTES_MAX}"),
            );
        }
        for (key, value) in metadata {
            let at = at.key(key);
            self.check_key("metadata entry", key, &at);
            match value {
                model::Scalar::Bool(_) => {}
                model::Scalar::String(text) => self.check_string(text, &at),
                model::Scalar::Number(number) => {
                    if let Err(message) = render::check_number(number) {
                        self.problem(&at, message);
                    }
                }
            }
        }
    }

    fn check_condition_steps(&mut self, flags_at: &Place<'_>, segments_at: &Place<'_>) {
        // An error here would be one of `check_whole`, which tells it.
        let Ok(Some(steps)) = self.rules.condition_steps() else { return };
        let message = |expr: u32| {
            let steps = steps.get(expr as usize).copied().unwrap_or(0);
            (steps > CONDITION_STEPS_MAX).then(|| {
                format!(
                    "with the segments inside it the condition takes {steps} steps, the limit is \
                     {CONDITION_STEPS_MAX}; ask for fewer segments, or nest them less"
                )
            })
        };
        for index in 0..self.segments.len() {
            let Some(state) = self.segments.get(index).copied() else { continue };
            let when = self.rules.segments.get(index).map_or(NONE, |segment| segment.when);
            if let Some(message) = message(when) {
                self.owner = Owner::Segment(index);
                self.problem(&segments_at.key(&state.segment.key).key("rules"), message);
            }
        }
        for index in 0..self.flags.len() {
            let Some(state) = self.flags.get(index).copied() else { continue };
            let rules = self.rules.flags.get(index).map(|flag| flag.rules).unwrap_or_default();
            let conditions: Vec<u32> =
                ruleset::slice(&self.rules.rules, rules).iter().map(|rule| rule.when).collect();
            for (position, when) in conditions.into_iter().enumerate() {
                if let Some(message) = message(when) {
                    self.owner = Owner::Flag(index);
                    let flag_at = flags_at.key(&state.definition.key);
                    let config_at = flag_at.key("config");
                    let rules_at = config_at.key("rules");
                    self.problem(&rules_at.index(position).key("when"), message);
                }
            }
        }
        self.owner = Owner::Environment;
    }

    fn check_whole(&mut self) {
        let bytes = crate::blob::encoded_bytes(&self.rules);
        // The manifest shares the blob: names, a thousand keys and the boundaries fit a sixteenth.
        let limit = SNAPSHOT_BYTES_MAX.saturating_sub(SNAPSHOT_BYTES_MAX / 16);
        if bytes > limit {
            self.problem(
                &Place::Root,
                format!("the environment compiles to {bytes} bytes, the limit is {limit}"),
            );
        } else if self.problems.is_empty()
            && let Err(error) = self.rules.check()
        {
            // Not the author's doing, but better told here than by every edge.
            self.problem(
                &Place::Root,
                format!("the compiler made a ruleset that does not load, which is a bug: {error}"),
            );
        }
    }
}

/// Of the flag and of its rules.
fn prerequisites_of(config: &FlagConfig) -> impl Iterator<Item = &model::Prerequisite> {
    config
        .prerequisites
        .iter()
        .chain(config.rules.iter().flat_map(|rule| rule.prerequisites.iter()))
}

/// Names for a message: the first ten.
fn listed<'n>(mut names: impl Iterator<Item = &'n String>) -> String {
    let shown: Vec<String> = names.by_ref().take(10).map(|name| format!("{name:?}")).collect();
    match names.next() {
        _ if shown.is_empty() => "none".to_owned(),
        Some(_) => format!("{} and others", shown.join(", ")),
        None => shown.join(", "),
    }
}

fn append<T>(arena: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Span {
    let start = arena.len();
    arena.extend(items);
    Span { start: len32(start), len: len32(arena.len().saturating_sub(start)) }
}

/// Arenas are bounded by the limits long before this saturates; `Ruleset::check` would see it.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
