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
    /// Tags of one flag.
    "tagsPerFlag" TAGS_PER_FLAG_MAX: usize = 100;
    /// Arms of one split.
    "armsPerSplit" ARMS_PER_SPLIT_MAX: usize = 200;
    /// Attributes that one split tries for its unit.
    "unitsPerSplit" UNITS_PER_SPLIT_MAX: usize = 16;
    /// Further hashes, `allOf`, of one split.
    "shardsPerSplit" SHARDS_PER_SPLIT_MAX: usize = 16;
    /// Parts of the input of one hash.
    "partsPerHash" PARTS_PER_HASH_MAX: usize = 16;
    /// Ranges of one arm, or of one of the further hashes of a split.
    "rangesPerArm" RANGES_PER_ARM_MAX: usize = 10_000;
    /// The sum of the weights of the `arms` of one split.
    "splitWeights" SPLIT_WEIGHTS_MAX: u32 = 2_147_483_646;
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
    /// Fuel of one call of a policy: about one unit an instruction, and one a byte of bulk memory.
    "policyFuel" POLICY_FUEL_MAX: u64 = 1_000_000;
    /// Milliseconds of a processor's time of one call of a policy.
    "policyDeadlineMs" POLICY_DEADLINE_MS_MAX: u64 = 5;
    /// Milliseconds of real time of one call of a policy: the one limit that depends on how busy a
    /// machine is.
    "policyWallMs" POLICY_WALL_MS_MAX: u64 = 50;
    /// Bytes of memory of one call of a policy, in pages of 64 KiB; a module declares no more.
    "policyMemoryBytes" POLICY_MEMORY_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Bytes of stack of one call of a policy.
    "policyStackBytes" POLICY_STACK_BYTES_MAX: usize = 512 * 1024;
    /// Bytes that are kept of what one call of a policy logs.
    "policyLogBytes" POLICY_LOG_BYTES_MAX: usize = 256;
    /// Uses of the host's functions by one call of a policy.
    "policyHostCalls" POLICY_HOST_CALLS_MAX: u32 = 64;
    /// Fuel that each use of a host's function costs, and one unit more for each byte it hands over.
    "policyHostCallFuel" POLICY_HOST_CALL_FUEL: u64 = 1_000;
    /// Calls of policies that run at once in one process; the next one is told that it is busy.
    "policyCallsAtOnce" POLICY_CALLS_AT_ONCE_MAX: u32 = 64;
    /// Test vectors that a policy is uploaded with.
    "policyVectors" POLICY_VECTORS_MAX: usize = 100;
    /// Functions of a policy's module.
    "policyFunctions" POLICY_FUNCTIONS_MAX: usize = 4_000;
    /// Bytes of the body of a function of a policy.
    "policyFunctionBytes" POLICY_FUNCTION_BYTES_MAX: usize = 32 * 1024;
    /// Locals of a function of a policy, without its parameters.
    "policyLocals" POLICY_LOCALS_MAX: usize = 512;
    /// Nesting of blocks, loops and ifs in a function of a policy.
    "policyNesting" POLICY_NESTING_MAX: usize = 128;
    /// Blocks, loops and ifs of a function of a policy.
    "policyBlocks" POLICY_BLOCKS_MAX: usize = 2_000;
    /// Targets of a jump table (`br_table`) of a policy.
    "policyJumpTargets" POLICY_JUMP_TARGETS_MAX: usize = 512;
    /// Elements of a policy's table of functions.
    "policyTableElements" POLICY_TABLE_ELEMENTS_MAX: usize = 1_024;
    /// Globals of a policy's module.
    "policyGlobals" POLICY_GLOBALS_MAX: usize = 1_000;
    /// Bytes of all data segments of a policy's module.
    "policyDataBytes" POLICY_DATA_BYTES_MAX: usize = 64 * 1024;
    // From here on: each bounds work that neither fuel nor the deadline sees, because the host does
    // it while it compiles or instantiates.
    /// Data segments of a policy's module, and as many element segments.
    "policySegments" POLICY_SEGMENTS_MAX: usize = 1_024;
    /// Entries of all element segments of a policy's module.
    "policySegmentElements" POLICY_SEGMENT_ELEMENTS_MAX: usize = 4_096;
    /// Types of a policy's module.
    "policyTypes" POLICY_TYPES_MAX: usize = 1_000;
    /// Parameters of a function of a policy.
    "policyParameters" POLICY_PARAMETERS_MAX: usize = 64;
    /// Results of a function of a policy.
    "policyResults" POLICY_RESULTS_MAX: usize = 16;
    /// Exports of a policy's module.
    "policyExports" POLICY_EXPORTS_MAX: usize = 64;
    /// Bytes of the name of an export of a policy's module.
    "policyExportBytes" POLICY_EXPORT_BYTES_MAX: usize = 256;
    /// API keys of one environment.
    "keys" KEYS_MAX: usize = 1_000;
    /// The total of a split's weights, if it is written in the native format.
    "splitTotal" SPLIT_TOTAL: u32 = 100_000;
}
