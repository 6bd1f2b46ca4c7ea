//! The one table of limits, used by control, edge and SDK alike and published in the OpenAPI.
//!
//! A limit is inclusive: `n` passes, `n + 1` is an error that names the limit.

/// Bytes of a blob (a compiled environment) without its id lists.
pub const SNAPSHOT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of a signed head.
pub const HEAD_BYTES_MAX: usize = 4 * 1024;
/// Flags of one environment.
pub const FLAGS_MAX: usize = 10_000;
/// Rules of one flag in one environment.
pub const RULES_PER_FLAG_MAX: usize = 200;
/// Clauses (leaf conditions) of one rule.
pub const CLAUSES_PER_RULE_MAX: usize = 50;
/// Values of one clause.
pub const VALUES_PER_CLAUSE_MAX: usize = 10_000;
/// Variants of one flag.
pub const VARIANTS_PER_FLAG_MAX: usize = 200;
/// Prerequisites of one flag or rule.
pub const PREREQUISITES_MAX: usize = 50;
/// Segments of one environment.
pub const SEGMENTS_MAX: usize = 10_000;
/// Ids of one segment list.
pub const SEGMENT_IDS_MAX: usize = 1_000_000;
/// Nesting of conditions, JSONLogic trees, object values and contexts.
pub const NESTING_MAX: usize = 16;
/// Depth of a chain of prerequisites or of nested segments.
pub const CHAIN_MAX: usize = 16;
/// Steps that one condition may take: its clauses, those of the segments that it asks for, and of
/// the segments inside these, each as often as it is reached.
pub const CONDITION_STEPS_MAX: usize = 100_000;
/// Bytes of one string in a configuration.
pub const STRING_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a flag, variant, segment, namespace or environment key.
pub const KEY_BYTES_MAX: usize = 256;
/// Bytes of an object variant's JSON.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the metadata of a flag set, a flag's definition or its origin, as JSON: they are
/// rendered into every answer.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a regular expression's source.
pub const REGEX_SOURCE_BYTES_MAX: usize = 512;
/// Bytes of a compiled regular expression.
pub const REGEX_COMPILED_BYTES_MAX: usize = 64 * 1024;
/// Nesting of groups and classes in a regular expression.
pub const REGEX_NESTING_MAX: u32 = 50;
/// Bytes of a string that a regular expression is run on; a longer one does not match.
pub const REGEX_HAYSTACK_BYTES_MAX: usize = 8 * 1024;
/// Nodes of one JSONLogic tree.
pub const LOGIC_NODES_MAX: usize = 10_000;
/// Steps that one evaluation of one JSONLogic tree may take (loops over arrays multiply nodes).
pub const LOGIC_STEPS_MAX: u32 = 100_000;
/// Bytes of a context as JSON.
pub const CONTEXT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an evaluation request's body.
pub const EVALUATION_BODY_BYTES_MAX: usize = 128 * 1024;
/// Bytes of an admin API body.
pub const ADMIN_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an import or of an id list.
pub const IMPORT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Policies of one environment.
pub const POLICIES_MAX: usize = 100;
/// API keys of one environment.
pub const KEYS_MAX: usize = 1_000;
/// The total of a split's weights, if it is written in the native format.
pub const SPLIT_TOTAL: u32 = 100_000;
