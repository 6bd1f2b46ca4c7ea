//! What a rule and its wasm policy say to each other: the input document, the answer, and what can
//! go wrong between them. How a policy is run is the host's business (`eval::Host`).
//!
//! Promises: the input's bytes depend on the ruleset, the context and the time alone, and hold
//! only the attributes that the policy declared; an answer is taken as it stands or not at all.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::answer::write_json_string;
use crate::compile::render;
use crate::context::{Context, Value};
use crate::limits::POLICY_REASON_BYTES_MAX;
use crate::model::TARGETING_KEY;
use crate::ruleset::{Flag, Policy, PolicyCall, Ruleset, Text, slice};

/// Why a call gave no answer. The rule then serves its fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyFault {
    /// The module trapped.
    Trap,
    /// It used up its fuel.
    Fuel,
    /// It ran into its deadline: the one fault that depends on how busy the machine is.
    Deadline,
    /// It asked for more memory than a call may have.
    Memory,
    /// The input is longer than a call may get.
    Input,
    /// What it returned is no piece of its memory, or longer than an answer may be.
    Output,
    /// Nobody was free to run it.
    Busy,
    /// The breaker of the policy is open: it failed too often.
    Open,
    /// The host does not have it, or not yet.
    Unavailable,
    /// The request had called as many policies as one may.
    Calls,
    /// The answer is none that the ABI and the flag allow.
    Answer,
}

impl PolicyFault {
    pub const ALL: [PolicyFault; 11] = [
        PolicyFault::Trap,
        PolicyFault::Fuel,
        PolicyFault::Deadline,
        PolicyFault::Memory,
        PolicyFault::Input,
        PolicyFault::Output,
        PolicyFault::Busy,
        PolicyFault::Open,
        PolicyFault::Unavailable,
        PolicyFault::Calls,
        PolicyFault::Answer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            PolicyFault::Trap => "trap",
            PolicyFault::Fuel => "fuel",
            PolicyFault::Deadline => "deadline",
            PolicyFault::Memory => "memory",
            PolicyFault::Input => "input",
            PolicyFault::Output => "output",
            PolicyFault::Busy => "busy",
            PolicyFault::Open => "open",
            PolicyFault::Unavailable => "unavailable",
            PolicyFault::Calls => "calls",
            PolicyFault::Answer => "answer",
        }
    }

    /// Negative: how a wasm host tells the guest, where a length is not.
    pub fn code(self) -> i32 {
        match self {
            PolicyFault::Trap => -1,
            PolicyFault::Fuel => -2,
            PolicyFault::Deadline => -3,
            PolicyFault::Memory => -4,
            PolicyFault::Input => -5,
            PolicyFault::Output => -6,
            PolicyFault::Busy => -7,
            PolicyFault::Open => -8,
            PolicyFault::Unavailable => -9,
            PolicyFault::Calls => -10,
            PolicyFault::Answer => -11,
        }
    }

    /// A number that no fault has is a host of another age: the policy did not run.
    pub fn from_code(code: i32) -> PolicyFault {
        let known = PolicyFault::ALL.into_iter().find(|fault| fault.code() == code);
        known.unwrap_or(PolicyFault::Unavailable)
    }
}

/// What a call cost and said beside its answer: for traces, which never tell times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The same in every run; none where the call was cut off by the clock.
    pub fuel: Option<u64>,
    pub log: String,
}

/// What a policy decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// An absolute index into `Ruleset::variants`.
    Variant(u32),
    /// No variant has this value; as JSON, written as the flag's type writes it.
    Value(String),
    Abstain,
}

