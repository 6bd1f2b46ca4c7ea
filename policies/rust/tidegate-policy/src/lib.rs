//! A Tidegate policy in Rust: one function, and a line that exports it.
//!
//! ```
//! use tidegate_policy::{Answer, Input, policy};
//!
//! fn decide(input: &Input) -> Answer {
//!     match input.attribute("user.score").and_then(|score| score.as_f64()) {
//!         Some(score) if score > 3.0 => Answer::variant("review").because("the score is high"),
//!         _ => Answer::abstain(),
//!     }
//! }
//!
//! policy! { reads: ["user.score"], decide: decide }
//! ```
//!
//! The same input has to give the same answer: there is no clock but `input.now_ms`, and no
//! randomness. Every call has a memory of its own, so statics are as they were compiled and nothing
//! has to be freed. A panic is a fault: the rule's fallback is served, and the message is logged.

use serde_json::{Map, Value, json};

pub use serde_json;

/// What the host gives for one evaluation.
pub struct Input {
    /// Key of the flag.
    pub flag: String,
    /// `boolean`, `string`, `integer`, `float` or `object`.
    pub kind: String,
    pub variants: Vec<String>,
    pub targeting_key: Option<String>,
    /// What the rule says after the policy's name; `Null` if nothing.
    pub params: Value,
    /// Milliseconds since 1970, the same for all that one request asks.
    pub now_ms: i64,
    attributes: Value,
}

impl Input {
    /// The attribute at a dotted path that the policy reads; nothing where the context has none.
    pub fn attribute(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.attributes, |at, step| at.get(step))
    }

    fn read(bytes: &[u8]) -> Input {
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(bytes) else {
            panic!("the input is not a JSON object");
        };
        let mut take = |field: &str| fields.remove(field).unwrap_or(Value::Null);
        let text = |value: Value| match value {
            Value::String(text) => Some(text),
            _ => None,
        };
        let variants = match take("variants") {
            Value::Array(names) => names.into_iter().filter_map(text).collect(),
            _ => Vec::new(),
        };
        Input {
            flag: text(take("flag")).unwrap_or_default(),
            kind: text(take("type")).unwrap_or_default(),
            variants,
            targeting_key: text(take("targetingKey")),
            params: take("params"),
            now_ms: take("now").as_i64().unwrap_or_default(),
            attributes: take("attributes"),
        }
    }
}

/// What the policy says.
pub struct Answer(Map<String, Value>);

impl Answer {
    /// This variant of the flag.
    pub fn variant(name: impl Into<String>) -> Answer {
        Answer::of("variant", Value::String(name.into()))
    }

    /// A value of the flag's type.
    pub fn value(value: impl Into<Value>) -> Answer {
        Answer::of("value", value.into())
    }

    /// No opinion: the next rule decides.
    pub fn abstain() -> Answer {
        Answer::of("abstain", Value::Bool(true))
    }

    /// For the trace; cut to the 200 bytes that may travel.
    pub fn because(mut self, reason: impl Into<String>) -> Answer {
        let mut reason: String = reason.into();
        while reason.len() > 200 {
            reason.pop();
        }
        self.0.insert("reason".to_owned(), Value::String(reason));
        self
    }

    fn of(field: &str, value: Value) -> Answer {
        Answer(Map::from_iter([(field.to_owned(), value)]))
    }
}

/// Shown in the trace: 256 bytes of one call. Costs fuel, 1,000 and one for each byte.
pub fn log(text: &str) {
    abi::log(text);
}

/// Exports the policy: the attributes that it reads, at most 64 dotted paths of at most 256 bytes,
/// and the function that decides.
#[macro_export]
macro_rules! policy {
    (reads: [$($path:expr),* $(,)?], decide: $decide:expr $(,)?) => {
        #[unsafe(no_mangle)]
        extern "C" fn tidegate_abi() -> i32 {
            $crate::abi::VERSION
        }
        #[unsafe(no_mangle)]
        extern "C" fn tidegate_alloc(len: usize) -> *mut u8 {
            $crate::abi::alloc(len)
        }
        #[unsafe(no_mangle)]
        extern "C" fn tidegate_describe() -> u64 {
            $crate::abi::describe(&[$($path),*])
        }
        #[unsafe(no_mangle)]
        extern "C" fn evaluate(at: *const u8, len: usize) -> u64 {
            // SAFETY: the host wrote `len` bytes where `tidegate_alloc` told it to, and does nothing
            // until this returns.
            unsafe { $crate::abi::evaluate(at, len, $decide) }
        }
    };
}

/// For the macro.
#[doc(hidden)]
pub mod abi {
    use super::{Answer, Input, Value, json};

    pub const VERSION: i32 = 1;

    pub fn alloc(len: usize) -> *mut u8 {
        // Never freed: the memory is thrown away after the call.
        Vec::leak(vec![0u8; len.max(1)]).as_mut_ptr()
    }

    pub fn describe(attributes: &[&str]) -> u64 {
        packed(json!({ "attributes": attributes }).to_string())
    }

    /// # Safety
    /// `len` bytes at `at` can be read, and nobody writes them meanwhile.
    pub unsafe fn evaluate(at: *const u8, len: usize, decide: impl Fn(&Input) -> Answer) -> u64 {
        std::panic::set_hook(Box::new(|panic| log(&panic.to_string())));
        // SAFETY: the caller says so.
        let input = Input::read(unsafe { std::slice::from_raw_parts(at, len) });
        packed(Value::Object(decide(&input).0).to_string())
    }

    fn packed(text: String) -> u64 {
        let text = text.leak();
        ((text.as_ptr() as u64) << 32) | text.len() as u64
    }

    #[cfg(target_arch = "wasm32")]
    pub fn log(text: &str) {
        #[link(wasm_import_module = "tidegate.v1")]
        unsafe extern "C" {
            #[link_name = "log"]
            fn host_log(at: *const u8, len: usize);
        }
        // SAFETY: the host reads these bytes before it returns.
        unsafe { host_log(text.as_ptr(), text.len().min(256)) }
    }

    /// In the author's own unit tests.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn log(text: &str) {
        eprintln!("{text}");
    }
}

/// For unit tests without a host: an input as the ABI writes it.
pub fn input_of(document: Value) -> Input {
    Input::read(document.to_string().as_bytes())
}

impl Answer {
    /// As the host reads it.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }
}
