//! Change sets among people with roles: who may write, who may approve, and for how long that counts.

use serde_json::{Value, json};

use crate::change_sets::{
    OURS, SETS, approve_as, config_item, furnished, is_problem, protect, send_as, serving,
};
use crate::world::World;

const PRODUCTION: &str = "/api/v1/namespaces/ours/environments/production";

/// An account with a password and these roles in `ours`: its session's token.
async fn member(world: &World, email: &str, roles: Value) -> String {
    let session = world.account(email, false).await;
    give(world, email, roles).await;
    session["accessToken"].as_str().expect("a token").to_owned()
}

/// A service token that `maker` makes: it, and its id.
async fn robot(world: &World, maker: &str, role: &str) -> (String, String) {
    let body = json!({ "name": "robot", "role": role });
    let (status, made) = post(world, maker, &format!("{OURS}/tokens"), body).await;
    assert_eq!(status, 201, "{made}");
    let text = |of: &str| made[of].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    (text("token"), text("id"))
}

/// Whether they may not, in the words of the rule.
async fn is_refused(world: &World, token: &str, number: &Value) -> bool {
    let (status, body) = approve_as(world, token, number).await;
    assert!(matches!(status, 200 | 403), "{status} {body}");
    status == 403 && is_problem(&body, "may-not-approve")
}

async fn give(world: &World, email: &str, roles: Value) {
    let (status, body) = world.put(&format!("{OURS}/members/{email}"), roles).await;
    assert_eq!(status, 200, "{body}");
}

async fn post(world: &World, token: &str, path: &str, body: Value) -> (u16, Value) {
    send_as(world, token, "POST", path, None, body).await
}

/// Submitted by its author: its number.
async fn submitted(world: &World, author: &str, variant: &str) -> Value {
    let body = json!({ "title": "A change", "items": [config_item("a", variant)] });
    let (status, made) = post(world, author, SETS, body).await;
    assert_eq!(status, 201, "{made}");
    let number = made["number"].clone();
    let (status, body) = post(world, author, &format!("{SETS}/{number}/submit"), json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("review")), "{body}");
    number
}

