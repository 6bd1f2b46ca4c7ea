//! Random modules that mostly get past admission, since what is refused tests nothing behind it.
//!
//! - *around*: wasm-smith writes a function with loads, stores, loops, calls and tables; around it
//!   goes an ABI that answers as it should, so that `evaluate` runs random code on the input.
//! - *kit*: an author kit with its instructions or bytes changed.
//! - *anything*: what wasm-smith makes of any proposal.

use std::path::Path;

use arbitrary::Unstructured;
use wasm_encoder::{BlockType, Encode as _, Function, MemArg, ValType};
use wasm_smith::{Config, Module};
use wasmparser::{ExternalKind, Parser, Payload, TypeRef};

use super::check;

/// splitmix64: the same for the same seed for ever.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, many: u64) -> bool {
        self.next().is_multiple_of(many)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// Small, large, and where something ends.
    fn number(&mut self) -> i64 {
        match self.below(6) {
            0 => self.below(64) as i64,
            1 => self.below(65_536) as i64,
            2 => [-1, 0, 1, 65_535, 65_536, 4_194_304][self.below(6)],
            3 => i64::from(i32::MIN).wrapping_add(self.below(3) as i64),
            4 => 1i64 << self.below(64),
            _ => self.next().cast_signed(),
        }
    }
}

/// Where a module comes from, for the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Around,
    AroundMutated,
    Kit,
    Anything,
}

pub(super) struct Kits(Vec<Vec<u8>>);

