//! What becomes of a policy that fails, cannot be compiled, or was tampered with: its rules serve
//! their fallback, the edge says so, and nothing else is touched.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::http::until;
use e2e::world::{Setup, World};
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::blob::Digest;
use rules::head::{Heads, Receipts};
use serde_json::{Value, json};

use crate::support::{
    asked, asking, counted, definition, digest, dry_run, express, failing_without, figure, gated,
    german, module, named, pin, pinned, questions, ready, reports, starts, trapping, upload,
    use_policy,
};

/// Often enough that a test need not wait for it.
const OFTEN: Duration = Duration::from_millis(200);

fn impatient(config: &mut control::config::Config) {
    config.reconcile = OFTEN;
}

/// A compiler that was too late on a busy machine is asked again soon.
fn restless(config: &mut edge::config::Config) {
    config.anti_entropy = OFTEN;
}

async fn audit(world: &World, action: &str) -> Value {
    let path = format!("/api/v1/namespaces/{}/audit", world.admin.namespace);
    let rows = world.admin.get(&path).await.ok().json();
    let found =
        rows["items"].as_array().and_then(|rows| rows.iter().find(|r| r["action"] == action));
    found.cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_always_traps_opens_the_breaker_and_control_goes_back_to_the_one_before() {
    let setup = Setup { control: &impatient, edge: &restless, ..Setup::default() };
    let world = World::with(setup).await;
    let (admin, ofrep) = (&world.admin, world.ofrep());
    admin.create_flag(&definition()).await.ok();

    // With nothing to go back to, the breaker is all there is.
    let bad = use_policy(admin, "guard", &trapping()).await;
    admin.configure("checkout", &asking("guard")).await.ok();
    ofrep.serves("checkout", &german(), &json!("F")).await;
    until("the breaker being open", async || {
        ofrep.one("checkout", &german()).await.ok();
        match figure(&world, "tidegate_edge_policy_breaker_open", "guard", "").await {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let calls = figure(&world, "tidegate_edge_policy_calls_total", "guard", "").await;
    assert_eq!(ofrep.one("checkout", &german()).await.ok().json()["value"], "F");
    let after = figure(&world, "tidegate_edge_policy_calls_total", "guard", "").await;
    assert_eq!(calls, after, "an open breaker lets nothing through");
    let refused = "tidegate_edge_policy_faults_total";
    assert!(figure(&world, refused, "guard", r#"fault="open""#).await >= 1.0);
    let pin_is =
        reports(admin, "guard", "a receipt of the open breaker", |e| e["state"] == "open").await;
    // On a busy machine the clock may have been faster than the trap.
    let faults = &pin_is["edges"][0]["faults"];
    let of = |fault: &str| faults[fault].as_u64().unwrap_or(0);
    assert_eq!(of("trap") + of("deadline"), 5, "{pin_is}");
    assert_eq!((&pin_is["digest"], &pin_is["reverted"]), (&json!(bad), &Value::Null), "{pin_is}");

    let good = use_policy(admin, "guard", &express()).await;
    ofrep.serves("checkout", &german(), &json!("E")).await;
    reports(admin, "guard", "a receipt of the good version", |e| e["digest"] == json!(good)).await;
    assert_eq!(figure(&world, "tidegate_edge_policy_breaker_open", "guard", "").await, 0.0);

    // Back to the bad one, by somebody who would not listen.
    pin(admin, "guard", &json!({ "digest": bad })).await.ok();
    ofrep.serves("checkout", &german(), &json!("F")).await;
    until("control going back by itself", async || {
        ofrep.one("checkout", &german()).await.ok();
        let pin = pinned(admin, "guard").await;
        match pin["digest"] == json!(good) && pin["reverted"].is_string() {
            true => Ok(()),
            false => Err(pin.to_string()),
        }
    })
    .await;
    ofrep.serves("checkout", &german(), &json!("E")).await;
    let pin = pinned(admin, "guard").await;
    assert_eq!(pin["previousDigest"], json!(bad), "{pin}");
    let why = pin["reverted"].as_str().unwrap_or_default();
    for part in ["of 5 calls failed (", " trap)", "the breaker is open at 1 of 1 edges"] {
        assert!(why.contains(part), "{why}");
    }
    let row = audit(&world, "policy.revert").await;
    assert_eq!(
        (&row["actor"], &row["target"]),
        (&json!("control (by itself)"), &json!("guard")),
        "{row}"
    );
    assert_eq!((&row["before"]["digest"], &row["after"]["digest"]), (&json!(bad), &json!(good)));
    assert_eq!(row["after"]["reverted"], json!(why));
    world.stop().await;
}

fn compiled(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("compiled")).expect("compiled code");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("policy.")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_lost_its_compiled_code_answers_at_once_with_fallbacks_and_says_so() {
    let mut world = World::start().await;
    let admin = world.admin.clone();
    admin.create_flag(&definition()).await.ok();
    use_policy(&admin, "guard", &express()).await;
    admin.configure("checkout", &asking("guard")).await.ok();
    world.ofrep().serves("checkout", &german(), &json!("E")).await;
    world.stop_edge().await;
    let kept = compiled(&world.edge_folder());
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::remove_file(&kept[0]).expect("it was there");

    let gate = world.folder().join("gate");
    let helper = gated(&gate);
    world
        .start_edge(|config| {
            config.policy_helper = helper;
            // A helper that was kept waiting too long is started again soon.
            config.anti_entropy = OFTEN;
        })
        .await;
    // The very first answer, and no compiler has run.
    let answer = world.ofrep().one("checkout", &german()).await.ok().json();
    assert_eq!((&answer["value"], &answer["reason"]), (&json!("F"), &json!("TARGETING_MATCH")));
    let is_ready = ready(&world).await;
    assert_eq!(is_ready["status"], "ready", "{is_ready}");
    assert_eq!(
        (&is_ready["absentPolicies"], &is_ready["absent"]),
        (&json!(1), &json!([named("guard")]))
    );
    let faults = "tidegate_edge_policy_faults_total";
    assert!(figure(&world, faults, "guard", r#"fault="unavailable""#).await >= 1.0);
    assert_eq!(figure(&world, "tidegate_edge_policy_loaded", "guard", "").await, 0.0);
    reports(&admin, "guard", "a receipt without it", |e| e["state"] == "absent").await;

    std::fs::write(&gate, "").expect("a gate");
    world.ofrep().serves("checkout", &german(), &json!("E")).await;
    assert_eq!(ready(&world).await["absentPolicies"], 0);
    until("it being shown as loaded", async || {
        match figure(&world, "tidegate_edge_policy_loaded", "guard", "").await {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    reports(&admin, "guard", "a receipt with it", |e| e["state"] == "running").await;
    assert_eq!(compiled(&world.edge_folder()).len(), 1, "it is kept for the next start");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_cannot_compile_serves_the_snapshot_with_that_rules_fallback_until_it_can() {
    let folder = tempfile::tempdir().expect("a folder");
    let gate = folder.path().join("gate");
    let broken = |config: &mut edge::config::Config| {
        config.policy_helper = failing_without(&gate);
        config.anti_entropy = OFTEN;
    };
    let world = World::with(Setup { edge: &broken, ..Setup::default() }).await;
    let (admin, ofrep) = (&world.admin, world.ofrep());
    admin.create_flag(&definition()).await.ok();
    let plain = json!({ "enabled": true, "fallthrough": { "variant": "classic" } });
    admin.configure("checkout", &plain).await.ok();
    ofrep.serves("checkout", &german(), &json!("C")).await;
    let (wasm, beside) = (express(), module(r#"{"value":"of the shadow"}"#));
    upload(admin, "guard", &wasm).await.ok();
    upload(admin, "guard", &beside).await.ok();
    let shadow = json!({ "digest": digest(&beside), "share": 100_000 });
    pin(admin, "guard", &json!({ "digest": digest(&wasm), "shadow": shadow })).await.ok();
    admin.configure("checkout", &asking("guard")).await.ok();
    ofrep.serves("checkout", &german(), &json!("F")).await;
    let pin = reports(admin, "guard", "a receipt without it", |edge| {
        edge["state"] == "absent" && edge["faults"]["unavailable"].as_u64() >= Some(1)
    })
    .await;
    assert_eq!(pin["reverted"], Value::Null, "that an edge cannot compile says nothing of it");
    assert_eq!(ready(&world).await["absent"], json!([named("guard")]));
    // Nothing else is held up by it, a kill switch least of all.
    for _ in 0..5 {
        admin.configure("checkout", &plain).await.ok();
        ofrep.serves("checkout", &german(), &json!("C")).await;
        let since = Instant::now();
        admin.configure("checkout", &asking("guard")).await.ok();
        ofrep.serves("checkout", &german(), &json!("F")).await;
        // Each failure makes the pause before the next try longer, and a snapshot without the
        // policy forgets them: on a slow machine the next try could be a minute away.
        if since.elapsed() < Duration::from_secs(10) {
            break;
        }
    }

    // It tries again by itself, with no other snapshot, and the shadow too.
    std::fs::write(&gate, "").expect("a gate");
    ofrep.serves("checkout", &german(), &json!("E")).await;
    until("the shadow being compared", async || {
        ofrep.one("checkout", &german()).await.ok();
        let compared = "tidegate_edge_policy_shadow_total";
        match figure(&world, compared, "guard", r#"result="different""#).await {
            0.0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(ready(&world).await["absentPolicies"], 0);
    world.stop().await;
}

/// Gives other bytes for one blob while it is told to.
struct Damaging {
    inner: edge::feed::HttpFeed,
    blob: Digest,
    on: Arc<AtomicBool>,
}

impl Feed for Damaging {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        self.inner.heads(etag)
    }

    fn blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let bytes = self.inner.blob(namespace, digest, bytes_max).await?;
            if digest != self.blob || !self.on.load(Ordering::Acquire) {
                return Ok(bytes);
            }
            let mut damaged = bytes.to_vec();
            if let Some(byte) = damaged.last_mut() {
                *byte ^= 1;
            }
            Ok(damaged.into())
        })
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        self.inner.receipts(receipts)
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.inner.changed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_was_damaged_on_its_way_is_never_compiled_and_the_last_snapshot_stays() {
    let (wasm, on) = (express(), Arc::new(AtomicBool::new(true)));
    let damage = on.clone();
    let feed = move |inner| -> Arc<dyn Feed> {
        Arc::new(Damaging { inner, blob: Digest::of(&express()), on: damage.clone() })
    };
    let world = World::with(Setup { feed: &feed, ..Setup::default() }).await;
    let (admin, ofrep) = (&world.admin, world.ofrep());
    admin.create_flag(&definition()).await.ok();
    let plain = json!({ "enabled": true, "fallthrough": { "variant": "classic" } });
    admin.configure("checkout", &plain).await.ok();
    ofrep.serves("checkout", &german(), &json!("C")).await;
    use_policy(admin, "guard", &wasm).await;
    admin.configure("checkout", &asking("guard")).await.ok();
    let edges = format!("{}/edges", admin.environment_path());
    until("the edge telling what it refused", async || {
        let shown = admin.get(&edges).await.ok().json();
        let why = shown["items"][0]["rejected"]["reason"].as_str().unwrap_or_default().to_owned();
        match why.contains("policy's bytes are not those that its digest names") {
            true => Ok(()),
            false => Err(shown.to_string()),
        }
    })
    .await;
    assert_eq!(ofrep.one("checkout", &german()).await.ok().json()["value"], "C");
    on.store(false, Ordering::Release);
    ofrep.serves("checkout", &german(), &json!("E")).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compiled_code_that_was_tampered_with_is_compiled_again_and_not_run() {
    let mut world = World::start().await;
    let admin = world.admin.clone();
    let other = module(r#"{"value":"of the other"}"#);
    for (flag, policy, wasm) in [("checkout", "guard", &express()), ("second", "other", &other)] {
        let mut definition = definition();
        definition["key"] = json!(flag);
        use_policy(&admin, policy, wasm).await;
        admin.flag(&definition, &asking(policy)).await;
    }
    let both_serve = async |world: &World| {
        let ofrep = world.ofrep();
        ofrep.serves("checkout", &german(), &json!("E")).await;
        ofrep.serves("second", &german(), &json!("of the other")).await;
        assert_eq!(ready(world).await["absentPolicies"], 0);
    };
    both_serve(&world).await;
    let log = world.folder().join("starts");
    let helper = counted(&log);
    let with_helper = |config: &mut edge::config::Config| {
        config.policy_helper = helper.clone();
        restless(config);
    };

    world.stop_edge().await;
    world.start_edge(with_helper).await;
    both_serve(&world).await;
    assert_eq!(starts(&log), 0, "what was kept and is whole needs no compiler");

    // One byte of the code; then each in the place of the other, with a seal that is ours.
    world.stop_edge().await;
    let kept = compiled(&world.edge_folder());
    assert_eq!(kept.len(), 2, "{kept:?}");
    let whole: Vec<Vec<u8>> = kept.iter().map(|path| std::fs::read(path).expect("code")).collect();
    let mut bent = whole[0].clone();
    let middle = bent.len() / 2;
    bent[middle] ^= 0x40;
    std::fs::write(&kept[0], &bent).expect("written");
    world.start_edge(with_helper).await;
    both_serve(&world).await;
    assert_eq!(questions(&log), 1, "the one that was bent");
    assert_ne!(std::fs::read(&kept[0]).expect("code"), bent, "it is written anew");

    world.stop_edge().await;
    std::fs::write(&kept[0], &whole[1]).expect("written");
    std::fs::write(&kept[1], &whole[0]).expect("written");
    std::fs::remove_file(&log).expect("a log");
    world.start_edge(with_helper).await;
    both_serve(&world).await;
    assert_eq!(questions(&log), 2, "both, since a seal is of one name");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_names_what_a_call_cost_and_said_and_the_same_each_time() {
    let world = World::start().await;
    let admin = &world.admin;
    admin.create_flag(&definition()).await.ok();
    let wasm = express();
    assert_eq!(upload(admin, "guard", &wasm).await.status, 201);
    pin(admin, "guard", &json!({ "digest": digest(&wasm) })).await.ok();
    admin.configure("checkout", &asking("guard")).await.ok();
    let first = dry_run(admin, &german()).await;
    let (step, again) = (asked(&first), dry_run(admin, &german()).await);
    // `now` is the clock's, so the input's length is the same and its digits are not.
    let fuel = step["fuel"].as_u64().unwrap_or_default();
    assert!((1_000..1_000_000).contains(&fuel), "{step}");
    assert_eq!(asked(&again)["fuel"], json!(fuel));
    assert_eq!(step["log"], r#"{"variant"#, "{step}");
    assert!(!first.to_string().contains("micros"), "no time is in a trace: {first}");
    let failed = dry_run(admin, &json!({ "targetingKey": "u", "country": "!" })).await;
    assert_eq!(asked(&failed)["fault"], "trap");
    assert!(asked(&failed)["fuel"].is_u64(), "what a trap cost is as exact: {failed}");
    world.stop().await;
}