#[tokio::test]
async fn an_approval_counts_while_its_giver_may_give_it_there() {
    let world = furnished(&["a"]).await;
    world.environment("ours", "staging").await;
    protect(&world, "production", 1).await;
    let editor = member(&world, "ed@example.com", json!({ "role": "editor" })).await;
    let here = json!({ "environments": { "production": { "role": "approver" } } });
    let approver = member(&world, "ap@example.com", here.clone()).await;
    let there = json!({ "environments": { "staging": { "role": "approver" } } });
    let elsewhere = member(&world, "el@example.com", there).await;
    let admin = member(&world, "ad@example.com", json!({ "role": "admin" })).await;

    let number = submitted(&world, &editor, "on").await;
    let apply = format!("{SETS}/{number}/apply");
    // Whoever may write does not approve; whoever approves elsewhere does not approve here.
    assert_eq!(approve_as(&world, &editor, &number).await.0, 403);
    let (status, body) = approve_as(&world, &elsewhere, &number).await;
    assert_eq!((status, is_problem(&body, "may-not-approve")), (403, true), "{body}");
    // An approver approves, and neither writes nor applies.
    assert_eq!(post(&world, &approver, SETS, json!({ "title": "T", "items": [] })).await.0, 403);
    let (status, body) = approve_as(&world, &approver, &number).await;
    assert_eq!((status, &body["state"]), (200, &json!("approved")), "{body}");
    let by = body["approvals"][0]["by"][0].as_str().expect("who");
    assert!(by.contains("ap@example.com"), "{by}");
    assert_eq!(post(&world, &approver, &apply, json!({})).await.0, 403);

    // The role is taken away, given back, and the account is disabled.
    give(&world, "ap@example.com", json!({ "role": "viewer" })).await;
    let (status, body) = post(&world, &editor, &apply, json!({})).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    give(&world, "ap@example.com", here).await;
    let (_, users) = world.get("/api/v1/users").await;
    let of = |email: &str| {
        let users = users["items"].as_array().expect("users").iter();
        let user = users.into_iter().find(|user| user["email"] == email).expect("there");
        format!("/api/v1/users/{}", user["id"].as_str().expect("an id"))
    };
    let disabled = world.delete(&of("ap@example.com")).await;
    assert!((200..300).contains(&disabled.0), "{disabled:?}");
    let (status, body) = post(&world, &editor, &apply, json!({})).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    // Somebody else's counts.
    assert_eq!(approve_as(&world, &admin, &number).await.0, 200);
    let (status, body) = post(&world, &editor, &apply, json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("applied")), "{body}");

    // An administrator is bound by it like everybody, but for the kill switch.
    let config = format!("{PRODUCTION}/flags/a");
    let (status, body) = send_as(&world, &admin, "PUT", &config, Some("*"), serving("off")).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    let kill = format!("{config}/kill");
    let why = json!({ "reason": "down" });
    assert_eq!(post(&world, &editor, &kill, why.clone()).await.0, 403);
    assert_eq!(post(&world, &admin, &kill, why).await.0, 200);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_service_token_writes_and_approves_nothing_and_a_schedule_ends_with_its_makers_right() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let editor = member(&world, "ed@example.com", json!({ "role": "editor" })).await;
    let admin = member(&world, "ad@example.com", json!({ "role": "admin" })).await;
    let body = json!({ "name": "robot", "role": "admin" });
    let (status, made) = world.post(&format!("{OURS}/tokens"), body).await;
    assert_eq!(status, 201, "{made}");
    let robot = made["token"].as_str().expect("a token").to_owned();

    let number = submitted(&world, &editor, "on").await;
    let (status, body) = approve_as(&world, &robot, &number).await;
    assert_eq!((status, is_problem(&body, "may-not-approve")), (403, true), "{body}");
    assert_eq!(approve_as(&world, &admin, &number).await.0, 200);
    let at = control::store::rfc3339(control::store::now_us() + 3_600_000_000);
    let schedule = format!("{SETS}/{number}/schedule");
    let (status, body) = post(&world, &editor, &schedule, json!({ "applyAt": at })).await;
    assert_eq!(status, 200, "{body}");
    give(&world, "ed@example.com", json!({ "role": "viewer" })).await;
    // Due only now, however long that took.
    let due = "UPDATE change_set SET apply_at = 1 WHERE state = 'scheduled'";
    assert_eq!(world.sql(due).await, 1);
    let path = format!("{SETS}/{number}");
    let failed = world.until(&path, |set| set["state"] == "failed").await;
    let why = failed["reason"].as_str().expect("why");
    assert!(why.contains("configure") && why.contains("ed@example.com"), "{why}");
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a")).await.1["version"], 0);
    // Whoever may now can still apply what was approved.
    let (status, body) = post(&world, &admin, &format!("{path}/apply"), json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("applied")), "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_a_service_token_writes_is_not_approved_by_whoever_made_the_token() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let ann = member(&world, "ann@example.com", json!({ "role": "admin" })).await;
    let bob = member(&world, "bob@example.com", json!({ "role": "admin" })).await;
    let editor = member(&world, "ed@example.com", json!({ "role": "editor" })).await;
    let (robot_of_ann, id) = robot(&world, &ann, "admin").await;
    // One that was made by the other is hers as well.
    let (robot_of_robot, _) = robot(&world, &robot_of_ann, "editor").await;

    let by_robot = submitted(&world, &robot_of_ann, "on").await;
    let by_its_robot = submitted(&world, &robot_of_robot, "on").await;
    // Somebody else's, which the token has edited.
    let edited = submitted(&world, &editor, "on").await;
    let path = format!("{SETS}/{edited}");
    let edit = json!({ "items": [config_item("a", "off")] });
    let (status, body) = send_as(&world, &robot_of_ann, "PATCH", &path, Some("*"), edit).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(post(&world, &editor, &format!("{path}/submit"), json!({})).await.0, 200);
    // The other way round: hers, approved by the token.
    let by_ann = submitted(&world, &ann, "on").await;
    assert!(is_refused(&world, &robot_of_ann, &by_ann).await);
    for number in [&by_robot, &by_its_robot, &edited] {
        assert!(is_refused(&world, &ann, number).await, "{number}");
    }
    // Nor once nobody can look the token up any more.
    let (status, _) =
        send_as(&world, &ann, "DELETE", &format!("{OURS}/tokens/{id}"), None, json!({})).await;
    assert_eq!(status, 204);
    for number in [&by_robot, &by_its_robot, &edited] {
        assert!(is_refused(&world, &ann, number).await, "{number}");
        // Whoever has nothing to do with the token may.
        assert!(!is_refused(&world, &bob, number).await, "{number}");
    }
    let (status, body) = post(&world, &ann, &format!("{SETS}/{by_robot}/apply"), json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("applied")), "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn who_made_the_tokens_of_before_is_taken_from_the_audit() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let ann = member(&world, "ann@example.com", json!({ "role": "admin" })).await;
    let (robot_of_ann, id) = robot(&world, &ann, "admin").await;
    let (robot_of_robot, _) = robot(&world, &robot_of_ann, "editor").await;
    let before = [
        submitted(&world, &robot_of_ann, "on").await,
        submitted(&world, &robot_of_robot, "on").await,
    ];
    let path = format!("{OURS}/tokens/{id}");
    assert_eq!(send_as(&world, &ann, "DELETE", &path, None, json!({})).await.0, 204);
    // As they were stored before makers were kept, and as the migration finds them.
    assert_eq!(world.sql("UPDATE access_token SET maker_key = NULL").await, 1);
    assert!(world.sql("UPDATE change_set_event SET maker_key = NULL").await >= 4);
    let migration = include_str!("../../../migrations/sqlite/0015_makers.sql");
    let mut ran = 0;
    for (at, _) in migration.match_indices("UPDATE ") {
        world.sql(migration[at..].split(';').next().expect("a statement")).await;
        ran += 1;
    }
    assert_eq!(ran, 2);
    let after = submitted(&world, &robot_of_robot, "on").await;
    for number in before.iter().chain([&after]) {
        assert!(is_refused(&world, &ann, number).await, "{number}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_bootstrap_token_is_nobodys_second_pair_of_eyes() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let editor = member(&world, "ed@example.com", json!({ "role": "editor" })).await;
    let admin = member(&world, "ad@example.com", json!({ "role": "admin" })).await;
    let number = submitted(&world, &editor, "on").await;
    assert!(is_refused(&world, &world.token, &number).await);
    let (_, set) = world.get(&format!("{SETS}/{number}")).await;
    assert_eq!((&set["state"], &set["approvals"][0]["by"]), (&json!("review"), &json!([])));
    // Nor does one count that a control from before has taken.
    assert_eq!(approve_as(&world, &admin, &number).await.1["state"], "approved");
    let theirs = "UPDATE change_set_event SET actor_key = (SELECT 'bootstrap:' || id FROM admin_token) \
        WHERE kind = 'approved'";
    assert_eq!(world.sql(theirs).await, 1);
    let apply = format!("{SETS}/{number}/apply");
    let (status, body) = post(&world, &editor, &apply, json!({})).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    world.control.shutdown().await;
}