impl Kits {
    /// The one in text, and those that somebody built.
    pub(super) fn found() -> Kits {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut kits = vec![wat::parse_file(root.join("policies/wat/policy.wat")).unwrap()];
        for name in ["rust", "assemblyscript", "c"] {
            kits.extend(std::fs::read(root.join(format!("target/policies/{name}.wasm"))));
        }
        Kits(kits)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

pub(super) fn module(random: &mut Random, kits: &Kits) -> Option<(Source, Vec<u8>)> {
    match random.below(16) {
        0 => {
            let bytes = random.bytes(16 * 1024);
            let module = Module::new(Config::default(), &mut Unstructured::new(&bytes)).ok()?;
            Some((Source::Anything, module.to_bytes()))
        }
        1..=7 => Some((Source::Around, around(random)?)),
        8..=9 => {
            let wasm = around(random)?;
            Some((Source::AroundMutated, mutated(random, &wasm)?))
        }
        _ => {
            let kit = kits.0.get(random.below(kits.0.len()))?;
            Some((Source::Kit, mutated(random, kit)?))
        }
    }
}

// ── wasm-smith's code inside an ABI that keeps its promises ─────────────────────────────────────

/// What wasm-smith has to write; `inner` becomes the heart of `evaluate`.
const INNER: &str = r#"(module (func (export "inner") (param i32 i32) (result i64) unreachable))"#;
const LOG: &str = r#"(module (import "tidegate.v1" "log" (func (param i32 i32))))"#;

const DESCRIPTION: &[u8] = br#"{"attributes":["country","user.score"]}"#;
const DESCRIPTION_AT: u32 = 60_000;
/// An answer whose reason is made of what the code computed.
const ANSWER: &[u8] = br#"{"abstain":true,"reason":"................"}"#;
const ANSWER_AT: u32 = 61_000;
const ANSWER_LETTERS_AT: u32 = ANSWER_AT + 26;
const LETTERS: i32 = 16;

fn around(random: &mut Random) -> Option<Vec<u8>> {
    // Where data goes is chosen for a memory of any size; little would find room in a small one.
    let has_data = random.one_in(4);
    let config = Config {
        exports: Some(wat::parse_str(INNER).ok()?),
        available_imports: Some(wat::parse_str(LOG).ok()?),
        allow_start_export: false,
        // Half of them cannot trap, and so reach deeper.
        disallow_traps: random.one_in(2),
        min_memories: 1,
        max_memories: 1,
        memory_max_size_required: true,
        max_tables: 1,
        max_table_elements: 1_000,
        table_max_size_required: true,
        max_data_segments: if has_data { 4 } else { 0 },
        max_memory32_bytes: 4 * 1024 * 1024,
        max_exports: 2,
        max_instructions: [50, 400, 2_000][random.below(3)],
        min_funcs: 3,
        max_tags: 0,
        bulk_memory_enabled: random.one_in(2),
        custom_page_sizes_enabled: false,
        exceptions_enabled: false,
        extended_const_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        reference_types_enabled: false,
        relaxed_simd_enabled: false,
        simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        ..Config::default()
    };
    let bytes = random.bytes(8 * 1024);
    let wasm = Module::new(config, &mut Unstructured::new(&bytes)).ok()?.to_bytes();
    let pages = if has_data { 64 } else { [1, 1, 2, 16, 64][random.below(5)] };
    wrapped(random, &wasm, pages)
}

fn wrapped(random: &mut Random, wasm: &[u8], pages: u8) -> Option<Vec<u8>> {
    let (mut types, mut functions, mut inner, mut logs) = (0, 0, None, None);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.ok()? {
            Payload::TypeSection(section) => types = section.count(),
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Func(_) = import.ok()?.ty {
                        logs.get_or_insert(functions);
                        functions += 1;
                    }
                }
            }
            Payload::FunctionSection(section) => functions += section.count(),
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.ok()?;
                    if export.name == "inner" && export.kind == ExternalKind::Func {
                        inner = Some(export.index);
                    }
                }
            }
            _ => {}
        }
    }
    let inner = inner?;
    let mut sections = Sections::of(wasm)?;

    let i32_ = ValType::I32;
    let i64_ = ValType::I64;
    let signatures: [(&[ValType], ValType); 4] =
        [(&[], i32_), (&[i32_], i32_), (&[], i64_), (&[i32_, i32_], i64_)];
    for (parameters, result) in signatures {
        let mut bytes = vec![0x60];
        parameters.encode(&mut bytes);
        [result].as_slice().encode(&mut bytes);
        sections.add(TYPES, &bytes);
    }
    let bodies = [abi(), alloc(random), describe(), evaluate(random, inner, logs)];
    let names = ["tidegate_abi", "tidegate_alloc", "tidegate_describe", "evaluate"];
    let mut exports = Vec::new();
    5u32.encode(&mut exports);
    "memory".encode(&mut exports);
    exports.extend([2, 0]);
    for (index, (body, name)) in (0u32..).zip(bodies.into_iter().zip(names)) {
        let mut ty = Vec::new();
        (types + index).encode(&mut ty);
        sections.add(FUNCTIONS, &ty);
        let mut code = Vec::new();
        body.into_raw_body().as_slice().encode(&mut code);
        sections.add(CODE, &code);
        name.encode(&mut exports);
        exports.push(0);
        (functions + index).encode(&mut exports);
    }
    sections.replace(EXPORTS, exports);
    sections.replace(MEMORIES, vec![1, 1, pages, 64]);
    for (at, text) in [(DESCRIPTION_AT, DESCRIPTION), (ANSWER_AT, ANSWER)] {
        // Active, in memory 0, at a constant.
        let mut segment = vec![0, 0x41];
        at.cast_signed().encode(&mut segment);
        segment.push(0x0b);
        text.encode(&mut segment);
        sections.add(DATA, &segment);
        if sections.has(DATA_COUNT) {
            sections.add(DATA_COUNT, &[]);
        }
    }
    Some(sections.joined())
}

fn abi() -> Function {
    let mut function = Function::new([]);
    function.instructions().i32_const(1).end();
    function
}

/// One of them is in the middle of what the code writes to, one needs memory to grow.
fn alloc(random: &mut Random) -> Function {
    let mut function = Function::new([]);
    match random.below(4) {
        0 => function.instructions().i32_const(1).memory_grow(0).i32_const(16).i32_shl().end(),
        at => function.instructions().i32_const([0, 64, 1_024, 32_768][at]).end(),
    };
    function
}

fn describe() -> Function {
    let mut function = Function::new([]);
    let packed = i64::from(DESCRIPTION_AT) << 32 | DESCRIPTION.len() as i64;
    function.instructions().i64_const(packed).end();
    function
}

