//! The text that bombs are kept as: wat, with `<<2001:(block)>>` for what is repeated (`#` is the
//! turn) and `<<shell>>` for a policy around it.

use std::fmt::Write as _;

const MEMORY: &str = r#"(memory (export "memory") 1 64)
  (data (i32.const 0) "{\"abstain\":true}") (data (i32.const 32) "{\"attributes\":[]}")"#;
const VERSION: &str = r#"(func (export "tidegate_abi") (result i32) i32.const 1)"#;
const ALLOC: &str = r#"(func (export "tidegate_alloc") (param i32) (result i32) i32.const 4096)"#;
const DESCRIBE: &str = r#"(func (export "tidegate_describe") (result i64) i64.const 0x2000000011)"#;
const EVALUATE: &str = r#"(func (export "evaluate") (param i32 i32) (result i64) i64.const 16)"#;

pub fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("<<") {
        out.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let end = end(inside);
        write(&inside[..end], &mut out);
        rest = &inside[end + 2..];
    }
    out + rest
}

fn write(what: &str, out: &mut String) {
    if let Some((count, body)) = what.split_once(':')
        && let Ok(count) = count.parse::<u32>()
    {
        let body = expanded(body);
        for turn in 0..count {
            if body.contains('#') {
                out.push_str(&body.replace('#', &turn.to_string()));
            } else {
                out.push_str(&body);
            }
        }
        return;
    }
    let parts: &[&str] = match what {
        "shell" => &[MEMORY, VERSION, ALLOC, DESCRIBE, EVALUATE],
        "functions" => &[VERSION, ALLOC, DESCRIBE, EVALUATE],
        "abi" => &[MEMORY, VERSION, ALLOC, DESCRIBE],
        "memory" => &[MEMORY],
        "version" => &[VERSION],
        "alloc" => &[ALLOC],
        "describe" => &[DESCRIBE],
        "evaluate" => &[EVALUATE],
        _ => panic!("<<{what}>> is unknown"),
    };
    for part in parts {
        let _ = writeln!(out, "{part}");
    }
}

/// Where the `>>` of a `<<` is.
fn end(inside: &str) -> usize {
    let mut depth = 0;
    let bytes = inside.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"<<" => {
                depth += 1;
                at += 1;
            }
            b">>" if depth == 0 => return at,
            b">>" => {
                depth -= 1;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    panic!("a << without its >>")
}
