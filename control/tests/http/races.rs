//! Two at once: each race ends in exactly one well-defined state, whoever was faster.

use std::time::Duration;

use control::lead::{Epoch, Lead};
use control::refusal::Refusal;
use control::relay::Doorbell;
use control::schedule;
use control::store::{now_us, rfc3339};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::change_sets::{
    OURS, SETS, approve_as, config_item, config_item_for_beta, draft, furnished, is_problem,
    person, protect, revision, segment, send_as, serving, step,
};
use crate::world::{PATIENCE, World, read};

const ROUNDS: usize = 8;
const CONFIG: &str = "/api/v1/namespaces/ours/environments/production/flags/a";

fn etag(body: &Value) -> String {
    format!("\"{}\"", body["version"])
}

async fn set(world: &World, number: &Value) -> Value {
    world.get(&format!("{SETS}/{number}")).await.1
}

/// How often each kind of event is in a set's history.
fn count(set: &Value, kind: &str) -> usize {
    let events = set["events"].as_array().expect("events");
    events.iter().filter(|event| event["kind"] == kind).count()
}

#[tokio::test]
async fn of_editors_racing_on_one_flag_one_wins_each_round_and_the_others_see_what_won() {
    let world = furnished(&["a"]).await;
    for round in 0..ROUNDS {
        let (_, before) = world.get(CONFIG).await;
        let edits = (0..4).map(|editor| {
            let mut config = serving("on");
            config["rules"] = json!([{ "id": format!("r{round}-e{editor}"),
                "when": { "attr": "x", "op": "eq", "value": editor }, "serve": { "variant": "off" } }]);
            let request = world.ask("PUT", CONFIG).header("if-match", etag(&before)).json(&config);
            async { (read(request).await, config) }
        });
        let done = futures_util::future::join_all(edits).await;
        let won: Vec<&Value> = done
            .iter()
            .filter(|((status, _), _)| *status == 200)
            .map(|(_, config)| config)
            .collect();
        let lost: Vec<&Value> = done
            .iter()
            .filter(|((status, _), _)| *status == 412)
            .map(|((_, body), _)| body)
            .collect();
        assert_eq!((won.len(), lost.len()), (1, 3), "{done:?}");
        let (_, after) = world.get(CONFIG).await;
        assert_eq!(&after["config"], won[0]);
        assert_eq!(
            after["version"].as_i64(),
            before["version"].as_i64().map(|version| version + 1)
        );
        assert!(lost.iter().all(|body| body["current"]["config"] == *won[0]), "{lost:?}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn of_two_approvers_at_one_version_one_is_told_to_look_again() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 2).await;
    let (bob, eve) = (person(&world, "bob").await, person(&world, "eve").await);
    for _ in 0..ROUNDS {
        let number = draft(&world, json!([config_item("a", "on")])).await;
        let submitted = step(&world, &number, "submit").await;
        let (path, seen) = (format!("{SETS}/{number}/approve"), etag(&submitted));
        let (one, other) = tokio::join!(
            send_as(&world, &bob, "POST", &path, Some(&seen), json!({})),
            send_as(&world, &eve, "POST", &path, Some(&seen), json!({})),
        );
        let mut statuses = [one.0, other.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{one:?} {other:?}");
        let now = set(&world, &number).await;
        assert_eq!((&now["state"], count(&now, "approved")), (&json!("review"), 1));
        // Both at whatever is there: one more counts, and the one that was given counts once.
        let (one, other) =
            tokio::join!(approve_as(&world, &bob, &number), approve_as(&world, &eve, &number));
        assert_eq!((one.0, other.0), (200, 200), "{one:?} {other:?}");
        let now = set(&world, &number).await;
        assert_eq!((&now["state"], count(&now, "approved")), (&json!("approved"), 2));
        // Whoever applies it, it is applied once.
        let before = revision(&world, "production").await;
        let apply = format!("{SETS}/{number}/apply");
        let (one, other) = tokio::join!(
            world.post(&apply, json!({})),
            send_as(&world, &bob, "POST", &apply, None, json!({})),
        );
        let mut statuses = [one.0, other.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "{one:?} {other:?}");
        assert_eq!(revision(&world, "production").await, before + 1);
        assert_eq!(count(&set(&world, &number).await, "applied"), 1);
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_approval_that_races_an_edit_is_of_what_was_looked_at_or_none() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let bob = person(&world, "bob").await;
    let (mut approvals, mut edits) = (0, 0);
    for round in 0..ROUNDS * 2 {
        let number = draft(&world, json!([config_item("a", "on")])).await;
        let seen = etag(&step(&world, &number, "submit").await);
        let path = format!("{SETS}/{number}");
        let edit = json!({ "items": [config_item("a", "off")] });
        let approve = format!("{path}/approve");
        let approving = send_as(&world, &bob, "POST", &approve, Some(&seen), json!({}));
        let editing = send_as(&world, &world.token, "PATCH", &path, Some(&seen), edit);
        // Either may be sent first.
        let (approved, edited) = match round % 2 {
            0 => tokio::join!(approving, editing),
            _ => {
                let (edited, approved) = tokio::join!(editing, approving);
                (approved, edited)
            }
        };
        let now = set(&world, &number).await;
        let state = now["state"].as_str().expect("a state");
        match (approved.0, edited.0) {
            (200, 412) => {
                approvals += 1;
                assert_eq!((state, &now["items"][0]["value"]), ("approved", &serving("on")));
            }
            (412, 200) => {
                edits += 1;
                assert_eq!((state, &now["items"][0]["value"]), ("draft", &serving("off")));
                assert_eq!(now["approvals"][0]["by"], json!([]));
                assert_eq!(world.post(&format!("{path}/apply"), json!({})).await.0, 409);
            }
            other => panic!("{other:?}: {approved:?} {edited:?}"),
        }
    }
    assert_eq!(approvals + edits, ROUNDS * 2);
    assert_eq!(world.get(CONFIG).await.1["version"], 0, "nothing was applied");
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_edit_that_races_the_application_comes_before_it_or_not_at_all() {
    let world = furnished(&["a"]).await;
    for _ in 0..ROUNDS {
        let (_, flag) = world.get(CONFIG).await;
        let number = draft(&world, json!([config_item("a", "on")])).await;
        step(&world, &number, "submit").await;
        let before = revision(&world, "production").await;
        let apply = format!("{SETS}/{number}/apply");
        let edit = world.ask("PUT", CONFIG).header("if-match", etag(&flag)).json(&serving("off"));
        let (applied, edited) = tokio::join!(world.post(&apply, json!({})), read(edit));
        let (_, now) = world.get(CONFIG).await;
        match (applied.0, edited.0) {
            (200, 412) => assert_eq!(now["config"], serving("on")),
            (409, 200) => {
                assert!(is_problem(&applied.1, "conflict"), "{applied:?}");
                assert_eq!(now["config"], serving("off"));
                assert_eq!(set(&world, &number).await["state"], "conflict");
            }
            other => panic!("{other:?}: {applied:?} {edited:?}"),
        }
        assert_eq!(revision(&world, "production").await, before + 1, "one of the two");
    }
    assert_eq!(world.get(&format!("{OURS}/audit/verify")).await.1["valid"], true);
    world.control.shutdown().await;
}

/// In `after`, by this machine's clock, or in longer where the request took as long.
async fn schedule_in(world: &World, number: &Value, mut after: Duration) -> i64 {
    loop {
        let at = now_us() + i64::try_from(after.as_micros()).expect("soon");
        let body = json!({ "applyAt": rfc3339(at) });
        let (status, body) = world.post(&format!("{SETS}/{number}/schedule"), body).await;
        let is_over = status == 422 && body["errors"][0]["pointer"] == "/applyAt";
        if is_over && after < PATIENCE {
            after *= 2;
            continue;
        }
        assert_eq!((status, &body["state"]), (200, &json!("scheduled")), "{body}");
        return at;
    }
}

/// It may have waited too long for the database; nothing else may go wrong.
fn looked<T>(done: Result<T, Refusal>) {
    match done {
        Err(Refusal::Store(error)) if control::store::is_passing(&error) => {}
        done => drop(done.expect("a look")),
    }
}

#[tokio::test]
async fn a_scheduled_set_fires_once_and_not_before_its_time_however_many_look() {
    let world = furnished(&["a"]).await;
    let number = draft(&world, json!([config_item("a", "on")])).await;
    step(&world, &number, "submit").await;
    for (when, case) in [
        (rfc3339(now_us() - 1_000_000), "over"),
        (rfc3339(now_us() + 400 * 24 * 60 * 60 * 1_000_000), "in more than a year"),
        ("tomorrow".to_owned(), "no time"),
    ] {
        let path = format!("{SETS}/{number}/schedule");
        let (status, body) = world.post(&path, json!({ "applyAt": when })).await;
        assert_eq!(
            (status, &body["errors"][0]["pointer"]),
            (422, &json!("/applyAt")),
            "{case}: {body}"
        );
    }
    let before = revision(&world, "production").await;
    let at = schedule_in(&world, &number, Duration::from_millis(300)).await;
    // Four more that believe to lead, beside control itself.
    let looking = (0..4).map(|looker: i64| {
        let store = world.control.store.clone();
        async move {
            let lease = Duration::from_secs(60);
            let lead = Lead::new(store.clone(), format!("looker {looker}"), lease);
            lead.begin(Epoch(looker + 1), Instant::now() + lease);
            let deadline = Instant::now() + PATIENCE;
            while now_us() < at + 300_000 {
                assert!(Instant::now() < deadline, "time stands still");
                looked(schedule::pass(&store, &lead, &Doorbell::default()).await);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    futures_util::future::join_all(looking).await;
    let path = format!("{SETS}/{number}");
    let applied = world.until(&path, |body| body["state"] == "applied").await;
    assert_eq!((count(&applied, "applied"), &applied["applyAt"]), (1, &Value::Null));
    assert_eq!(revision(&world, "production").await, before + 1);
    // As times: as texts, one without a fraction would come after one with it.
    let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).expect("a time");
    let applied_at = time(applied["appliedAt"].as_str().expect("a text"));
    assert!(applied_at >= time(&rfc3339(at)), "{applied}");
    assert!(applied["appliedBy"].as_str().expect("who").contains("scheduled by bootstrap"));
    world.published("ours").await;
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_set_that_is_cancelled_when_it_is_due_is_applied_or_cancelled_and_never_both() {
    let world = furnished(&["a"]).await;
    for _ in 0..ROUNDS {
        let (_, flag) = world.get(CONFIG).await;
        let number = draft(&world, json!([config_item("a", "on")])).await;
        step(&world, &number, "submit").await;
        let at = schedule_in(&world, &number, Duration::from_millis(150)).await;
        let lease = Duration::from_secs(60);
        let lead = Lead::new(world.control.store.clone(), "looker".to_owned(), lease);
        lead.begin(Epoch(1), Instant::now() + lease);
        let deadline = Instant::now() + PATIENCE;
        while now_us() < at {
            assert!(Instant::now() < deadline, "time stands still");
            tokio::task::yield_now().await;
        }
        let cancel = format!("{SETS}/{number}/cancel");
        let doorbell = Doorbell::default();
        let (fired, cancelled) = tokio::join!(
            schedule::pass(&world.control.store, &lead, &doorbell),
            world.post(&cancel, json!({})),
        );
        looked(fired);
        let now = set(&world, &number).await;
        let version = world.get(CONFIG).await.1["version"].as_i64();
        let before = flag["version"].as_i64();
        match (cancelled.0, now["state"].as_str()) {
            (200, Some("cancelled")) => assert_eq!(version, before),
            (409, Some("applied")) => assert_eq!(version, before.map(|version| version + 1)),
            other => panic!("{other:?}: {cancelled:?} {now}"),
        }
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_schedule_that_cannot_be_kept_says_why_and_one_that_was_overtaken_is_in_conflict() {
    let world = furnished(&["a", "b"]).await;
    segment(&world, "beta").await;
    let broken = draft(&world, json!([config_item_for_beta("b")])).await;
    let overtaken = draft(&world, json!([config_item("a", "on")])).await;
    for number in [&broken, &overtaken] {
        step(&world, number, "submit").await;
        schedule_in(&world, number, Duration::from_secs(3600)).await;
    }
    assert_eq!(world.put(CONFIG, serving("off")).await.0, 200);
    let beta = format!("{OURS}/environments/production/segments/beta");
    assert_eq!(world.delete(&beta).await.0, 204);
    let before = revision(&world, "production").await;
    // Due only now: what overtakes them has to come before.
    let due = "UPDATE change_set SET apply_at = 1 WHERE state = 'scheduled'";
    assert_eq!(world.sql(due).await, 2);
    let path = format!("{SETS}/{broken}");
    let failed = world.until(&path, |body| body["state"] == "failed").await;
    let why = failed["reason"].as_str().expect("why");
    assert!(why.contains("/items/0/value/rules/0/when/segment"), "{why}");
    let path = format!("{SETS}/{overtaken}");
    let conflict = world.until(&path, |body| body["state"] == "conflict").await;
    assert!(conflict["reason"].as_str().expect("why").contains("config \"a\""), "{conflict}");
    assert_eq!(revision(&world, "production").await, before);
    world.control.shutdown().await;
}
