//! The OFREP provider for Python against a running edge: `interop/python`.

use e2e::world::{World, workspace};

#[tokio::test(flavor = "multi_thread")]
async fn the_python_provider_resolves_every_type_and_error() {
    let python = workspace().join(".venv/bin/python");
    assert!(
        python.exists(),
        "the Python packages are not installed: run `cargo xtask test` (or make .venv with \
         e2e/interop/python/requirements.txt)"
    );
    let world = World::with_interop_flags().await;
    let mut client = tokio::process::Command::new(python);
    client.current_dir(workspace().join("e2e/interop/python")).args(["-B", "interop.py"]);
    world.run_client(client, 10).await;
    world.stop().await;
}
