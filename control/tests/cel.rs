//! CEL from its text to an answer: the parser of control, and the compiler and evaluator of `rules`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use control::cel::parse;
use proptest::prelude::*;
use rules::cel::{Expression, Mistake, Tree, Val};
use rules::compile::{Compiled, EnvironmentState, FlagState, Problem, compile_with};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, NoHost, Outcome, Scratch};
use rules::limits;
use rules::trace::Step;
use serde_json::{Value, json};

/// 2026-03-01T12:00:00Z
const NOW_MS: i64 = 1_772_366_400_000;

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn state(when: &Value) -> EnvironmentState {
    let definition = json!({ "key": "f", "type": "boolean",
        "variants": { "on": true, "off": false } });
    let config = json!({ "enabled": true, "fallthrough": { "variant": "off" },
        "rules": [{ "id": "r", "when": when, "serve": { "variant": "on" } }] });
    let flag = FlagState {
        definition: serde_json::from_value(definition).unwrap(),
        config: serde_json::from_value(config).unwrap(),
    };
    EnvironmentState { flags: vec![flag], ..EnvironmentState::default() }
}

fn compiled(when: &Value) -> Result<Compiled, Vec<Problem>> {
    compile_with(&state(when), &parse)
}

fn cel(source: &str) -> Result<Compiled, Vec<Problem>> {
    compiled(&json!({ "cel": source }))
}

/// Whether the rule matches, and what the trace says of its CEL.
fn asked(compiled: Compiled, context: &Value) -> (bool, Vec<Step>) {
    let evaluator = Evaluator::new(compiled.ruleset).unwrap();
    let context = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms: NOW_MS, host: &NoHost };
    let flag = evaluator.flag("f").unwrap();
    let mut scratch = Scratch::default();
    let (outcome, trace) = evaluator.explain(flag, &input, &mut scratch);
    assert_eq!(outcome, evaluator.evaluate(flag, &input, &mut scratch));
    let Outcome::Variant { variant, .. } = outcome else { panic!("{outcome:?}") };
    let on = evaluator.rules().str(evaluator.rules().variants[variant as usize].key) == "on";
    (on, trace.steps)
}

#[track_caller]
fn matches(source: &str, context: &Value) -> bool {
    let compiled = cel(source).unwrap_or_else(|problems| panic!("{source}: {problems:#?}"));
    asked(compiled, context).0
}

