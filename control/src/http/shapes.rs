//! The shapes of what is asked and answered as the description of the API (`/api/v1/openapi.json`)
//! tells them, where the JSON itself is written or read elsewhere: by a domain file's `state`, by
//! `rules::model`.
//!
//! Nothing here is ever made. That the answers are so is held by schemathesis (`e2e/tests/
//! schemathesis.rs`): a field that is answered and not told here fails it.
#![allow(dead_code, reason = "these are described, not made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::lifecycle::Stale;

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Namespace {
    key: String,
    /// For people; may be empty.
    name: String,
    version: i64,
    /// RFC 3339, as all times.
    created_at: String,
    updated_at: String,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamespacePage {
    items: Vec<Namespace>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Environment {
    key: String,
    /// For people; may be empty.
    name: String,
    generation: i64,
    /// The ETag: raised by every change of what the environment serves.
    revision: i64,
    /// The newest revision that edges can have; null before the first.
    published: Option<PublishedRevision>,
    created_at: String,
    updated_at: String,
    /// Why this revision is not published.
    rejected: Option<String>,
    /// Of one environment: how far its revision has come.
    live: Option<LiveAtEdges>,
    /// Of one environment: its newest staged rollout.
    rollout: Option<StagedRollout>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishedRevision {
    generation: Option<i64>,
    revision: i64,
    at: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LiveAtEdges {
    everywhere: bool,
    /// That were heard of lately.
    edges: i64,
    serving: i64,
    rejected: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EnvironmentPage {
    items: Vec<Environment>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StagedRollout {
    /// `running`, `halted` or `done`.
    state: String,
    generation: i64,
    revision: i64,
    previous: Version,
    /// Of the edges that may have it.
    stage_percent: f64,
    /// Why it is halted.
    reason: Option<String>,
    began_at: String,
    ended_at: Option<String>,
    seconds: f64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    generation: i64,
    revision: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum FlagKind {
    Boolean,
    String,
    Integer,
    Float,
    Object,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum FlagClients {
    None,
    Edge,
    Local,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum FlagLifetime {
    Temporary,
    Permanent,
}

/// What a flag is, as it is written and as it is shown: serde's `flatten` would let unknown fields in.
macro_rules! flag {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(ToSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            /// 1 to 256 bytes.
            key: String,
            #[serde(rename = "type")]
            kind: FlagKind,
            /// Name to value, each of the type.
            variants: BTreeMap<String, Value>,
            #[serde(default)]
            description: String,
            /// `none` where it is left out.
            #[serde(default)]
            clients: Option<FlagClients>,
            /// Booleans, numbers and strings.
            #[serde(default)]
            metadata: BTreeMap<String, Value>,
            #[serde(default)]
            #[schema(max_items = 100)]
            tags: Vec<String>,
            #[serde(default)]
            owner: String,
            /// `temporary` where it is left out.
            #[serde(default)]
            lifetime: Option<FlagLifetime>,
            /// A day, as 2027-01-31.
            #[serde(default)]
            expected_end: Option<String>,
            #[serde(default)]
            archived: bool,
            #[serde(default)]
            salt: Option<String>,
            $($own)*
        }
    };
}

flag! {
    /// What a flag is in all environments (docs/RULES.md).
    FlagDefinition {}
}

flag! {
    /// A flag's definition, with its version and times.
    Flag {
        version: i64,
        created_at: String,
        updated_at: String,
        /// Of a list, and of one that is read: why it looks as if nobody needed it; empty: it does not.
        stale: Option<Vec<Stale>>,
        /// To the minute: when an edge or a browser evaluated it last, in any environment.
        last_evaluated_at: Option<String>,
    }
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FlagPage {
    items: Vec<Flag>,
    next_cursor: Option<String>,
}

/// What a flag does in one environment (docs/RULES.md).
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FlagConfig {
    enabled: bool,
    /// The variant that is served while it is off; without it, the caller's own default.
    #[serde(default)]
    off: Option<String>,
    #[serde(default)]
    prerequisites: Vec<FlagPrerequisite>,
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    rules: Vec<Value>,
    /// `"codeDefault"`, `{"variant": …}`, `{"split": …}` or `{"logic": …}`.
    fallthrough: Value,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    origin: Option<Value>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FlagPrerequisite {
    flag: String,
    /// One of them has to be served.
    variants: Vec<String>,
    /// `off`, `offAsDefault` or `fail`.
    #[serde(default)]
    on_fail: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConfiguredFlag {
    key: String,
    definition: Flag,
    config: FlagConfig,
    /// Of the configuration, and the ETag; 0: nobody has said anything yet, and it is off.
    version: i64,
    updated_at: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConfiguredFlagPage {
    items: Vec<ConfiguredFlag>,
    next_cursor: Option<String>,
}

/// A segment as it is written (docs/RULES.md).
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SegmentDefinition {
    key: String,
    #[serde(default)]
    description: String,
    /// The attribute that the id lists hold; the targeting key unless given.
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    rules: Vec<Value>,
    /// At most 10,000; longer lists go up by themselves. Left out: the list stays.
    #[serde(default)]
    included: Option<Vec<String>>,
    #[serde(default)]
    excluded: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Segment {
    key: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    rules: Vec<Value>,
    /// If there are any, and no more than 10,000.
    #[serde(default)]
    included: Option<Vec<String>>,
    #[serde(default)]
    excluded: Option<Vec<String>>,
    #[serde(default)]
    included_count: Option<i64>,
    #[serde(default)]
    excluded_count: Option<i64>,
    version: i64,
    created_at: String,
    updated_at: String,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SegmentPage {
    items: Vec<Segment>,
    next_cursor: Option<String>,
}

/// What an edge reported of one environment.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EdgeReport {
    edge: String,
    edge_key: String,
    namespace: String,
    environment: String,
    status: EdgeStatus,
    generation: i64,
    revision: i64,
    /// SHA-256 of the snapshot that it serves.
    digest: String,
    /// The newest format that it reads.
    reader: i64,
    published_revision: Option<i64>,
    /// What it refused, and why.
    rejected: Value,
    last_seen: String,
    age_seconds: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EdgeStatus {
    Live,
    /// It has an older revision than the published one.
    Behind,
    /// So, because a staged rollout has not come to it.
    Waiting,
    /// It refused the newest snapshot.
    Rejected,
    /// Not heard of lately.
    Silent,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EdgeReportPage {
    items: Vec<EdgeReport>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edge {
    edge: String,
    edge_key: String,
    last_seen: Option<String>,
    /// Null without etcd, and while that cannot be read.
    registration: Option<EdgeRegistration>,
    environments: Vec<EdgeReport>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EdgeRegistration {
    registered: bool,
    /// Since when it is so.
    since: Option<String>,
    started_at: Option<String>,
    version: Option<String>,
    address: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EdgePage {
    items: Vec<Edge>,
    next_cursor: Option<String>,
}

/// What was found to differ.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Drift {
    id: i64,
    namespace: Option<String>,
    environment: Option<String>,
    kind: String,
    subject: String,
    detail: String,
    found_at: String,
    mended_at: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DriftPage {
    items: Vec<Drift>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FlagUsage {
    flag: String,
    environment: String,
    /// `minute` or `hour`.
    bucket: String,
    from: String,
    to: String,
    last_evaluated_at: Option<String>,
    totals: Vec<FlagUsageTotal>,
    buckets: Vec<FlagUsageBucket>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FlagUsageTotal {
    /// Null: the caller's own default was served.
    variant: Option<String>,
    /// `server` or `browser`.
    source: String,
    count: i64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FlagUsageBucket {
    /// When it begins.
    at: String,
    variant: Option<String>,
    source: String,
    count: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Imported {
    dry_run: bool,
    flags: Vec<ImportedFlag>,
    /// Fields of the document that its format does not know and nothing was made of, as JSON pointers.
    #[schema(max_items = 100)]
    ignored: Vec<String>,
    /// How many such fields there are beyond those.
    ignored_more: u64,
    /// That the environment is at, if anything was changed.
    revision: Option<i64>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportedFlag {
    flag: String,
    result: ImportResult,
    /// Why it was refused, and the place in the document.
    reason: Option<String>,
    pointer: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ImportResult {
    Created,
    Changed,
    Unchanged,
    Refused,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TryOut {
    /// All of them unless given.
    #[serde(default)]
    flag: Option<String>,
    #[schema(value_type = Object)]
    context: Value,
    /// RFC 3339; now unless given.
    #[serde(default)]
    now: Option<String>,
    #[serde(default)]
    draft: Option<TryOutDraft>,
}

/// In the place of what is live, of the flag that is asked for.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TryOutDraft {
    #[serde(default)]
    definition: Option<FlagDefinition>,
    #[serde(default)]
    config: Option<FlagConfig>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TriedOut {
    /// Each as OFREP answers it, with the `trace` of how it came about.
    #[schema(value_type = Vec<Object>)]
    results: Vec<Value>,
}
