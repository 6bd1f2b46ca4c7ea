//! The raw ABI, version 1: one copy in, one copy out, one instance per thread.
//!
//! `tg_buffer(len)` gives the place of the input, `tg_load` takes a framed ruleset from it,
//! `tg_evaluate` a request. Both answer with `pointer << 32 | length` of bytes that stay valid
//! until the next call. A request is `op u8, audience u8, key_len u16, key, context`, little
//! endian (audience 0: server, 1: browser, 2: browser, at the edge); an answer is `status u16` and
//! the body. A panic aborts, which the host sees as a trap.
#![allow(unsafe_code)]

use std::cell::RefCell;

use rules::answer::{self, Audience, Status};
use rules::context::{Context, ContextBuf};
use rules::eval::{ErrorCode, Evaluator, Host, Input, Scratch};
use rules::limits::POLICY_OUTPUT_BYTES_MAX;
use rules::policy::PolicyFault;

const ABI: u32 = 1;

const ONE: u8 = 1;
const ALL: u8 = 2;
const ONE_JSON: u8 = 3;
const ALL_JSON: u8 = 4;
/// As `ALL`, for audience 2: a guest that does not know that one would take it for a server, and does
/// not know this operation either.
const ALL_AT_EDGE: u8 = 5;

#[link(wasm_import_module = "tidegate")]
unsafe extern "C" {
    fn list_contains(list: u32, ptr: *const u8, len: usize) -> i32;
    /// The length of the answer that it wrote to `out`, or `PolicyFault::code`.
    fn policy(policy: u32, ptr: *const u8, len: usize, out: *mut u8, out_len: usize) -> i32;
    fn policy_refused(policy: u32);
}

struct Outside;

impl Host for Outside {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        // SAFETY: the host reads `len` bytes at `ptr`, which is what a `str` has, and keeps
        // nothing.
        unsafe { list_contains(list, id.as_ptr(), id.len()) != 0 }
    }

    fn policy(&self, index: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        out.resize(POLICY_OUTPUT_BYTES_MAX, 0);
        // SAFETY: the host reads `len` bytes at `ptr`, writes at most `out_len` bytes at `out`,
        // which are that many, and keeps nothing.
        let code =
            unsafe { policy(index, input.as_ptr(), input.len(), out.as_mut_ptr(), out.len()) };
        let answer = usize::try_from(code).map_err(|_| PolicyFault::from_code(code));
        out.truncate(*answer.as_ref().unwrap_or(&0));
        answer.map(|_| ())
    }

    fn policy_refused(&self, index: u32) {
        // SAFETY: a number by value.
        unsafe { policy_refused(index) }
    }
}

#[derive(Default)]
struct Guest {
    input: Vec<u8>,
    output: Vec<u8>,
    scratch: Scratch,
    evaluator: Option<Evaluator>,
}

thread_local! {
    // One thread: wasm without threads has no other, and hosts never share an instance.
    static GUEST: RefCell<Guest> = RefCell::default();
}

#[unsafe(no_mangle)]
extern "C" fn tg_abi() -> u32 {
    ABI
}

/// A place for `len` bytes of input.
#[unsafe(no_mangle)]
extern "C" fn tg_buffer(len: usize) -> *mut u8 {
    GUEST.with_borrow_mut(|guest| {
        guest.input.resize(len, 0);
        guest.input.as_mut_ptr()
    })
}

/// Takes the ruleset that lies in the buffer. The answer is empty, or the text of the error; then
/// what was loaded before stays.
#[unsafe(no_mangle)]
extern "C" fn tg_load(len: usize) -> u64 {
    GUEST.with_borrow_mut(|guest| {
        guest.output.clear();
        // Taken, so that a ruleset of megabytes does not stay beside its loaded form.
        let input = std::mem::take(&mut guest.input);
        match Evaluator::load(input.get(..len).unwrap_or(&input)) {
            Ok(evaluator) => guest.evaluator = Some(evaluator),
            Err(error) => guest.output.extend_from_slice(error.to_string().as_bytes()),
        }
        packed(&guest.output)
    })
}

#[unsafe(no_mangle)]
extern "C" fn tg_evaluate(len: usize, now_ms: i64) -> u64 {
    GUEST.with_borrow_mut(|guest| {
        let Guest { input, output, scratch, evaluator } = guest;
        output.clear();
        output.extend_from_slice(&[0, 0]);
        let request = input.get(..len).unwrap_or(input);
        let status = match (evaluator, Request::parse(request)) {
            (Some(evaluator), Some(request)) => {
                evaluate(evaluator, &request, now_ms, scratch, output)
            }
            (None, _) => answer::write_error("", ErrorCode::General, "nothing is loaded", output),
            (_, None) => answer::write_error("", ErrorCode::General, "malformed request", output),
        };
        if let Some((head, _)) = output.split_first_chunk_mut::<2>() {
            *head = (status as u16).to_le_bytes();
        }
        packed(output)
    })
}

struct Request<'a> {
    op: u8,
    audience: Audience,
    key: &'a str,
    context: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let (&[op, audience, low, high], rest) = bytes.split_first_chunk::<4>()?;
        let (key, context) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        let audience = match audience {
            0 => Audience::Server,
            1 => Audience::Browser,
            2 => Audience::BrowserAtEdge,
            _ => return None,
        };
        Some(Request { op, audience, key: std::str::from_utf8(key).ok()?, context })
    }
}

fn evaluate(
    evaluator: &Evaluator,
    request: &Request<'_>,
    now_ms: i64,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Status {
    let decoded;
    let context = match request.op {
        ONE | ALL | ALL_AT_EDGE => Context::from_bytes_with(request.context, text_of),
        _ => match ContextBuf::from_json(request.context) {
            Ok(context) => {
                decoded = context;
                decoded.view()
            }
            Err(error) => {
                let code = ErrorCode::InvalidContext;
                return answer::write_error(request.key, code, &error.to_string(), out);
            }
        },
    };
    let input = Input { context, now_ms, host: &Outside };
    match request.op {
        ONE | ONE_JSON => {
            answer::write_one(evaluator, request.key, request.audience, &input, scratch, out)
        }
        ALL | ALL_JSON | ALL_AT_EDGE => {
            answer::write_all(evaluator, request.audience, &input, scratch, out);
            Status::Ok
        }
        _ => answer::write_error(request.key, ErrorCode::General, "unknown operation", out),
    }
}

/// As `std::str::from_utf8`, eight bytes at a time where all are ASCII, as they nearly always are: a
/// whole context is looked through for each request.
fn text_of(bytes: &[u8]) -> Option<&str> {
    const BEYOND_ASCII: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = bytes.as_chunks::<8>();
    let all = words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word));
    let all = rest.iter().fold(all, |all, byte| all | u64::from(*byte));
    if all & BEYOND_ASCII != 0 {
        return std::str::from_utf8(bytes).ok();
    }
    // SAFETY: no byte has its highest bit, so all are ASCII, and ASCII is UTF-8.
    Some(unsafe { std::str::from_utf8_unchecked(bytes) })
}

fn packed(bytes: &[u8]) -> u64 {
    (bytes.as_ptr() as u64) << 32 | bytes.len() as u64
}
