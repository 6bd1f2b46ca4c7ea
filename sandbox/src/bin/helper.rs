//! The helper process of uploaded policies on its own, for the tests of this workspace. The product
//! runs the same function as `tidegate sandbox-helper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox::policy::helper::main()
}
