//! Whether a module has a shape that may be compiled at all.
//!
//! wasmtime promises nothing about how long compiling takes, and wasmparser's own limits are far
//! too wide (a valid module of 585 KiB took 45 s). So everything that makes a compiler slow is
//! counted here first, and each refusal names the rule, the number found and allowed, and where in
//! the file. Counting and validating go over the file once, side by side; nothing is compiled.

use std::borrow::Cow;
use std::fmt::Display;

use rules::limits::{
    POLICY_BLOCKS_MAX, POLICY_BYTES_MAX, POLICY_DATA_BYTES_MAX, POLICY_EXPORT_BYTES_MAX,
    POLICY_EXPORTS_MAX, POLICY_FUNCTION_BYTES_MAX, POLICY_FUNCTIONS_MAX, POLICY_GLOBALS_MAX,
    POLICY_JUMP_TARGETS_MAX, POLICY_LOCALS_MAX, POLICY_MEMORY_BYTES_MAX, POLICY_NESTING_MAX,
    POLICY_PARAMETERS_MAX, POLICY_RESULTS_MAX, POLICY_SEGMENT_ELEMENTS_MAX, POLICY_SEGMENTS_MAX,
    POLICY_TABLE_ELEMENTS_MAX, POLICY_TYPES_MAX,
};
use serde::{Deserialize, Serialize};
use wasmparser::{
    BinaryReaderError, ElementItems, Encoding, ExternalKind, FuncType, FuncValidatorAllocations,
    FunctionBody, MemoryType, Operator, Parser, Payload, TableType, TypeRef, ValType, ValidPayload,
    Validator, WasmFeatures,
};

/// Declared by a module as its most.
const MEMORY_PAGES: usize = POLICY_MEMORY_BYTES_MAX / 65_536;

/// What a module may use of wasm's proposals. Everything else is off here and in the engine.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::FLOATS)
    // Compilers write the table's number in five bytes since reference types; nothing else of them.
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG);

/// Why a module is not admitted. `rule` is a name for programs, `message` a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{rule}: {message}")]
pub struct Refused {
    pub rule: Cow<'static, str>,
    /// Byte of the file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<usize>,
    pub message: String,
}

impl Refused {
    pub(crate) fn new(rule: &'static str, message: impl Into<String>) -> Refused {
        Refused { rule: Cow::Borrowed(rule), offset: None, message: message.into() }
    }

