//! How writes come to be published.

use futures_util::StreamExt as _;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn two_hundred_writes_in_a_burst_are_few_publications_and_the_last_one_wins() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.flag("ours", "f").await;
    let edge = world.edge_key(json!("all")).await;
    world.published("ours").await;

    // Each head that is on the bus, as often as it is another one.
    let bus = world.control.bus.clone();
    let place = "/api/v1/namespaces/ours/environments/production/flags/f";
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let counting = tokio::spawn(async move {
        let mut changed = bus.changed();
        let (mut seen, mut stopped) = (Vec::new(), stopped);
        loop {
            let revision = bus.heads().await.expect("heads")[0].version.revision;
            if seen.last() != Some(&revision) {
                seen.push(revision);
            }
            tokio::select! {
                news = changed.changed() => news.expect("a bus"),
                _ = &mut stopped => return seen,
            }
        }
    });
    let writes = (0..200).map(|write| {
        let variant = if write % 2 == 0 { "on" } else { "off" };
        let config = json!({ "enabled": true, "fallthrough": { "variant": variant },
            "rules": [ { "id": format!("w{write:03}"), "serve": { "variant": variant } } ] });
        let world = &world;
        async move {
            loop {
                match world.put(place, config.clone()).await {
                    // Nothing was written: too many wait for the database on a busy machine.
                    (503, _) => {}
                    done => break done,
                }
            }
        }
    });
    // As many at once as one client would send.
    let mut writes = futures_util::stream::iter(writes).buffer_unordered(16);
    while let Some((status, body)) = writes.next().await {
        assert_eq!(status, 200, "{body}");
    }
    drop(writes);
    let revision = world.published("ours").await;
    assert_eq!(revision, 2 + 200, "one of the environment, one of the flag");
    stop.send(()).expect("the counter runs");
    let seen = counting.await.expect("it counted");
    assert_eq!(seen.last(), Some(&202), "{seen:?}");
    assert!(seen.is_sorted(), "never backwards: {seen:?}");
    // With one writer the publisher waits behind the others; with many it runs beside them.
    let most = if world.control.store.has_others() { 199 } else { 100 };
    assert!(seen.len() <= most, "{} publications of 200 writes: {seen:?}", seen.len());

    // What is published is what the database holds now, not what an earlier write said.
    let (_, stored) = world.get(place).await;
    let trusted = [world.control.public_key.clone()];
    let head = world.heads(&edge).await.heads[0].verify(&trusted).expect("a head");
    let url = format!("{}/edge/v1/blobs/{}", world.url, head.snapshot.digest);
    let blob = world.http.get(url).bearer_auth(&edge).send().await.expect("an answer");
    let blob = blob.bytes().await.expect("a blob");
    let rule = stored["config"]["rules"][0]["id"].as_str().expect("a rule's id");
    assert!(
        blob.windows(rule.len()).any(|window| window == rule.as_bytes()),
        "{rule} is the last write's"
    );
    world.control.shutdown().await;
}