/// Calls the random code and makes an answer of what it gives.
fn evaluate(random: &mut Random, inner: u32, log: Option<u32>) -> Function {
    const RESULT: u32 = 2;
    const LETTER: u32 = 3;
    let mut function = Function::new([(1, ValType::I64), (1, ValType::I32)]);
    let mut code = function.instructions();
    if let Some(log) = log.filter(|_| random.one_in(2)) {
        code.local_get(0).local_get(1).call(log);
    }
    code.local_get(0).local_get(1).call(inner).local_set(RESULT);
    match random.below(8) {
        // As it is: hardly ever a place in memory.
        0 => code.local_get(RESULT).end(),
        // Up to 2,047 bytes somewhere in the first half page, where half are too many.
        1 => code.local_get(RESULT).i64_const(0x7fff_0000_07ff).i64_and().end(),
        _ => {
            let memory = MemArg { offset: ANSWER_LETTERS_AT.into(), align: 0, memory_index: 0 };
            code.loop_(BlockType::Empty)
                .local_get(LETTER)
                .local_get(RESULT)
                .local_get(LETTER)
                .i64_extend_i32_u()
                .i64_const(2)
                .i64_shl()
                .i64_shr_u()
                .i32_wrap_i64()
                .i32_const(15)
                .i32_and()
                .i32_const(97)
                .i32_add()
                .i32_store8(memory)
                .local_get(LETTER)
                .i32_const(1)
                .i32_add()
                .local_tee(LETTER)
                .i32_const(LETTERS)
                .i32_lt_u()
                .br_if(0)
                .end()
                .i64_const(i64::from(ANSWER_AT) << 32 | ANSWER.len() as i64)
                .end()
        }
    };
    function
}

// ── Changing a module ───────────────────────────────────────────────────────────────────────────

/// Some are refused all the same; a few tries let most through.
const TRIES: usize = 4;

fn mutated(random: &mut Random, wasm: &[u8]) -> Option<Vec<u8>> {
    let mut tried = changed(random, wasm);
    for _ in 1..TRIES {
        if tried.as_ref().is_some_and(|wasm| check(wasm).is_ok()) {
            break;
        }
        tried = changed(random, wasm);
    }
    tried
}

fn changed(random: &mut Random, wasm: &[u8]) -> Option<Vec<u8>> {
    if random.one_in(4) {
        let mut wasm = wasm.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(wasm.len());
            *wasm.get_mut(at)? = random.next() as u8;
        }
        return Some(wasm);
    }
    let mut bodies = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::CodeSectionEntry(body) = payload.ok()? {
            let start = body.range().start;
            let mut starts = Vec::new();
            for operator in body.get_operators_reader().ok()?.into_iter_with_offsets() {
                starts.push(operator.ok()?.1 - start);
            }
            bodies.push((wasm.get(body.range())?.to_vec(), starts));
        }
    }
    for _ in 0..=random.below(3) {
        let count = bodies.len();
        let (body, starts) = bodies.get_mut(random.below(count))?;
        change(random, body, starts, count);
    }
    let mut code = Vec::new();
    (bodies.len() as u32).encode(&mut code);
    for (body, _) in &bodies {
        body.as_slice().encode(&mut code);
    }
    let mut sections = Sections::of(wasm)?;
    sections.replace(CODE, code);
    Some(sections.joined())
}

/// Opcodes of one type, so that one in place of another leaves the function valid.
const ALIKE: &[std::ops::RangeInclusive<u8>] = &[
    0x28..=0x28,
    0x2c..=0x2f,
    0x30..=0x35,
    0x3a..=0x3b,
    0x3c..=0x3e,
    0x46..=0x4f,
    0x51..=0x5a,
    0x5b..=0x60,
    0x61..=0x66,
    0x67..=0x69,
    0x6a..=0x78,
    0x79..=0x7b,
    0x7c..=0x8a,
    0x8b..=0x91,
    0x92..=0x98,
    0x99..=0x9f,
    0xa0..=0xa6,
];

/// One operator: another one, one less, one twice, or something of ours in front of it. Where the
/// others begin is kept up to date.
fn change(random: &mut Random, body: &mut Vec<u8>, starts: &mut [usize], functions: usize) {
    // Not the last one, which ends the function.
    let which = random.below(starts.len().saturating_sub(1));
    let (Some(&start), Some(&end)) = (starts.get(which), starts.get(which + 1)) else { return };
    let operator = body[start..end].to_vec();
    let alike = ALIKE.iter().find(|range| range.contains(&operator[0]));
    let new = match (operator[0], alike) {
        (0x41, _) if !random.one_in(4) => constant(0x41, i64::from(random.number() as i32)),
        (0x42, _) if !random.one_in(4) => constant(0x42, random.number()),
        // A branch to another block, a call of another function, another local.
        (0x0c | 0x0d | 0x10 | 0x20..=0x24, _) if random.one_in(2) && operator.len() == 2 => {
            let bound = if operator[0] == 0x10 { functions } else { 8 };
            vec![operator[0], random.below(bound.min(100)) as u8]
        }
        (opcode, Some(range)) if !random.one_in(4) => {
            let span = usize::from(range.end() - range.start()) + 1;
            let mut new = operator;
            new[0] = range.start() + random.below(span) as u8;
            if (0x28..=0x3e).contains(&opcode) {
                // An access that is narrower must not claim more alignment.
                new[1] = 0;
            }
            new
        }
        _ => match random.below(16) {
            0 => Vec::new(),
            1 => [operator.clone(), operator].concat(),
            _ => [intruder(random), operator].concat(),
        },
    };
    let shift = new.len().wrapping_sub(end - start);
    body.splice(start..end, new);
    for later in starts.iter_mut().skip(which + 1) {
        *later = later.wrapping_add(shift);
    }
}

