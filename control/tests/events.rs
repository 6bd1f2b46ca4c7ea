//! The event stream: what is done in some namespaces, for as long as somebody may read it.

mod world;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use world::{PATIENCE, World};

#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

struct Stream {
    answer: reqwest::Response,
    rest: String,
    waiting: VecDeque<Event>,
}

impl Stream {
    async fn open(world: &World, token: &str, query: &str, last: Option<&str>) -> Stream {
        let mut request = world.http.get(format!("{}/api/v1/events?{query}", world.url));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.bearer_auth(token).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Stream { answer, rest: String::new(), waiting: VecDeque::new() }
    }

    /// None once it has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await;
            let chunk = chunk.expect("something in time").ok().flatten()?;
            self.rest.push_str(std::str::from_utf8(&chunk).expect("text"));
            while let Some((event, rest)) = self.rest.clone().split_once("\n\n") {
                self.rest = rest.to_owned();
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().trim().to_owned()
                };
                if !event.starts_with(':') {
                    let data = serde_json::from_str(&field("data:")).expect("JSON");
                    let (id, kind) = (field("id:"), field("event:"));
                    self.waiting.push_back(Event { id, kind, data });
                }
            }
        }
    }

    async fn expect(&mut self) -> Event {
        self.next().await.expect("an event, not the end")
    }
}

async fn world() -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    world.namespace("theirs").await;
    world
}

#[tokio::test]
async fn a_stream_tells_of_what_is_done_in_its_namespaces_and_goes_on_where_it_ended() {
    let world = world().await;
    let mut both =
        Stream::open(&world, &world.token, "namespace=ours&namespace=theirs", None).await;
    let mut one = Stream::open(&world, &world.token, "namespace=ours", None).await;
    let ready = both.expect().await;
    assert_eq!((ready.kind.as_str(), ready.id.as_str()), ("ready", "ours:2,theirs:2"));
    assert_eq!(ready.data, json!({ "namespaces": { "ours": 2, "theirs": 2 } }));
    assert_eq!(one.expect().await.id, "ours:2");
    assert_eq!(world.flag("theirs", "f").await.0, 201);
    let first = both.expect().await;
    assert_eq!((first.kind.as_str(), first.id.as_str()), ("change", "ours:2,theirs:3"));
    assert_eq!(first.data["type"], "flag.create");
    assert_eq!(
        (&first.data["data"]["namespace"], &first.data["data"]["target"]),
        (&json!("theirs"), &json!("f"))
    );
    // What one look finds in several namespaces it tells in their order.
    assert_eq!(world.flag("ours", "g").await.0, 201);
    let next = both.expect().await;
    assert_eq!((next.id.as_str(), &next.data["data"]["target"]), ("ours:3,theirs:3", &json!("g")));
    let only = one.expect().await;
    assert_eq!((only.id.as_str(), &only.data["data"]["target"]), ("ours:3", &json!("g")));
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?object=g").await;
    assert_eq!(audit["items"][0]["hash"], only.data["data"]["hash"]);

    drop((both, one));
    for index in 0..3 {
        assert_eq!(world.flag("ours", &format!("h{index}")).await.0, 201);
    }
    let mut again = Stream::open(&world, &world.token, "namespace=ours", Some("ours:4")).await;
    let told = [again.expect().await, again.expect().await, again.expect().await];
    assert_eq!(told[0].kind, "ready");
    let ids: Vec<&str> = told.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["ours:4", "ours:5", "ours:6"]);
    // What no server of ours gave out is as good as the end, or the beginning.
    for (made_up, begins) in [("ours:99", "ours:6"), ("nonsense", "ours:6"), ("ours:-5", "ours:0")]
    {
        let mut stream = Stream::open(&world, &world.token, "namespace=ours", Some(made_up)).await;
        assert_eq!(stream.expect().await.id, begins, "{made_up}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn who_was_away_for_too_long_is_told_to_read_anew() {
    let world = world().await;
    // A thousand rows take long to make, and nothing here asks whether they are whole.
    let fill = "INSERT INTO audit (namespace_id, sequence, at, actor, action, target, previous, hash) \
        SELECT n.id, a.sequence * 600 + b.sequence * 200 + 3, 0, 'x', 'x', 'x', a.hash, a.hash \
        FROM namespace n JOIN audit a ON a.namespace_id = n.id JOIN audit b ON b.namespace_id = n.id \
        WHERE n.key = 'ours'";
    assert_eq!(world.sql(fill).await, 4);
    world.sql("UPDATE namespace SET audit_sequence = 1603 WHERE key = 'ours'").await;
    let mut stream = Stream::open(&world, &world.token, "namespace=ours", Some("ours:2")).await;
    assert_eq!(stream.expect().await.kind, "ready");
    let reset = stream.expect().await;
    assert_eq!((reset.kind.as_str(), reset.id.as_str()), ("reset", "ours:1603"));
    assert_eq!(reset.data, json!({ "namespace": "ours", "sequence": 1603 }));
    world.control.shutdown().await;
}

#[tokio::test]
async fn nobody_is_told_of_what_they_may_not_read_and_a_stream_ends_with_the_right_to_it() {
    let world = world().await;
    for query in ["", "namespace=nowhere", "namespace=ours&namespace=nowhere", "names=ours"] {
        let (status, body) = world.get(&format!("/api/v1/events?{query}")).await;
        assert!(matches!(status, 400 | 404), "{query}: {status} {body}");
    }
    let many: Vec<String> = (0..21).map(|index| format!("namespace=n{index}")).collect();
    assert_eq!(world.get(&format!("/api/v1/events?{}", many.join("&"))).await.0, 400);

    let roles = json!({ "name": "reader", "role": "viewer" });
    let (status, made) = world.post("/api/v1/namespaces/ours/tokens", roles).await;
    assert_eq!(status, 201, "{made}");
    let (token, id) =
        (made["token"].as_str().expect("a token"), made["id"].as_str().expect("an id"));
    let refused = world.http.get(format!("{}/api/v1/events?namespace=theirs", world.url));
    assert_eq!(refused.bearer_auth(token).send().await.expect("an answer").status(), 404);
    let mut stream = Stream::open(&world, token, "namespace=ours", None).await;
    assert_eq!(stream.expect().await.kind, "ready");
    assert_eq!(world.delete(&format!("/api/v1/namespaces/ours/tokens/{id}")).await.0, 204);
    assert_eq!(world.flag("ours", "secret").await.0, 201);
    while let Some(event) = stream.next().await {
        assert_ne!(event.data["data"]["target"], "secret", "told after the token was revoked");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_stream_ends_with_control_and_a_shutdown_does_not_wait_for_it() {
    let world = World::with(tempfile::tempdir().expect("a folder"), |config| {
        config.drain = Duration::from_secs(3600);
    })
    .await;
    world.namespace("ours").await;
    let mut stream = Stream::open(&world, &world.token, "namespace=ours", None).await;
    assert_eq!(stream.expect().await.kind, "ready");
    let World { control, http, .. } = world;
    drop(http);
    let ended = tokio::time::timeout(PATIENCE, control.shutdown());
    let (ended, rest) = tokio::join!(ended, stream.next());
    ended.expect("it ends in time");
    assert_eq!(rest, None);
}