#[track_caller]
fn refused(source: &str) -> String {
    let problems = cel(source).expect_err(source);
    for problem in &problems {
        assert_eq!(problem.pointer, "/flags/f/config/rules/0/when/cel", "{problem:?}");
    }
    problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_example_of_the_design_is_decided() {
    let source = "user.score > 0.7 && 'vip' in user.groups";
    assert!(matches(source, &json!({ "user": { "score": 0.8, "groups": ["new", "vip"] } })));
    assert!(!matches(source, &json!({ "user": { "score": 0.7, "groups": ["vip"] } })));
    assert!(!matches(source, &json!({ "user": { "score": 1, "groups": "vip" } })));
    assert!(!matches(source, &json!({})));
}

/// Each condition in CEL and the tree that says the same: they are the same expression.
#[test]
fn cel_and_the_equivalent_condition_compile_to_the_same_expression() {
    let scalar = json!({ "array": "scalar" });
    let is = |attr: &str, op: &str, value: Value| json!({ "attr": attr, "op": op, "value": value, "policy": scalar });
    let of_type = |attr: &str, name: &str| json!({ "attr": attr, "op": "type_is", "value": name });
    let pairs = [
        ("country == 'DE'", is("country", "eq", json!("DE"))),
        ("'DE' == country", is("country", "eq", json!("DE"))),
        ("country != \"DE\"", is("country", "not_eq", json!("DE"))),
        ("!(country == 'DE')", is("country", "not_eq", json!("DE"))),
        ("!(country != 'DE')", is("country", "eq", json!("DE"))),
        ("age == 18", is("age", "eq", json!(18))),
        ("age == 18.5", is("age", "eq", json!(18.5))),
        ("beta == true", is("beta", "eq", json!(true))),
        ("beta", is("beta", "eq", json!(true))),
        ("!beta", is("beta", "eq", json!(false))),
        ("app.version in ['1', '2']", is("app.version", "in", json!(["1", "2"]))),
        ("!(app.version in ['1', '2'])", is("app.version", "not_in", json!(["1", "2"]))),
        ("user['plan'] == 'gold'", is("user.plan", "eq", json!("gold"))),
        ("context['größe'].x == 1", is("größe.x", "eq", json!(1))),
        ("context.now == 1", is("now", "eq", json!(1))),
        ("targetingKey == 'u-1'", is("targetingKey", "eq", json!("u-1"))),
        ("age < 18", is("age", "lt", json!(18))),
        ("age <= 18", is("age", "lte", json!(18))),
        ("age > -18", is("age", "gt", json!(-18))),
        ("age >= 18.5", is("age", "gte", json!(18.5))),
        ("18 < age", is("age", "gt", json!(18))),
        ("18 >= age", is("age", "lte", json!(18))),
        ("!(age < 18)", is("age", "gte", json!(18))),
        ("!(18 < age)", is("age", "lte", json!(18))),
        ("email.startsWith('a')", is("email", "starts_with", json!("a"))),
        ("email.endsWith('@x.org')", is("email", "ends_with", json!("@x.org"))),
        ("email.contains('+')", is("email", "contains", json!("+"))),
        ("email.matches('^a.*z$')", is("email", "matches", json!("^a.*z$"))),
        (
            "!email.endsWith('@x.org')",
            json!({ "all": [of_type("email", "string"),
                is("email", "not_ends_with", json!("@x.org"))] }),
        ),
        ("has(user.email)", json!({ "attr": "user.email", "op": "exists" })),
        ("has(email)", json!({ "attr": "email", "op": "exists" })),
        ("!has(user.email)", json!({ "attr": "user.email", "op": "not_exists" })),
        ("email == null", json!({ "attr": "email", "op": "is_null" })),
        ("email != null", json!({ "attr": "email", "op": "exists" })),
        (
            "'vip' in user.groups",
            json!({ "all": [of_type("user.groups", "array"),
                { "attr": "user.groups", "op": "eq", "value": "vip" }] }),
        ),
        (
            "!('vip' in user.groups)",
            json!({ "all": [of_type("user.groups", "array"),
                { "attr": "user.groups", "op": "not_eq", "value": "vip" }] }),
        ),
        (
            "a == 1 && b == 2 && (c == 3 && d == 4)",
            json!({ "all": [is("a", "eq", json!(1)), is("b", "eq", json!(2)),
                is("c", "eq", json!(3)), is("d", "eq", json!(4))] }),
        ),
        (
            "a == 1 || b == 2 && c == 3",
            json!({ "any": [is("a", "eq", json!(1)),
                { "all": [is("b", "eq", json!(2)), is("c", "eq", json!(3))] }] }),
        ),
        (
            "!(a == 1 && (b == 2 || !(c == 3)))",
            json!({ "any": [is("a", "not_eq", json!(1)),
                { "all": [is("b", "not_eq", json!(2)), is("c", "eq", json!(3))] }] }),
        ),
        (
            "a == 1 ? b == 2 : c == 3",
            json!({ "any": [{ "all": [is("a", "eq", json!(1)), is("b", "eq", json!(2))] },
                { "all": [is("a", "not_eq", json!(1)), is("c", "eq", json!(3))] }] }),
        ),
        ("true", json!({ "always": true })),
        ("!true", json!({ "always": false })),
    ];
    for (source, tree) in pairs {
        let one = cel(source).unwrap_or_else(|problems| panic!("{source}: {problems:#?}"));
        let other = compiled(&tree).unwrap_or_else(|problems| panic!("{tree}: {problems:#?}"));
        assert_eq!(one, other, "{source}");
        assert!(one.ruleset.cel.is_empty(), "{source}");
    }
}

#[test]
fn what_no_clause_can_say_is_evaluated_with_bound_variables_times_and_texts() {
    let context = json!({
        "email": "ada@example.org", "age": 36, "price": 10, "rate": 1.5,
        "groups": ["new", "vip", "eu-west"], "scores": [1, 2.5, 3], "nothing": null,
        "created": "2026-01-31T08:00:00Z", "seen": 1_772_366_300,
        "orders": [{ "id": "a", "total": 10 }, { "id": "b", "total": 90, "gift": true }],
        "limits": { "eu": 3, "us": 4 },
    });
    let holds = [
        "groups.exists(g, g.startsWith('eu-'))",
        "!groups.exists(g, g.startsWith('us-'))",
        "groups.all(g, size(g) > 2)",
        "orders.exists_one(o, o.total > 50 && has(o.gift))",
        "orders.filter(o, o.total > 50).map(o, o.id) == ['b']",
        "orders.map(o, has(o.gift), o.id)[0] == 'b'",
        "orders.exists(o, orders.exists(p, o.id != p.id && o.total < p.total))",
        "email.split('@')[1] in ['example.org', 'example.com']",
        "email.substring(0, 3).upperAscii() == 'ADA'",
        "email.replace('example', 'test').endsWith('@test.org')",
        "email.indexOf('@') == 3 && email.lastIndexOf('e') == 10 && email.charAt(3) == '@'",
        "'  x '.trim() + email == 'xada@example.org'",
        "['a', 'b'].join('-') == 'a-b'",
        "age * 2 + 1 == 73 && age % 10 == 6 && -age < 0",
        "price * 1.19 > 11.8 && price * 1.19 < 12",
        "price < age",
        "size(groups) == 3 && groups.size() == 3 && size(email) == 15",
        "groups[0] == 'new' && orders[1]['total'] == 90",
        "timestamp(created) < now && now - timestamp(created) > duration('24h')",
        "now - timestamp(seen) < duration('2m')",
        "now.getFullYear() == 2026 && now.getHours('+02:00') == 14 && now.getDayOfWeek() == 0",
        "timestamp(created).getDayOfMonth() == 30",
        "duration('90m').getHours() == 1",
        "limits.exists(k, k == 'eu') && limits.eu + limits['us'] == 7",
        "(age > 18 ? 'adult' : 'child') == 'adult'",
        "flag.key == 'f' && flag.key.matches('^f$')",
        "int('12') + int(2.9) == 14 && double('0.5') == 0.5 && string(1.5) == '1.5'",
        "[1, 2] + [3] == [1, 2, 3] && {'a': 1}['a'] == 1 && 'a' in {'a': 1}",
        "(missing == 1 || age == 36) && !(missing == 1 && age == 1)",
        "missing.x > 1 || groups.exists(g, g == 'vip')",
        "email < 'b'",
        "rate in scores || rate == 1.5",
        "nothing == null && !has(nothing)",
    ];
    for source in holds {
        assert!(matches(source, &context), "{source}");
    }
    // Neither these nor their opposites hold: they are errors.
    let fails = [
        "missing == 1",
        "nothing == 'x'",
        "email > 3",
        "age.startsWith('3')",
        "1 / (age - 36) == 1",
        "groups[7] == 'x'",
        "orders.all(o, o.gift)",
        "age + email == 'x'",
        "'vip' in email",
        "timestamp(email) < now",
        "int(email) == 1",
        "orders[0].nothing == 1",
        "email.charAt(99) == 'x'",
        "scores.exists_one(s, s.x == 1)",
        "age",
        "'eu' in limits",
        "9223372036854775807 + age > 0",
        "email.matches('a') && age.matches('a')",
        "email.substring(5, 2) == ''",
    ];
    for source in fails {
        assert!(!matches(source, &context), "{source}");
        assert!(!matches(&format!("!({source})"), &context), "!({source})");
    }
}

#[test]
fn what_is_wrong_is_told_with_line_and_column_and_what_there_is() {
    let told = [
        ("country = 'DE'", "line 1, column 9: "),
        ("a == 1 &&\n  b ==", "line 2, column 7: "),
        ("a == 1 &&\n  lower(b) == 'x'", "line 2, column 8: there is no function \"lower\""),
        ("a.lower() == 'x'", "there is no method \"lower\"; there are contains"),
        ("1 + 'a' == 2", "line 1, column 3: + takes two ints"),
        ("'a' < 1", "< takes two numbers"),
        ("1 == 'a'", "== takes two values of one type, not int and string"),
        ("size(a)", "a condition is a bool, and this is a int"),
        ("'x' && a", "line 1, column 1: && takes bools, and this is a string"),
        ("a.startsWith(1)", "startsWith takes strings"),
        ("a.startsWith('x', 'y')", "startsWith takes 1 arguments, not 2"),
        ("startsWith(a, 'x')", "startsWith is a method; write x.startsWith(…)"),
        ("a.matches('(')", "the regular expression does not compile"),
        ("a.matches(b)", "the pattern of matches is a literal text"),
        ("context == 1", "context is no value of its own"),
        ("flag.name == 'x'", "flag has a key and nothing else"),
        ("1u == a", "unsigned numbers are not supported"),
        ("b'x' == a", "bytes are not supported"),
        ("type(a) == int", "type() is not supported"),
        ("a.all(x, y)", ""),
        ("a.all(b.c, true)", "the variable of a loop is a plain name"),
        ("a.all(now, true)", "\"now\" cannot be a loop's variable"),
        ("timestamp('yesterday') < now", "\"yesterday\" is no timestamp"),
        ("duration('1 day') < duration('1h')", "\"1 day\" is no duration"),
        ("now.getHours('Europe/Berlin') == 1", "names of time zones are not supported"),
        ("Foo{a: 1} == b", "messages are not supported"),
        ("'abc", "line 1, column 1: "),
        ("", "no expression here"),
        ("  \n ", "no expression here"),
        ("a ? b", ""),
        ("has(1 + 2)", "has takes an attribute or a field"),
        ("if == 1", "reserved identifier: if"),
    ];
    for (source, message) in told {
        if source == "a.all(x, y)" {
            assert!(cel(source).is_ok());
            continue;
        }
        let found = refused(source);
        assert!(found.contains(message), "{source}: {found}");
        assert!(found.starts_with("line "), "{source}: {found}");
    }
    // Each mistake is told, not only the first.
    let found = refused("foo(a) && bar(b)");
    assert!(found.contains("\"foo\"") && found.contains("\"bar\""), "{found}");
}

#[test]
fn bombs_are_refused_or_stopped_with_an_error_that_says_so() {
    let deep = |open: &str, close: &str, count: usize| {
        format!("{}a{} == 1", open.repeat(count), close.repeat(count))
    };
    let long = limits::CEL_BYTES_MAX;
    let refusals = [
        deep("(", ")", 10_000),
        deep("(", ")", 2_000),
        deep("(", ")", limits::CEL_NESTING_MAX + 1),
        deep("[", "]", 1_000),
        deep("{1:", "}", 600),
        deep("-(", ")", 600),
        deep("f(", ")", 900),
        format!("{} == 1", vec!["1"; 900].join("+")),
        format!("a{} == 1", "[0]".repeat(1_000)),
        format!("a{} == 1", ".b()".repeat(900)),
        format!("{}1", "1 == ".repeat(700)),
        format!("{}true", "a ? b : ".repeat(400)),
        format!("a == '{}'", "x".repeat(long)),
        "(".repeat(32),
        "a.b.".repeat(1000),
        "!".repeat(long - 10),
        "\"".repeat(long),
        "[".repeat(31) + &"1,".repeat(1900),
    ];
    for source in refusals {
        assert!(!refused(&source).is_empty());
    }
    // Long and not deep is fine: a path, a list, a chain of && and ||.
    let path = format!("a{} == 1", ".b".repeat(1_000));
    assert!(cel(&path).is_ok() || refused(&path).contains("nested"));
    assert!(cel(&format!("a in [{}]", vec!["1"; 1_500].join(","))).is_ok());
    assert!(cel(&vec!["a==1"; 50].join("||")).is_ok());
    let problems = cel(&vec!["a==1"; 51].join("&&")).unwrap_err();
    assert!(problems[0].message.contains("51 clauses"), "{problems:?}");
    assert!(cel(&format!("{}a", "!".repeat(101))).is_ok());

    let bomb = "l.all(a, l.all(b, l.all(c, a + b + c >= 0)))";
    let list: Vec<i64> = (0..10_000).collect();
    let evaluator = Evaluator::new(cel(bomb).unwrap().ruleset).unwrap();
    let context = ContextBuf::from_json(json!({ "l": list }).to_string().as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms: 0, host: &NoHost };
    let id = evaluator.flag("f").unwrap();
    let (outcome, trace) = evaluator.explain(id, &input, &mut Scratch::default());
    let Outcome::Error { details, .. } = outcome else { panic!("{outcome:?}") };
    assert!(details.contains("more than 100000 steps"), "{details}");
    let told = trace.steps.iter().any(|step| {
        matches!(step, Step::Cel { error: Some(error), .. } if error.contains("100000 steps"))
    });
    assert!(told, "{trace:?}");
    // What grows: texts and lists that double at each level.
    let mut text = "'0123456789abcdef'".to_owned();
    for _ in 0..7 {
        text = format!("[{text}, {text}].map(x, x + x + x + x).join('')");
    }
    let grown =
        cel(&format!("size(s + {}) > 0", "l.map(a, l.map(b, s + s)).map(x, x.join('')).join('')"))
            .unwrap();
    let evaluator = Evaluator::new(grown.ruleset).unwrap();
    let context = json!({ "l": vec![1; 3_000], "s": "x".repeat(20_000) }).to_string();
    let context = ContextBuf::from_json(context.as_bytes()).unwrap();
    let input = Input { context: context.view(), now_ms: 0, host: &NoHost };
    let outcome = evaluator.evaluate(evaluator.flag("f").unwrap(), &input, &mut Scratch::default());
    assert!(matches!(&outcome, Outcome::Error { .. }), "{outcome:?}");
    assert!(text.len() > limits::CEL_BYTES_MAX || cel(&format!("size({text}) > 0")).is_ok());
}

#[test]
fn the_trace_shows_what_was_evaluated_what_it_read_and_why_it_failed() {
    let source =
        "country == 'DE' && user.groups.exists(g, g.startsWith(prefix)) && (a + 1) * 2 > 3";
    let context =
        json!({ "country": "DE", "user": { "groups": ["eu-1"] }, "prefix": "eu-", "a": "x" });
    let (on, steps) = asked(cel(source).unwrap(), &context);
    assert!(!on);
    let told: Vec<Value> = steps
        .iter()
        .map(|step| serde_json::to_value(step).unwrap())
        .filter(|step| step["step"] == "cel")
        .collect();
    let wanted = [
        json!({ "step": "cel", "expression": "user.groups.exists(x, x.startsWith(prefix))",
            "attributes": { "user.groups": ["eu-1"], "prefix": "eu-" }, "result": true }),
        json!({ "step": "cel", "expression": "(a + 1) * 2 > 3", "attributes": { "a": "x" },
            "result": false, "error": "+ does not take string and int" }),
    ];
    assert_eq!(told, wanted);
}

// ── The published conformance tests ─────────────────────────────────────────────────────────────

/// Where conditions mean something else on purpose; see docs/CEL.md.
const DIFFERENT: &[(&str, usize, &str)] = &[
    ("basic/functions/unbound_is_runtime_error", 1, "an unknown function is refused when written"),
    ("parse/receiver_function_names/", 17, "an unknown method is refused when written"),
    ("comparisons/lt_literal/not_lt_dyn_int_big_lossy_double", 1, EXACT),
    ("comparisons/gt_literal/not_gt_dyn_big_double_int", 1, EXACT),
    ("comparisons/lte_literal/lte_dyn_big_double_int", 1, EXACT),
    ("comparisons/gte_literal/gte_dyn_int_big_lossy_double", 1, EXACT),
];
const EXACT: &str =
    "an int and a double are compared exactly, as clauses do, and not rounded first";

#[test]
fn the_published_conformance_tests_give_the_expected_values() {
    let text = std::fs::read_to_string(file("tests/data/cel-conformance.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let cases = document["cases"].as_array().unwrap();
    let out: u64 = document["out"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(cases.len() as u64 + out, document["total"].as_u64().unwrap());
    let mut failures = Vec::new();
    let (mut passed, mut different) = (0, 0);
    let mut suites = BTreeMap::<String, usize>::new();
    for case in cases {
        let id = format!("{}/{}", case["suite"].as_str().unwrap(), case["name"].as_str().unwrap());
        let known = DIFFERENT.iter().find(|(name, ..)| id.starts_with(name));
        match (conforms(case), known) {
            (Ok(()), None) => {
                passed += 1;
                *suites.entry(id.split('/').next().unwrap().to_owned()).or_default() += 1;
            }
            (Ok(()), Some(_)) => failures.push(format!("{id} is not different any more")),
            (Err(_), Some(_)) => different += 1,
            (Err(why), None) => failures.push(format!("{id}: {}: {why}", case["expr"])),
        }
    }
    println!("{passed} pass, {different} are different on purpose, {out} are left out; {suites:?}");
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
    let listed: usize = DIFFERENT.iter().map(|(_, count, _)| count).sum();
    assert_eq!(different, listed);
}

fn conforms(case: &Value) -> Result<(), String> {
    let wanted = &case["expect"];
    let fails = wanted[0] == "error";
    let refusal = |mistakes: Vec<Mistake>| match fails {
        true => Ok(()),
        false => Err(format!("refused: {mistakes:?}")),
    };
    let tree = match parse(case["expr"].as_str().unwrap()) {
        Ok(tree) => tree,
        Err(mistakes) => return refusal(mistakes),
    };
    let expression = match Expression::new(&tree, case["unchecked"] == true) {
        Ok(expression) => expression,
        Err(mistakes) => return refusal(mistakes),
    };
    let context = case["context"].as_str().unwrap_or("{}");
    let context = ContextBuf::from_json(context.as_bytes()).map_err(|e| e.to_string())?;
    match expression.evaluate(context.view(), "f", NOW_MS) {
        Err(_) if fails => Ok(()),
        Err(why) => Err(why),
        Ok(found) if fails => Err(format!("an error was expected, not {found:?}")),
        Ok(found) if equals(&found, wanted) => Ok(()),
        Ok(found) => Err(format!("{wanted} was expected, not {found:?}")),
    }
}

fn equals(found: &Val<'_>, wanted: &Value) -> bool {
    let text = wanted[1].as_str().unwrap_or_default();
    match (found, wanted[0].as_str().unwrap()) {
        (Val::Null, "null") => true,
        (Val::Bool(found), "bool") => wanted[1] == *found,
        (Val::Int(found), "int") => found.to_string() == text,
        (Val::Double(found), "double") => {
            let wanted: f64 = text.parse().unwrap();
            *found == wanted || (found.is_nan() && wanted.is_nan())
        }
        (Val::Str(found), "string") => found == text,
        (Val::Timestamp(_), "timestamp") => found.to_json() == text,
        (Val::Duration(_), "duration") => {
            let plain = |text: &str| match text.strip_suffix('s').unwrap_or(text) {
                number if number.contains('.') => number.trim_end_matches('0').to_owned(),
                number => number.to_owned(),
            };
            plain(found.to_json().as_str().unwrap()) == plain(text)
        }
        (Val::List(found), "list") => {
            let wanted = wanted[1].as_array().unwrap();
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| equals(&a, b))
        }
        (Val::Map(found), "map") => {
            let wanted = wanted[1].as_array().unwrap();
            found.len() == wanted.len()
                && found.entries().all(|(key, value)| {
                    wanted.iter().any(|pair| equals(&key, &pair[0]) && equals(&value, &pair[1]))
                })
        }
        _ => false,
    }
}

// ── Whatever is lowered means the same ──────────────────────────────────────────────────────────

fn cases() -> u32 {
    std::env::var("TIDEGATE_CEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

fn attribute() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "u.s", "u.t", "missing"])
}

fn literal() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["0", "1", "1.0", "-2", "'x'", "'xy'", "''", "true", "false"])
}

