//! The helper process of uploaded policies as it is shipped: the binary itself, under limits that
//! its own size counts towards.

use sandbox::policy::Verdict;
use sandbox::policy::helper::{Helper, HelperError, SUBCOMMAND};

/// The helper's clock is the wall's, and a busy machine may be too slow for it.
const TRIES_MAX: usize = 3;
const POLICY: &str = include_str!("../../policies/wat/policy.wat");

#[test]
fn the_binary_admits_and_compiles_a_policy_as_its_own_helper() {
    let program = env!("CARGO_BIN_EXE_tidegate").into();
    let helper = Helper { program, arguments: vec![SUBCOMMAND.to_owned()] };
    let wasm = wat::parse_str(POLICY).unwrap();
    let is_late = |verdict: &Verdict| verdict.refused.as_ref().is_some_and(|r| r.rule == "time");
    let mut verdict = helper.admit(&wasm, &[]).unwrap();
    for _ in 1..TRIES_MAX {
        if !is_late(&verdict) {
            break;
        }
        verdict = helper.admit(&wasm, &[]).unwrap();
    }
    assert!(verdict.admitted, "{verdict:?}");
    assert_eq!(verdict.attributes, ["user.score"]);
    let mut code = helper.compile(&wasm);
    for _ in 1..TRIES_MAX {
        if !matches!(code, Err(HelperError::Time)) {
            break;
        }
        code = helper.compile(&wasm);
    }
    assert!(!code.unwrap().is_empty());
}
