//! The one table of limits, used by control, edge and SDK alike and published in the OpenAPI.
//!
//! A limit is inclusive: `n` passes, `n + 1` is an error that names the limit.

/// A limit as it is published: under `name`, by control's `/api/v1/limits` and its OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub name: &'static str,
    pub value: u64,
    /// What it is a limit of, as the constant's own comment says.
    pub about: &'static str,
}

macro_rules! limits {
    ($($(#[doc = $about:literal])+ $name:literal $constant:ident: $kind:ty = $value:expr;)+) => {
        $($(#[doc = $about])+ pub const $constant: $kind = $value;)+

        /// Every limit of this file, in its order.
        pub const TABLE: &[Limit] = &[
            $(Limit { name: $name, value: $constant as u64, about: concat!($($about),+) },)+
        ];
    };
}

limits! {
    /// Bytes of a blob (a compiled environment) without its id lists.
    "snapshotBytes" SNAPSHOT_BYTES_MAX: usize = 32 * 1024 * 1024;
    /// Bytes of a signed head.
    "headBytes" HEAD_BYTES_MAX: usize = 4 * 1024;
    /// Flags of one environment.
    "flags" FLAGS_MAX: usize = 10_000;
    /// Rules of one flag in one environment.
    "rulesPerFlag" RULES_PER_FLAG_MAX: usize = 200;
    /// Clauses (leaf conditions) of one rule.
    "clausesPerRule" CLAUSES_PER_RULE_MAX: usize = 50;
    /// Values of one clause.
    "valuesPerClause" VALUES_PER_CLAUSE_MAX: usize = 10_000;
    /// Variants of one flag.
    "variantsPerFlag" VARIANTS_PER_FLAG_MAX: usize = 200;
    /// Prerequisites of one flag or rule.
    "prerequisites" PREREQUISITES_MAX: usize = 50;
    /// Segments of one environment.
    "segments" SEGMENTS_MAX: usize = 10_000;
    /// Ids of one segment list.
    "segmentIds" SEGMENT_IDS_MAX: usize = 1_000_000;
    /// Nesting of conditions, JSONLogic trees, object values and contexts.
    "nesting" NESTING_MAX: usize = 16;
    /// Depth of a chain of prerequisites or of nested segments.
    "chain" CHAIN_MAX: usize = 16;
    /// Steps that one condition may take: its clauses, those of the segments that it asks for, and of
    /// the segments inside these, each as often as it is reached.
    "conditionSteps" CONDITION_STEPS_MAX: usize = 100_000;
    /// Bytes of one string in a configuration.
    "stringBytes" STRING_BYTES_MAX: usize = 8 * 1024;
    /// Bytes of a flag, variant, segment, namespace or environment key.
    "keyBytes" KEY_BYTES_MAX: usize = 256;
    /// Bytes of an object variant's JSON.
    "valueBytes" VALUE_BYTES_MAX: usize = 64 * 1024;
    /// Bytes of the metadata of a flag set, a flag's definition or its origin, as JSON: they are
    /// rendered into every answer.
    "metadataBytes" METADATA_BYTES_MAX: usize = 16 * 1024;
    /// Bytes of a regular expression's source.
    "regexSourceBytes" REGEX_SOURCE_BYTES_MAX: usize = 512;
    /// Bytes of a compiled regular expression.
    "regexCompiledBytes" REGEX_COMPILED_BYTES_MAX: usize = 64 * 1024;
    /// Nesting of groups and classes in a regular expression.
    "regexNesting" REGEX_NESTING_MAX: u32 = 50;
    /// Bytes of a string that a regular expression is run on; a longer one does not match.
    "regexHaystackBytes" REGEX_HAYSTACK_BYTES_MAX: usize = 8 * 1024;
    /// Nodes of one JSONLogic tree.
    "logicNodes" LOGIC_NODES_MAX: usize = 10_000;
    /// Steps that one evaluation of one JSONLogic tree may take (loops over arrays multiply nodes).
    "logicSteps" LOGIC_STEPS_MAX: u32 = 100_000;
    /// Bytes of a CEL condition's source.
    "celBytes" CEL_BYTES_MAX: usize = 4 * 1024;
    /// Nesting of a CEL expression; a chain of operands nests one level for each, but for `&&` and `||`.
    "celNesting" CEL_NESTING_MAX: usize = 32;
    /// Steps that the CEL of one flag may take in one evaluation: a node, an element of a list, or 64
    /// bytes of text.
    "celSteps" CEL_STEPS_MAX: u32 = 100_000;
    /// Bytes of a context as JSON.
    "contextBytes" CONTEXT_BYTES_MAX: usize = 64 * 1024;
    /// Bytes of an evaluation request's body.
    "evaluationBodyBytes" EVALUATION_BODY_BYTES_MAX: usize = 128 * 1024;
    /// Bytes of an admin API body.
    "adminBodyBytes" ADMIN_BODY_BYTES_MAX: usize = 1024 * 1024;
    /// Bytes of an import or of an id list.
    "importBytes" IMPORT_BYTES_MAX: usize = 64 * 1024 * 1024;
    /// Policies of one environment.
    "policies" POLICIES_MAX: usize = 100;
    /// Bytes of a policy's wasm module.
    "policyBytes" POLICY_BYTES_MAX: usize = 256 * 1024;
    /// Attributes that a policy may declare to read.
    "policyAttributes" POLICY_ATTRIBUTES_MAX: usize = 64;
    /// Bytes of the path of an attribute that a policy declares.
    "policyAttributeBytes" POLICY_ATTRIBUTE_BYTES_MAX: usize = 256;
    /// Bytes of a rule's `params` for its policy, as JSON.
    "policyParamsBytes" POLICY_PARAMS_BYTES_MAX: usize = 8 * 1024;
    /// Bytes of the document that one call of a policy gets.
    "policyInputBytes" POLICY_INPUT_BYTES_MAX: usize = 16 * 1024;
    /// Bytes of the answer of one call of a policy.
    "policyOutputBytes" POLICY_OUTPUT_BYTES_MAX: usize = 1024;
    /// Bytes of the reason's text in a policy's answer.
    "policyReasonBytes" POLICY_REASON_BYTES_MAX: usize = 200;
    /// Calls of policies in one evaluation request, however many flags it asks for.
    "policyCalls" POLICY_CALLS_MAX: u32 = 64;
    /// API keys of one environment.
    "keys" KEYS_MAX: usize = 1_000;
    /// The total of a split's weights, if it is written in the native format.
    "splitTotal" SPLIT_TOTAL: u32 = 100_000;
}