fn number() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["0", "1", "1.0", "-2", "2.5"])
}

fn leaf() -> impl Strategy<Value = String> {
    let compare = prop::sample::select(vec!["<", "<=", ">", ">="]);
    let equal = prop::sample::select(vec!["==", "!="]);
    let method = prop::sample::select(vec!["startsWith", "endsWith", "contains", "matches"]);
    let texts = prop::sample::select(vec!["x", "y", "", "xy"]);
    prop_oneof![
        attribute().prop_map(str::to_owned),
        (attribute(), equal.clone(), literal()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (literal(), equal.clone(), attribute()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (attribute(), equal.clone()).prop_map(|(a, op)| format!("{a} {op} null")),
        (attribute(), compare.clone(), number()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (number(), compare.clone(), attribute()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (attribute(), compare, attribute()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (attribute(), equal, attribute()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (attribute(), method, texts).prop_map(|(a, op, b)| format!("{a}.{op}('{b}')")),
        (attribute(), prop::collection::vec(literal(), 0..4))
            .prop_map(|(a, items)| format!("{a} in [{}]", items.join(", "))),
        (literal(), attribute()).prop_map(|(a, b)| format!("{a} in {b}")),
        attribute().prop_map(|a| format!("has({a})")),
        attribute().prop_map(|a| format!("{a}.exists(x, x == 'x')")),
        attribute().prop_map(|a| format!("size({a}) > 1")),
        Just("true".to_owned()),
        Just("1 / 0 == 1".to_owned()),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
        ]
    })
}

fn value() -> impl Strategy<Value = Value> {
    let scalar = prop::sample::select(vec![
        json!(null),
        json!(0),
        json!(1),
        json!(1.0),
        json!(2.5),
        json!(-2),
        json!("x"),
        json!("xy"),
        json!(""),
        json!(true),
        json!(false),
    ]);
    prop_oneof![
        4 => scalar.clone(),
        1 => prop::collection::vec(scalar.clone(), 0..3).prop_map(|items| json!(items)),
        1 => scalar.prop_map(|item| json!({ "x": item })),
    ]
}

proptest! {
    // Parsing is slow without optimisation. TIDEGATE_CEL_CASES=20000 for a long run.
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// The condition as it is compiled, with all that is lowered, against the same as one tree of CEL
    /// nodes: one matches exactly where the other is true.
    #[test]
    fn what_is_lowered_means_the_same_for_every_context(
        source in condition(),
        a in value(), b in prop::option::of(value()), s in prop::option::of(value()), t in value(),
    ) {
        let mut context = json!({ "a": a, "u": { "t": t } });
        if let Some(b) = b {
            context["b"] = b;
        }
        if let Some(s) = s {
            context["u"]["s"] = s;
        }
        let tree = parse(&source).unwrap();
        let whole = Expression::new(&tree, false).unwrap();
        let buffer = ContextBuf::from_json(context.to_string().as_bytes()).unwrap();
        let wanted = matches!(whole.evaluate(buffer.view(), "f", NOW_MS), Ok(Val::Bool(true)));
        match cel(&source) {
            Ok(compiled) => {
                prop_assert_eq!(asked(compiled, &context).0, wanted, "{} of {}", source, context);
            }
            // Too many clauses is the only way not to compile.
            Err(problems) => prop_assert!(problems[0].message.contains("clauses"), "{:?}", problems),
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic_or_the_compiler(
        any in "\\PC{0,40}",
        near in "[a-c0-9.'\"()\\[\\]{}?:,&|!=<>+*/%\\\\ \n-]{0,60}",
        words in prop::collection::vec(prop::sample::select(vec![
            "a", ".", "(", ")", "[", "]", "{", "}", "'x'", "1", "1.5", "&&", "||", "!", "==", "in",
            "?", ":", ",", "has", "all", "exists", "map", "x", "size", "now", "-", "+", "\"", "r'", "b'",
            "0x", "1u", "`", "//", "\n", "\\", "duration", "context", "flag", "null", "true", "é",
        ]), 0..30),
    ) {
        for source in [any, near, words.join(" ")] {
            match cel(&source) {
                Ok(compiled) => {
                    let _ = asked_any(compiled);
                }
                Err(problems) => {
                    for problem in problems {
                        prop_assert!(!problem.message.contains("failed on this text"), "{}", source);
                    }
                }
            }
        }
    }
}

fn asked_any(compiled: Compiled) -> Outcome {
    let bytes = rules::blob::encode_ruleset(&compiled.ruleset);
    let evaluator = Evaluator::load(&bytes).unwrap();
    let context = ContextBuf::from_json(br#"{"a":[1,"x"],"b":{"c":1}}"#).unwrap();
    let input = Input { context: context.view(), now_ms: NOW_MS, host: &NoHost };
    evaluator.evaluate(evaluator.flag("f").unwrap(), &input, &mut Scratch::default())
}

// ── What others rely on ─────────────────────────────────────────────────────────────────────────

/// Sources of the corpus with their trees, for hosts without a parser.
const TREES: &str = "../rules/tests/data/cel-trees.json";

fn corpus_sources() -> Vec<String> {
    fn find(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    match value {
                        Value::String(source) if key == "cel" => into.push(source.clone()),
                        value => find(value, into),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| find(item, into)),
            _ => {}
        }
    }
    let text = std::fs::read_to_string(file("../rules/tests/cases/cel.json")).unwrap();
    let mut sources = Vec::new();
    find(&serde_json::from_str::<Value>(&text).unwrap()["state"], &mut sources);
    sources.sort();
    sources.dedup();
    sources
}

#[test]
fn the_parser_gives_the_trees_that_the_corpus_has() {
    let text = std::fs::read_to_string(file(TREES)).unwrap();
    let trees: BTreeMap<String, Tree> = serde_json::from_str(&text).unwrap();
    assert_eq!(trees.keys().cloned().collect::<Vec<_>>(), corpus_sources());
    for (source, tree) in trees {
        assert_eq!(*parse(&source).unwrap(), tree, "{source}");
    }
}

#[test]
#[ignore = "records the trees of the corpus: cargo test -p control --test cel -- --ignored"]
fn record_the_trees_of_the_corpus() {
    let lines: Vec<String> = corpus_sources()
        .into_iter()
        .map(|source| {
            let tree = parse(&source).unwrap_or_else(|mistakes| panic!("{source}: {mistakes:?}"));
            format!("{}: {}", json!(source), serde_json::to_string(&*tree).unwrap())
        })
        .collect();
    std::fs::write(file(TREES), format!("{{\n{}\n}}\n", lines.join(",\n"))).unwrap();
}

/// Blocks of docs/CEL.md: `cel true`, `cel false` and `cel refused`, against the context in the
/// block `json context`.
#[test]
fn the_examples_of_the_documentation_are_as_they_say() {
    let text = std::fs::read_to_string(file("../docs/CEL.md")).unwrap();
    let mut context = None;
    let mut seen = BTreeMap::<String, usize>::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (kind, body) = block.split_once('\n').unwrap();
        match kind {
            "json context" => context = Some(serde_json::from_str::<Value>(body).unwrap()),
            "cel true" | "cel false" | "cel refused" => {
                let context = context.as_ref().expect("the context comes first");
                for line in body.lines().filter(|line| !line.trim().is_empty()) {
                    let (source, said) = line.split_once(" // ").unwrap_or((line, ""));
                    let source = source.trim_end();
                    match kind {
                        "cel refused" => {
                            let found = refused(source);
                            assert!(found.contains(said), "{source}: {found}");
                        }
                        _ => assert_eq!(matches(source, context), kind == "cel true", "{source}"),
                    }
                    *seen.entry(kind.to_owned()).or_default() += 1;
                }
            }
            _ => {}
        }
    }
    assert!(seen.len() == 3, "{seen:?}");
}
