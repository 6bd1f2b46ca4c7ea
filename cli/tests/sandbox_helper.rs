//! The helper process of uploaded policies as it is shipped: the binary itself, under limits that
//! its own size counts towards.

#[path = "../../sandbox/tests/in_time/mod.rs"]
mod in_time;

use sandbox::policy::helper::{Helper, HelperError, SUBCOMMAND};

const POLICY: &str = include_str!("../../policies/wat/policy.wat");

#[test]
fn the_binary_admits_and_compiles_a_policy_as_its_own_helper() {
    let program = env!("CARGO_BIN_EXE_tidegate").into();
    let helper = Helper { program, arguments: vec![SUBCOMMAND.to_owned()] };
    let wasm = wat::parse_str(POLICY).unwrap();
    let verdict = in_time::admit(&helper, &wasm, &[]).unwrap();
    assert!(verdict.admitted, "{verdict:?}");
    assert_eq!(verdict.attributes, ["user.score"]);
    let is_late = |code: &Result<_, _>| matches!(code, Err(HelperError::Time));
    let code = in_time::in_time(|| helper.compile(&wasm), is_late);
    assert!(!code.unwrap().is_empty());
}
