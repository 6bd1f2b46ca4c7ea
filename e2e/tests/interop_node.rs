//! The OFREP providers for Node and for browsers against a running edge: `interop/node`.

use e2e::world::{World, workspace};

async fn run(script: &str, answers_min: usize) {
    let folder = workspace().join("e2e/interop/node");
    assert!(
        folder.join("node_modules/@openfeature").is_dir(),
        "the npm packages are not installed: run `cargo xtask test` (or `npm ci` in e2e/interop/node)"
    );
    let world = World::with_interop_flags().await;
    let mut node = tokio::process::Command::new("node");
    node.current_dir(folder).args(["--test", script]);
    world.run_client(node, answers_min).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_provider_of_npm_resolves_every_type_and_error() {
    run("server.interop.mjs", 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_provider_of_npm_resolves_every_type_and_hears_of_changes() {
    run("web.interop.mjs", 5).await;
}
