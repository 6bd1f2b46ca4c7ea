//! Change sets as those see them who ask an edge meanwhile, with control and edge as processes; and as
//! docs/CHANGES.md has them typed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::http::{Admin, Ofrep, client, until};
use e2e::page::Page;
use e2e::process::Process;
use e2e::world::{ENVIRONMENT, admin_of, edge_of, furnish};
use serde_json::{Value, json};

const FLAGS: usize = 50;
/// Clients that ask for all flags, one answer after the other.
const CLIENTS: usize = 4;
/// What each of them has to have seen of either state, so that the change fell between their questions.
const ANSWERS_MIN: usize = 3;

struct World {
    _control: Process,
    _edge: Process,
    admin: Admin,
    /// Somebody else, who approves.
    approver: Admin,
    ofrep: Ofrep,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("control");
        let data = data.to_str().expect("UTF-8");
        let arguments = ["control", "--listen", "127.0.0.1:0", "--data-dir", data];
        let control = Process::start(&arguments, &[]).await;
        let admin = admin_of(&control, &control).await;
        let (server_key, _, edge_key) = furnish(&admin).await;
        let settings = [("TIDEGATE_EDGE_KEY", edge_key.as_str())];
        let edge = edge_of(&control, &folder.path().join("edge"), &[], &settings).await;
        let ofrep = Ofrep::new(&edge.text("edge_url"), &server_key);
        let approver = approver(&admin).await;
        World { _control: control, _edge: edge, admin, approver, ofrep, _folder: folder }
    }

    fn path(&self, below: &str) -> String {
        format!("/api/v1/namespaces/{}{below}", self.admin.namespace)
    }

    /// A change set that makes all flags serve this variant, up to the moment in which it can be applied:
    /// its path.
    async fn approved(&self, variant: &str) -> String {
        let items: Vec<Value> = (0..FLAGS)
            .map(|flag| {
                json!({ "kind": "config", "environment": ENVIRONMENT, "key": key(flag),
                    "value": config(variant) })
            })
            .collect();
        let body = json!({ "title": format!("All of them {variant}"), "items": items });
        let made = self.admin.post(&self.path("/change-sets"), &body).await.ok().json();
        let path = self.path(&format!("/change-sets/{}", made["number"]));
        let set = self.admin.post(&format!("{path}/submit"), &json!({})).await.ok();
        assert_eq!(set.json()["state"], "review", "{}", set.text);
        // What was looked at, as it was handed in.
        let approve = self.approver.request(http::Method::POST, &format!("{path}/approve"));
        let approve = approve.header("if-match", set.header("etag")).json(&json!({}));
        let set = e2e::http::send(approve).await.ok();
        assert_eq!(set.json()["state"], "approved", "{}", set.text);
        path
    }
}

/// Somebody with an account of their own, who may approve in this namespace.
async fn approver(admin: &Admin) -> Admin {
    let account = json!({ "email": "bob@example.com" });
    let made = admin.post("/api/v1/users", &account).await.ok().json();
    let accept =
        json!({ "token": made["invitation"]["token"], "password": "four words of his own" });
    let url = format!("{}/api/v1/invitations/accept", admin.url);
    e2e::run::secret("password", "four words of his own");
    let session = e2e::http::send(client().post(url).json(&accept)).await.ok().json();
    let member = format!("/api/v1/namespaces/{}/members/bob@example.com", admin.namespace);
    admin.put(&member, &json!({ "role": "approver" })).await.ok();
    let token = session["accessToken"].as_str().expect("a session").to_owned();
    Admin { token, ..admin.clone() }
}

fn key(flag: usize) -> String {
    format!("f{flag:02}")
}

fn config(variant: &str) -> Value {
    json!({ "enabled": true, "off": "old", "fallthrough": { "variant": variant } })
}

/// What the flags of one answer serve: one value, if they are of one state.
async fn served(ofrep: &Ofrep) -> BTreeSet<String> {
    let answer = ofrep.all(&json!({ "targetingKey": "ann" })).await.ok().json();
    let flags = answer["flags"].as_array().expect("flags");
    assert_eq!(flags.len(), FLAGS, "{answer}");
    flags.iter().map(|flag| flag["value"].as_str().expect("a value").to_owned()).collect()
}

