//! The change stream on a real nats-server: what other systems follow, whatever happens to the broker.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, AckKind};
use e2e::http::{Admin, DEADLINE, client, until};
use e2e::nats::NatsServer;
use e2e::world::{ENVIRONMENT, NAMESPACE, furnish, workspace};
use futures_util::StreamExt as _;
use rules::bus::{self, Broker};
use serde_json::{Value, json};

struct World {
    control: control::Control,
    admin: Admin,
    _folder: tempfile::TempDir,
}

async fn world(broker: Broker) -> World {
    let folder = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = control::config::Config::new(listen, folder.path().join("control"));
    config.bootstrap = true;
    config.broker = Some(broker);
    let control = control::start(config).await.expect("control starts");
    let token = std::fs::read_to_string(&control.admin_token_file).unwrap();
    let admin = Admin {
        url: format!("http://{}", control.address),
        token: token.trim().to_owned(),
        namespace: NAMESPACE.to_owned(),
        environment: ENVIRONMENT.to_owned(),
        http: client(),
    };
    furnish(&admin).await;
    World { control, admin, _folder: folder }
}

impl World {
    async fn flag(&self, key: &str) {
        let definition = json!({ "key": key, "type": "boolean",
            "variants": { "on": true, "off": false } });
        self.admin.create_flag(&definition).await.ok();
    }

    /// Sequence, action and hash of every row, oldest first.
    async fn audit(&self) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/audit?limit=200");
        let page = self.admin.get(&path).await.ok().json();
        let rows = page["items"].as_array().cloned().unwrap_or_default();
        let brief = |row: &Value| json!([row["sequence"], row["action"], row["hash"]]);
        rows.iter().rev().map(brief).collect()
    }
}

async fn consumer(client: async_nats::Client, namespace: &str) -> Result<PullConsumer, String> {
    let context = jetstream::new(client);
    let stream = context.get_stream(bus::changes_stream(namespace)).await;
    let config = pull::Config { durable_name: Some("warehouse".to_owned()), ..Default::default() };
    let stream = stream.map_err(|error| error.to_string())?;
    stream.get_or_create_consumer("warehouse", config).await.map_err(|error| error.to_string())
}

/// The next messages, acknowledged, up to and with `last`.
async fn take(consumer: &PullConsumer, last: &Value) -> Vec<Value> {
    let mut messages = consumer.messages().await.expect("messages");
    let mut taken: Vec<Value> = Vec::new();
    while taken.last() != Some(last) {
        let message = tokio::time::timeout(DEADLINE, messages.next()).await;
        let message = message.unwrap_or_else(|_| panic!("{last} did not come: {taken:?}"));
        let message = message.expect("the stream goes on").expect("a message");
        let event: Value = serde_json::from_slice(&message.payload).expect("JSON");
        taken.push(json!([event["data"]["sequence"], event["type"], event["data"]["hash"]]));
        message.ack_with(AckKind::Ack).await.expect("acknowledged");
    }
    taken
}

async fn until_consumer(server: &NatsServer) -> PullConsumer {
    let client = async_nats::ConnectOptions::new().connection_timeout(DEADLINE);
    let client = client.connect(server.url()).await.expect("connected");
    let found = std::sync::Mutex::new(None);
    until("the stream being there", async || {
        let made = consumer(client.clone(), NAMESPACE).await?;
        *found.lock().unwrap() = Some(made);
        Ok(())
    })
    .await;
    found.into_inner().unwrap().expect("a consumer")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_comes_in_order_also_what_was_done_while_the_broker_was_away() {
    let mut server = NatsServer::start().await;
    let world = world(server.broker()).await;
    for index in 0..5 {
        world.flag(&format!("f{index}")).await;
    }
    let audit = world.audit().await;
    let follower = until_consumer(&server).await;
    assert_eq!(take(&follower, &audit[audit.len() - 1]).await, audit);

    server.kill().await;
    for index in 5..70 {
        world.flag(&format!("f{index}")).await;
    }
    server.run().await;
    let more = world.audit().await;
    // What the broker had acknowledged and control had not written down may come twice.
    let mut came = take(&until_consumer(&server).await, &more[more.len() - 1]).await;
    came.retain(|row| !audit.contains(row));
    came.dedup();
    assert_eq!(came[came.len() - 65..], more[more.len() - 65..]);
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_store_gets_the_rows_again() {
    let mut server = NatsServer::start().await;
    let world = world(server.broker()).await;
    world.flag("f").await;
    let audit = world.audit().await;
    assert_eq!(take(&until_consumer(&server).await, &audit[audit.len() - 1]).await, audit);
    server.kill().await;
    server.wipe();
    server.run().await;
    assert_eq!(take(&until_consumer(&server).await, &audit[audit.len() - 1]).await, audit);
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_configuration_lets_a_follower_have_one_namespaces_changes_and_an_edge_none() {
    let mut server = NatsServer::nowhere().await;
    let world = world(server.broker_as("control", "hunter-control")).await;
    let example = std::fs::read_to_string(workspace().join("deploy/nats.conf")).unwrap();
    // As the file says.
    let with_user = example.replace("#- ", "");
    assert_ne!(with_user, example);
    let config = world._folder.path().join("nats.conf");
    std::fs::write(&config, with_user).unwrap();
    server.configure(
        config,
        &[
            ("TIDEGATE_NATS_CONTROL_PASSWORD", "hunter-control"),
            ("TIDEGATE_NATS_EDGE_PASSWORD", "hunter-edge"),
            ("TIDEGATE_NATS_EDGE_RECEIPTS", "tidegate.receipts.none"),
            ("TIDEGATE_NATS_CHANGES_PASSWORD", "hunter-changes"),
        ],
    );
    server.run().await;
    let mut other = world.admin.clone();
    other.namespace = "other".to_owned();
    furnish(&other).await;
    world.flag("f").await;
    let audit = world.audit().await;
    // What is denied is not answered at all, so it takes as long as one waits.
    let denied_in = Duration::from_secs(2);
    let answered_in = DEADLINE;
    let connect = async |user: &str, password: &str, within: Duration| {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            .custom_inbox_prefix(bus::inbox_prefix(user))
            .connection_timeout(DEADLINE)
            .request_timeout(Some(within))
            .connect(server.url())
            .await
            .expect("connected")
    };
    let control = connect("control", "hunter-control", answered_in).await;
    until("both streams being there", async || {
        for namespace in [NAMESPACE, "other"] {
            let stream = bus::changes_stream(namespace);
            let there = jetstream::new(control.clone()).get_stream(stream).await;
            there.map_err(|error| error.to_string())?;
        }
        Ok(())
    })
    .await;
    let follower = async |within| connect("changes-demo", "hunter-changes", within).await;
    let theirs = consumer(follower(denied_in).await, "other").await;
    assert!(theirs.is_err(), "it follows another namespace");
    let edge = consumer(connect("edge-demo", "hunter-edge", denied_in).await, NAMESPACE).await;
    assert!(edge.is_err(), "an edge follows changes");
    let ours = consumer(follower(answered_in).await, NAMESPACE).await.expect("a consumer");
    assert_eq!(take(&ours, &audit[audit.len() - 1]).await, audit);
    world.control.shutdown().await;
}