    fn at(rule: &'static str, offset: usize, message: impl Display) -> Refused {
        Refused {
            rule: Cow::Borrowed(rule),
            offset: Some(offset),
            message: format!("{message} (byte {offset})"),
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub bytes: u64,
    pub functions: u64,
    pub largest_body_bytes: u64,
    pub deepest_nesting: u64,
    pub memory_pages_max: u64,
    pub data_bytes: u64,
    /// Whether it calls the host's `log`.
    pub logs: bool,
}

/// Looks at a module without compiling it.
pub fn check(wasm: &[u8]) -> Result<Shape, Refused> {
    let bytes = wasm.len() as u64;
    if bytes > POLICY_BYTES_MAX as u64 {
        return Err(Refused::new(
            "size",
            format!("the module has {bytes} bytes; {POLICY_BYTES_MAX} are allowed"),
        ));
    }
    let mut check = Check::default();
    check.shape.bytes = bytes;
    check.file(wasm)?;
    Ok(check.shape)
}

#[derive(Default)]
struct Check {
    shape: Shape,
    types: Vec<FuncType>,
    /// The type of each function, imported ones first.
    functions: Vec<u32>,
    exports: Vec<(String, ExternalKind, u32)>,
    /// Entries of tables that instantiating fills in.
    elements: u64,
}

impl Check {
    fn file(&mut self, wasm: &[u8]) -> Result<(), Refused> {
        let mut parser = Parser::new(0);
        parser.set_features(FEATURES);
        let mut validator = Validator::new_with_features(FEATURES);
        let mut allocations = FuncValidatorAllocations::default();
        for payload in parser.parse_all(wasm) {
            let payload = payload.map_err(malformed)?;
            self.payload(&payload)?;
            if let ValidPayload::Func(function, body) =
                validator.payload(&payload).map_err(invalid)?
            {
                let mut function = function.into_validator(allocations);
                function.validate(&body).map_err(invalid)?;
                allocations = function.into_allocations();
            }
        }
        self.abi()
    }

    fn payload(&mut self, payload: &Payload<'_>) -> Result<(), Refused> {
        match payload {
            Payload::Version { encoding: Encoding::Component, range, .. } => Err(Refused::at(
                "component",
                range.start,
                "this is a component; a core module is wanted",
            )),
            Payload::TypeSection(section) => {
                at_most(
                    "types",
                    "types",
                    section.count(),
                    POLICY_TYPES_MAX,
                    section.range().start,
                )?;
                for found in section.clone().into_iter_err_on_gc_types() {
                    let found = found.map_err(|error| broken("feature", &error))?;
                    let at = section.range().start;
                    at_most(
                        "parameters",
                        "parameters of a function",
                        found.params().len(),
                        POLICY_PARAMETERS_MAX,
                        at,
                    )?;
                    at_most(
                        "results",
                        "results of a function",
                        found.results().len(),
                        POLICY_RESULTS_MAX,
                        at,
                    )?;
                    self.types.push(found);
                }
                Ok(())
            }
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports_with_offsets() {
                    let (at, import) = import.map_err(malformed)?;
                    self.import(at, import.module, import.name, import.ty)?;
                }
                Ok(())
            }
            Payload::FunctionSection(section) => {
                at_most(
                    "functions",
                    "functions",
                    section.count(),
                    POLICY_FUNCTIONS_MAX,
                    section.range().start,
                )?;
                self.shape.functions = section.count().into();
                for found in section.clone() {
                    self.functions.push(found.map_err(malformed)?);
                }
                Ok(())
            }
            Payload::TableSection(section) => {
                at_most("tables", "tables", section.count(), 1, section.range().start)?;
                for found in section.clone().into_iter_with_offsets() {
                    let (at, found) = found.map_err(malformed)?;
                    table(at, found.ty)?;
                }
                Ok(())
            }
            Payload::MemorySection(section) => {
                at_most("memories", "memories", section.count(), 1, section.range().start)?;
                for found in section.clone().into_iter_with_offsets() {
                    let (at, found) = found.map_err(malformed)?;
                    self.memory(at, found)?;
                }
                Ok(())
            }
            Payload::TagSection(section) => {
                Err(Refused::at("feature", section.range().start, "exceptions are not allowed"))
            }
            Payload::GlobalSection(section) => at_most(
                "globals",
                "globals",
                section.count(),
                POLICY_GLOBALS_MAX,
                section.range().start,
            ),
            Payload::ExportSection(section) => {
                at_most(
                    "exports",
                    "exports",
                    section.count(),
                    POLICY_EXPORTS_MAX,
                    section.range().start,
                )?;
                for found in section.clone().into_iter_with_offsets() {
                    let (at, found) = found.map_err(malformed)?;
                    at_most(
                        "name",
                        "bytes of an export's name",
                        found.name.len(),
                        POLICY_EXPORT_BYTES_MAX,
                        at,
                    )?;
                    self.exports.push((found.name.to_owned(), found.kind, found.index));
                }
                Ok(())
            }
            Payload::StartSection { range, .. } => Err(Refused::at(
                "start",
                range.start,
                "a start function is not allowed; nothing may run before the host calls",
            )),
            Payload::ElementSection(section) => {
                let at = section.range().start;
                at_most("segments", "element segments", section.count(), POLICY_SEGMENTS_MAX, at)?;
                for found in section.clone() {
                    let found = found.map_err(malformed)?;
                    let count = match &found.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    self.elements = self.elements.saturating_add(count.into());
                    at_most(
                        "elements",
                        "elements of all segments",
                        self.elements,
                        POLICY_SEGMENT_ELEMENTS_MAX,
                        at,
                    )?;
                }
                Ok(())
            }
            Payload::DataCountSection { count, range } => {
                at_most("segments", "data segments", *count, POLICY_SEGMENTS_MAX, range.start)
            }
            Payload::DataSection(section) => {
                let at = section.range().start;
                at_most("segments", "data segments", section.count(), POLICY_SEGMENTS_MAX, at)?;
                for found in section.clone() {
                    let found = found.map_err(malformed)?;
                    let bytes = self.shape.data_bytes.saturating_add(found.data.len() as u64);
                    at_most(
                        "data",
                        "bytes of data",
                        bytes,
                        POLICY_DATA_BYTES_MAX,
                        found.range.start,
                    )?;
                    self.shape.data_bytes = bytes;
                }
                Ok(())
            }
            Payload::CodeSectionStart { count, range, .. } => {
                at_most("functions", "functions", *count, POLICY_FUNCTIONS_MAX, range.start)
            }
            Payload::CodeSectionEntry(body) => self.body(body),
            // Custom sections are cut off before compiling; the rest is the validator's.
            _ => Ok(()),
        }
    }

    fn import(
        &mut self,
        at: usize,
        module: &str,
        name: &str,
        found: TypeRef,
    ) -> Result<(), Refused> {
        // Cut, since the message travels and a name may have 100,000 bytes.
        let shown: String = format!("{module}.{name}").chars().take(80).collect();
        let refused =
            |what: &str| Err(Refused::at("import", at, format_args!("{shown:?}: {what}")));
        if (module, name) != ("tidegate.v1", "log") {
            return refused("only `log` of `tidegate.v1` may be imported");
        }
        let TypeRef::Func(index) = found else { return refused("it is a function") };
        let is_log =
            |ty: &FuncType| ty.params() == [ValType::I32, ValType::I32] && ty.results().is_empty();
        if !self.types.get(index as usize).is_some_and(is_log) {
            return refused("its type is (i32, i32) -> ()");
        }
        if self.shape.logs {
            return refused("it is imported twice");
        }
        self.shape.logs = true;
        self.functions.push(index);
        Ok(())
    }

    fn memory(&mut self, at: usize, found: MemoryType) -> Result<(), Refused> {
        if found.memory64 || found.shared || found.page_size_log2.is_some() {
            let what = "64-bit and shared memories and pages of another size are not allowed";
            return Err(Refused::at("feature", at, what));
        }
        let Some(pages) = found.maximum else {
            let what = format!(
                "the memory declares no maximum; at most {MEMORY_PAGES} pages have to be declared"
            );
            return Err(Refused::at("memory_max", at, what));
        };
        self.shape.memory_pages_max = pages;
        at_most("memory", "pages of memory", pages.max(found.initial), MEMORY_PAGES, at)
    }

    fn body(&mut self, body: &FunctionBody<'_>) -> Result<(), Refused> {
        let range = body.range();
        let bytes = range.len() as u64;
        at_most("body", "bytes of a function", bytes, POLICY_FUNCTION_BYTES_MAX, range.start)?;
        self.shape.largest_body_bytes = self.shape.largest_body_bytes.max(bytes);
        let mut locals = 0u64;
        for group in body.get_locals_reader().map_err(malformed)? {
            let (count, _) = group.map_err(malformed)?;
            locals = locals.saturating_add(count.into());
            at_most("locals", "locals of a function", locals, POLICY_LOCALS_MAX, range.start)?;
        }
        let (mut depth, mut blocks) = (0u64, 0u64);
        for found in body.get_operators_reader().map_err(malformed)?.into_iter_with_offsets() {
            let (operator, at) = found.map_err(malformed)?;
            match operator {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                    depth = depth.saturating_add(1);
                    blocks = blocks.saturating_add(1);
                    at_most("nesting", "blocks within each other", depth, POLICY_NESTING_MAX, at)?;
                    at_most("blocks", "blocks of a function", blocks, POLICY_BLOCKS_MAX, at)?;
                    self.shape.deepest_nesting = self.shape.deepest_nesting.max(depth);
                }
                Operator::End => depth = depth.saturating_sub(1),
                Operator::BrTable { targets } => {
                    at_most(
                        "br_table",
                        "targets of a br_table",
                        targets.len(),
                        POLICY_JUMP_TARGETS_MAX,
                        at,
                    )?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The exports that the host calls, with the types that it calls them with.
    fn abi(&self) -> Result<(), Refused> {
        use ValType::{I32, I64};
        let memory = self.exports.iter().find(|(name, ..)| name == "memory");
        if !memory.is_some_and(|(_, kind, _)| *kind == ExternalKind::Memory) {
            return Err(Refused::new("abi", "the memory has to be exported as `memory`"));
        }
        let wanted: [(&str, &[ValType], &[ValType], &str); 4] = [
            ("tidegate_abi", &[], &[I32], "() -> i32"),
            ("tidegate_alloc", &[I32], &[I32], "(i32) -> i32"),
            ("tidegate_describe", &[], &[I64], "() -> i64"),
            ("evaluate", &[I32, I32], &[I64], "(i32, i32) -> i64"),
        ];
        for (wanted, parameters, results, shown) in wanted {
            let fits = |(name, kind, index): &&(String, ExternalKind, u32)| {
                let ty =
                    self.functions.get(*index as usize).and_then(|ty| self.types.get(*ty as usize));
                name == wanted
                    && *kind == ExternalKind::Func
                    && ty.is_some_and(|ty| ty.params() == parameters && ty.results() == results)
            };
            if self.exports.iter().find(fits).is_none() {
                let what = format!("a function `{wanted}: {shown}` has to be exported");
                return Err(Refused::new("abi", what));
            }
        }
        Ok(())
    }
}

fn table(at: usize, found: TableType) -> Result<(), Refused> {
    if found.table64 || found.shared {
        return Err(Refused::at("feature", at, "64-bit and shared tables are not allowed"));
    }
    let Some(elements) = found.maximum else {
        let what = format!(
            "the table declares no maximum; at most {POLICY_TABLE_ELEMENTS_MAX} elements have to be declared"
        );
        return Err(Refused::at("table_max", at, what));
    };
    at_most(
        "table",
        "elements of the table",
        elements.max(found.initial),
        POLICY_TABLE_ELEMENTS_MAX,
        at,
    )
}

fn at_most(
    rule: &'static str,
    what: &str,
    found: impl TryInto<u64>,
    allowed: usize,
    at: usize,
) -> Result<(), Refused> {
    let found = found.try_into().unwrap_or(u64::MAX);
    if found <= allowed as u64 {
        return Ok(());
    }
    Err(Refused::at(rule, at, format_args!("{found} {what}; {allowed} are allowed")))
}

fn malformed(error: BinaryReaderError) -> Refused {
    broken("malformed", &error)
}

fn invalid(error: BinaryReaderError) -> Refused {
    broken("invalid", &error)
}

fn broken(rule: &'static str, error: &BinaryReaderError) -> Refused {
    let rule = if error.missing_wasm_feature().is_some() { "feature" } else { rule };
    // Messages quote names of the file.
    let message: String = error.message().chars().take(200).collect();
    Refused::at(rule, error.offset(), message)
}