/// The revision that an event of the stream is of: `generation.revision.boundary`.
fn revision(id: &str) -> i64 {
    let revision = id.split('.').nth(1).and_then(|revision| revision.parse().ok());
    revision.unwrap_or_else(|| panic!("no version: {id:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_flags_change_at_an_edge_in_one_revision_and_no_answer_mixes_old_and_new() {
    let world = World::start().await;
    for flag in 0..FLAGS {
        let definition = json!({ "key": key(flag), "type": "string",
            "variants": { "old": "old", "new": "new" } });
        world.admin.create_flag(&definition).await.ok();
    }
    let protection = world.path(&format!("/environments/{ENVIRONMENT}/protection"));
    world.admin.put(&protection, &json!({ "approvals": 1 })).await.ok();
    let first = world.approved("old").await;
    let first = world.admin.post(&format!("{first}/apply?wait=live"), &json!({})).await.ok().json();
    let before = first["revisions"][ENVIRONMENT].as_i64().expect("a revision");
    until("all flags being on", async || {
        let answer = world.ofrep.all(&json!({})).await.json();
        let old = |flags: &Vec<Value>| flags.iter().filter(|flag| flag["value"] == "old").count();
        match answer["flags"].as_array().map(old) {
            Some(FLAGS) => Ok(()),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    let old: BTreeSet<String> = ["old".to_owned()].into();
    let new: BTreeSet<String> = ["new".to_owned()].into();
    assert_eq!(served(&world.ofrep).await, old);

    let second = world.approved("new").await;
    let mut events = world.ofrep.events(&json!({ "targetingKey": "ann" })).await;
    let asking = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (ofrep, asking) = (world.ofrep.clone(), asking.clone());
            let (old, new) = (old.clone(), new.clone());
            tokio::spawn(async move {
                let (mut before, mut after) = (0, 0);
                while after < ANSWERS_MIN {
                    let answer = served(&ofrep).await;
                    assert!(
                        answer == old || answer == new,
                        "a mixture, after {before} old answers"
                    );
                    match answer == old {
                        true => {
                            assert_eq!(after, 0, "old again after new");
                            before += 1;
                        }
                        false => after += 1,
                    }
                    if (before, after) == (ANSWERS_MIN, 0) {
                        asking.fetch_add(1, Ordering::Relaxed);
                    }
                }
                before
            })
        })
        .collect();
    until("clients asking", async || match asking.load(Ordering::Relaxed) {
        CLIENTS => Ok(()),
        asking => Err(format!("{asking} of them")),
    })
    .await;
    let applied = world.admin.post(&format!("{second}/apply"), &json!({})).await.ok().json();
    assert_eq!(applied["revisions"], json!({ ENVIRONMENT: before + 1 }), "{applied}");
    // Asserted once they end, which they do when all of them have seen what is new.
    for client in clients {
        let before = tokio::time::timeout(e2e::http::DEADLINE, client).await;
        assert!(before.expect("it sees what is new in time").expect("no mixture") >= ANSWERS_MIN);
    }
    // The stream tells of one change, and it is the next revision.
    let mut event = events.next().await;
    if revision(&event.id) == before {
        // It begins with the last change before, which may have come between an answer and the stream.
        event = events.next().await;
    }
    assert_eq!(revision(&event.id), before + 1, "{event:?}");
    let environment = world.admin.get(&world.admin.environment_path()).await.ok().json();
    assert_eq!(environment["revision"], before + 1, "{environment}");
    let metrics = e2e::http::send(client().get(format!("{}/metrics", world.ofrep.url))).await.ok();
    let line =
        metrics.text.lines().find(|line| line.starts_with("tidegate_edge_snapshot_revision"));
    let served = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert_eq!(served, Some((before + 1) as f64), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_an_empty_folder_to_a_set_that_is_applied_when_its_time_comes() {
    let port = e2e::ports::free().expect("a port").port();
    // What the page does in three seconds takes a busy machine longer.
    let page = Page::of("docs/CHANGES.md", 10)
        .with("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
        .with("'3 seconds'", "'15 seconds'");
    let followed = page.follow().await;
    for file in ["password", "bobs-password"] {
        e2e::run::secret("password", &followed.read(file));
    }
    // What the page promises, beside that no line failed.
    for said in [
        "it takes a change set now",
        "2 of 2 contexts are answered differently",
        "the caller's default → express (rule beta): 1",
        "1 is approved",
        "1 is applied; production is at revision",
        "2 is scheduled for",
        "2  Blue for everybody  applied",
    ] {
        assert!(followed.said.contains(said), "{said:?}: {}", followed.told);
    }
}