fn constant(opcode: u8, value: i64) -> Vec<u8> {
    let mut bytes = vec![opcode];
    value.encode(&mut bytes);
    bytes
}

/// Leaves the stack as it found it, so it may stand anywhere.
fn intruder(random: &mut Random) -> Vec<u8> {
    let number = |random: &mut Random| constant(0x41, i64::from(random.number() as i32));
    let (a, b, c) = (number(random), number(random), number(random));
    let drop = 0x1a;
    match random.below(12) {
        0 => [&a[..], &[0x40, 0, drop]].concat(),
        // A loop without an end.
        1 => vec![0x03, 0x40, 0x0c, 0, 0x0b],
        // One that begins again as long as a byte is something else than 0.
        2 => [&[0x03, 0x40], &a[..], &[0x2d, 0, 0, 0x0d, 0, 0x0b]].concat(),
        3 => [&a, &b, &c, &[0xfc, 11, 0][..]].concat(),
        4 => [&a, &b, &c, &[0xfc, 10, 0, 0][..]].concat(),
        5 => [&a[..], &[0x28, 0, 0, drop]].concat(),
        6 => [&a[..], &b, &[0x36, 0, 0]].concat(),
        7 => [&a[..], &constant(0x42, random.number()), &[0x37, 0, 0]].concat(),
        8 => [&a[..], &b, &[0x6d, drop]].concat(),
        9 => vec![0x3f, 0, drop],
        10 => [&a[..], &[0xb2, 0xa8, drop]].concat(),
        _ => vec![0x00],
    }
}

// ── Sections ────────────────────────────────────────────────────────────────────────────────────

const TYPES: u8 = 1;
const FUNCTIONS: u8 = 3;
const MEMORIES: u8 = 5;
const EXPORTS: u8 = 7;
const CODE: u8 = 10;
const DATA: u8 = 11;
const DATA_COUNT: u8 = 12;

/// A module as its sections' bytes, in their order.
struct Sections(Vec<(u8, Vec<u8>)>);

impl Sections {
    fn of(wasm: &[u8]) -> Option<Sections> {
        let mut rest = wasm.get(8..)?;
        let mut sections = Vec::new();
        while let Some((id, after)) = rest.split_first() {
            let (len, after) = unsigned(after)?;
            let (body, after) = after.split_at_checked(len as usize)?;
            sections.push((*id, body.to_vec()));
            rest = after;
        }
        Some(Sections(sections))
    }

    fn has(&self, wanted: u8) -> bool {
        self.0.iter().any(|(id, _)| *id == wanted)
    }

    /// One item more behind the others; the section comes last if there was none.
    fn add(&mut self, wanted: u8, item: &[u8]) {
        if !self.has(wanted) {
            self.0.push((wanted, vec![0]));
        }
        for (_, body) in self.0.iter_mut().filter(|(id, _)| *id == wanted) {
            let Some((count, items)) = unsigned(body) else { continue };
            let mut new = Vec::with_capacity(body.len() + item.len() + 1);
            (count + 1).encode(&mut new);
            new.extend_from_slice(items);
            new.extend_from_slice(item);
            *body = new;
        }
    }

    fn replace(&mut self, wanted: u8, new: Vec<u8>) {
        for (_, body) in self.0.iter_mut().filter(|(id, _)| *id == wanted) {
            body.clone_from(&new);
        }
    }

    fn joined(&self) -> Vec<u8> {
        let mut wasm = b"\0asm\x01\0\0\0".to_vec();
        for (id, body) in &self.0 {
            wasm.push(*id);
            body.as_slice().encode(&mut wasm);
        }
        wasm
    }
}

/// LEB128.
fn unsigned(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (mut value, mut shift) = (0u32, 0u32);
    for (at, byte) in bytes.iter().enumerate() {
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}