/// `{"flag":…,"type":…,"variants":[…],"targetingKey":…,"attributes":{…},"params":…,"now":…}`
pub(crate) fn write_input(
    rules: &Ruleset,
    flag: &Flag,
    policy: &Policy,
    call: &PolicyCall,
    context: Context<'_>,
    now_ms: i64,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"flag\":");
    write_json_string(rules.str(flag.key), out);
    out.extend_from_slice(b",\"type\":");
    write_json_string(render::type_name(flag.kind), out);
    out.extend_from_slice(b",\"variants\":[");
    for (index, variant) in slice(&rules.variants, flag.variants).iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_json_string(rules.str(variant.key), out);
    }
    out.push(b']');
    // A number is an id to segments and splits as well; anything else identifies nobody.
    match context.get_path(TARGETING_KEY) {
        Some(Value::Str(key)) => {
            out.extend_from_slice(b",\"targetingKey\":");
            write_json_string(key, out);
        }
        Some(Value::Int(key)) => {
            out.extend_from_slice(b",\"targetingKey\":");
            write_json_string(&key.to_string(), out);
        }
        _ => {}
    }
    out.extend_from_slice(b",\"attributes\":");
    write_attributes(rules, policy, context, out);
    out.extend_from_slice(b",\"params\":");
    out.extend_from_slice(rules.str(call.params).as_bytes());
    out.extend_from_slice(b",\"now\":");
    out.extend_from_slice(now_ms.to_string().as_bytes());
    out.push(b'}');
}

/// The compiler sorted the paths by their parts and left out what lies under another, so objects
/// open and close like brackets.
fn write_attributes(rules: &Ruleset, policy: &Policy, context: Context<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut open: &[Text] = &[];
    let mut first = true;
    for attr in slice(&rules.refs, policy.attrs) {
        let Some(attr) = rules.attrs.get(*attr as usize) else { continue };
        let Some(value) = context.get(rules, attr) else { continue };
        let Some((last, parents)) = slice(&rules.attr_parts, attr.parts).split_last() else {
            continue;
        };
        let same = |(one, other): &(&Text, &Text)| rules.str(**one) == rules.str(**other);
        let shared = open.iter().zip(parents).take_while(same).count();
        for _ in shared..open.len() {
            out.push(b'}');
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        for part in parents.iter().skip(shared) {
            write_json_string(rules.str(*part), out);
            out.extend_from_slice(b":{");
        }
        open = parents;
        write_json_string(rules.str(*last), out);
        out.push(b':');
        match value {
            Value::Str(text) => write_json_string(text, out),
            other => out.extend_from_slice(other.to_json().to_string().as_bytes()),
        }
    }
    for _ in open {
        out.push(b'}');
    }
    out.push(b'}');
}

/// A member that is given as null is not left out: null is none of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    #[serde(default, deserialize_with = "given")]
    variant: Option<String>,
    #[serde(default, deserialize_with = "given")]
    value: Option<Json>,
    #[serde(default, deserialize_with = "given")]
    abstain: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    reason: Option<String>,
}

fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// The decision and the reason's text, or what is wrong with the answer.
pub(crate) fn read_answer(
    rules: &Ruleset,
    flag: &Flag,
    bytes: &[u8],
) -> Result<(Decision, Option<String>), String> {
    let answer: Answer = serde_json::from_slice(bytes)
        .map_err(|error| format!("the answer is not one of the ABI: {error}"))?;
    if let Some(reason) = &answer.reason
        && reason.len() > POLICY_REASON_BYTES_MAX
    {
        let bytes = reason.len();
        return Err(format!("a reason of {bytes} bytes, the limit is {POLICY_REASON_BYTES_MAX}"));
    }
    let variants = slice(&rules.variants, flag.variants);
    let absolute = |position: usize| {
        u32::try_from(position).ok().and_then(|position| flag.variants.start.checked_add(position))
    };
    let decision = match (answer.variant, answer.value, answer.abstain) {
        (Some(key), None, None) => variants
            .iter()
            .position(|variant| rules.str(variant.key) == key)
            .and_then(absolute)
            .map(Decision::Variant)
            .ok_or_else(|| format!("the answer names {key:?}, which is no variant"))?,
        (None, Some(value), None) => {
            let text = render::value(flag.kind, &value)?;
            let position = variants.iter().position(|variant| rules.str(variant.value) == text);
            match position.and_then(absolute) {
                Some(variant) => Decision::Variant(variant),
                None => Decision::Value(text),
            }
        }
        (None, None, Some(true)) => Decision::Abstain,
        _ => return Err("an answer has one of variant, value and abstain: true".to_owned()),
    };
    Ok((decision, answer.reason))
}
