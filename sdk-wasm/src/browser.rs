//! For JavaScript: one environment's rules in one instance, and numbers across the border.
//!
//! No wasm-bindgen: its glue keeps one instance for each script and passes texts, and what is hot
//! here passes none. `npm/src/engine.ts` is the other side, and the only caller.
//!
//! Texts and bytes go in through the place that `buffer` names, and come out at `output`; whoever
//! answers with a `u32` that is a length means bytes there, valid until the next call. A context is
//! taken once, in the compact form of `rules::context`, and asked about often: `evaluate` gets a
//! flag's place in the order of keys and the time, and answers with a code of 32 bits:
//!
//! | code & 15 | is | code >> 4 |
//! |---|---|---|
//! | 0 to 4 | a variant, for the reason of that number | its place in the ruleset |
//! | 5 to 9 | the caller's own default, for the reason of that number less 5 | 0 |
//! | 10 to 15 | an error, of the code of that number less 10 | 0 |
//!
//! `answer` writes the OFREP bytes of the last code; equal codes of one flag that are no errors
//! have equal bytes, so JavaScript asks for them once.
#![allow(unsafe_code)]

#[cfg(not(feature = "full"))]
use alloc::vec::Vec;
use core::cell::UnsafeCell;

use rules::answer;
use rules::context::{Context, key_hash};
use rules::eval::{ErrorCode, Evaluator, FlagId, Input, NoHost, Outcome, Reason, Scratch};

#[derive(Default)]
struct Guest {
    input: Vec<u8>,
    output: Vec<u8>,
    context: Vec<u8>,
    /// Of `context`, and made anew with it.
    view: Option<Context<'static>>,
    evaluator: Option<Evaluator>,
    scratch: Scratch,
    last: Option<(u32, Outcome)>,
}

struct Place(UnsafeCell<Option<Guest>>);

// SAFETY: wasm without threads has one thread.
unsafe impl Sync for Place {}

static GUEST: Place = Place(UnsafeCell::new(None));

fn guest() -> &'static mut Guest {
    // SAFETY: one thread, no imports, so no call begins within another; each export takes it once.
    unsafe { &mut *GUEST.0.get() }.get_or_insert_with(Guest::default)
}

impl Guest {
    fn input(&self, len: usize) -> &[u8] {
        self.input.get(..len).unwrap_or(&self.input)
    }

    fn written(&self) -> usize {
        self.output.len()
    }
}

/// A place for `len` bytes of input.
#[unsafe(no_mangle)]
extern "C" fn buffer(len: usize) -> *mut u8 {
    let guest = guest();
    guest.input.resize(len, 0);
    guest.input.as_mut_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn output() -> *const u8 {
    guest().output.as_ptr()
}

/// Takes the framed ruleset in the buffer; the length of the reason if it cannot, else 0.
#[unsafe(no_mangle)]
extern "C" fn load(len: usize) -> usize {
    let guest = guest();
    guest.output.clear();
    guest.last = None;
    match Evaluator::load(guest.input(len)) {
        Ok(evaluator) => guest.evaluator = Some(evaluator),
        Err(error) => error.write_to(&mut guest.output),
    }
    // A ruleset of megabytes does not stay beside its loaded form.
    guest.input = Vec::new();
    guest.written()
}

/// `[{"key":"…"},…]`, in order.
#[unsafe(no_mangle)]
extern "C" fn flags() -> usize {
    let guest = guest();
    guest.output.clear();
    guest.output.push(b'[');
    if let Some(evaluator) = &guest.evaluator {
        for flag in &evaluator.rules().flags {
            if guest.output.len() > 1 {
                guest.output.push(b',');
            }
            guest.output.extend_from_slice(evaluator.rules().str(flag.json_head).as_bytes());
            guest.output.push(b'}');
        }
    }
    guest.output.push(b']');
    guest.written()
}

/// `rules::context::key_hash` of the text in the buffer.
#[unsafe(no_mangle)]
extern "C" fn hash(len: usize) -> u32 {
    core::str::from_utf8(guest().input(len)).map_or(0, key_hash)
}

/// Takes the compact context in the buffer.
#[unsafe(no_mangle)]
extern "C" fn context(len: usize) {
    let guest = guest();
    guest.view = None;
    core::mem::swap(&mut guest.context, &mut guest.input);
    guest.context.truncate(len);
    let bytes: *const [u8] = guest.context.as_slice();
    // SAFETY: the bytes lie still until the next call of this function, which drops the view first.
    guest.view = Some(Context::from_bytes(unsafe { &*bytes }));
}

#[unsafe(no_mangle)]
extern "C" fn evaluate(flag: u32, now_ms: f64) -> u32 {
    let guest = guest();
    let Some(evaluator) = &guest.evaluator else { return error(ErrorCode::General) };
    let context = guest.view.unwrap_or(Context::from_bytes(&[]));
    let input = Input { context, now_ms: now_ms as i64, host: &NoHost };
    let outcome = evaluator.evaluate(FlagId(flag), &input, &mut guest.scratch);
    let code = match &outcome {
        Outcome::Variant { variant, reason } => variant << 4 | number(*reason),
        Outcome::CodeDefault { reason } | Outcome::Value { reason, .. } => 5 + number(*reason),
        Outcome::Error { code, .. } => error(*code),
    };
    guest.last = Some((flag, outcome));
    code
}

fn number(reason: Reason) -> u32 {
    reason as u32
}

fn error(code: ErrorCode) -> u32 {
    10 + code as u32
}

/// The OFREP answer of the last `evaluate`.
#[unsafe(no_mangle)]
extern "C" fn answer() -> usize {
    let guest = guest();
    guest.output.clear();
    if let (Some(evaluator), Some((flag, outcome))) = (&guest.evaluator, &guest.last) {
        answer::write_outcome(evaluator, FlagId(*flag), outcome, &mut guest.output);
    }
    guest.written()
}

/// The trace of an evaluation, as JSON.
#[cfg(feature = "full")]
#[unsafe(no_mangle)]
extern "C" fn explain(flag: u32, now_ms: f64) -> usize {
    let guest = guest();
    guest.output.clear();
    if let Some(evaluator) = &guest.evaluator {
        let context = guest.view.unwrap_or(Context::from_bytes(&[]));
        let input = Input { context, now_ms: now_ms as i64, host: &NoHost };
        let (_, trace) = evaluator.explain(FlagId(flag), &input, &mut guest.scratch);
        guest.output = serde_json::to_vec(&trace).unwrap_or_default();
    }
    guest.written()
}
