//! The helper process of uploaded policies as it is shipped: the binary itself, under limits that
//! its own size counts towards.

use sandbox::policy::helper::{Helper, SUBCOMMAND};

const POLICY: &str = include_str!("../../policies/wat/policy.wat");

#[test]
fn the_binary_admits_and_compiles_a_policy_as_its_own_helper() {
    let program = env!("CARGO_BIN_EXE_tidegate").into();
    let helper = Helper { program, arguments: vec![SUBCOMMAND.to_owned()] };
    let wasm = wat::parse_str(POLICY).unwrap();
    let verdict = helper.admit(&wasm, &[]).unwrap();
    assert!(verdict.admitted, "{verdict:?}");
    assert_eq!(verdict.attributes, ["user.score"]);
    assert!(!helper.compile(&wasm).unwrap().is_empty());
}
