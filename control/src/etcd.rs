//! Who leads, by election in etcd, and which edges have registered there.
//!
//! The election is one key under a lease: who makes it leads, by the key's create revision as epoch,
//! once the database has taken that epoch (`lead.rs`). Nothing that etcd says is proof: this process
//! leads only until a time by its own clock that began before it asked for the lease, and the
//! database refuses what carries an epoch that is over. Whatever goes wrong (the lease, the
//! connection, the database) ends the leadership at once and begins again from nothing.
//!
//! An etcd is known by its cluster's id and by a name that control keeps in it, because a wiped etcd
//! that is started as before has the same id again. Names of keys: `rules::etcd`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};
use rules::etcd::{Etcd, Registration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lead::{self, Lead, Recorded};
use crate::registrations::{REGISTRATIONS_MAX, Registrations};
use crate::relay::jittered;
use crate::store::new_id;

/// Of one question.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of the database, for the takeover: it waits for what the former leader has under way.
const RECORD_MAX: Duration = Duration::from_secs(15);
/// Who does not lead looks this often (± 50 %) whether its connection still tells it the truth.
const LOOK: Duration = Duration::from_secs(5);
/// And this often whether an operator has adopted this etcd.
const ADOPTED_LOOK: Duration = Duration::from_secs(1);
/// Between tries (± 50 %), doubled with each until the second: an etcd that came back is found soon.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A session of this length was none that failed at once.
const SESSION_GOOD: Duration = Duration::from_secs(5);
/// A shutdown waits no longer than this to give the lease back.
const RESIGN_MAX: Duration = Duration::from_secs(6);
/// etcd cuts off who pings more often than every 5 s.
const PING: Duration = Duration::from_secs(10);
/// Registrations are read as a whole this often (± 50 %), whatever the watch has said.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// Registrations of one answer: their keys and values are short, or not an edge's.
const READ_AT_ONCE: usize = 256;

/// One question, with an end to waiting for its answer.
async fn ask<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> anyhow::Result<T> {
    ask_for(ANSWER_MAX, what, answer).await
}

async fn ask_for<T>(
    max: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(max, answer).await;
    answer
        .with_context(|| format!("etcd does not answer ({what})"))?
        .with_context(|| format!("etcd cannot be used ({what})"))
}

/// To one member; the next attempt takes the next one.
async fn connect(etcd: &Etcd, attempt: usize) -> anyhow::Result<Client> {
    // An error says that the process has one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoints = etcd.endpoints();
    let endpoint = &endpoints[attempt % endpoints.len()];
    let mut options = ConnectOptions::new()
        .with_connect_timeout(ANSWER_MAX)
        .with_keep_alive(PING, PING / 2)
        // A member that lost its cluster knows nothing.
        .with_require_leader(true);
    if !etcd.user.is_empty() {
        let password = etcd.password.as_ref().map_or("", |password| password.reveal());
        options = options.with_user(&etcd.user, password).with_auto_token_refresh(true);
    }
    if endpoint.starts_with("https://") {
        let tls = TlsOptions::new();
        options = options.with_tls(match &etcd.roots {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_enabled_roots(),
        });
    }
    ask("connect", Client::connect([endpoint], Some(options))).await
}

fn pause_after(failures: u32) -> Duration {
    jittered(RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX))
}

/// What this control may have left in etcd that keeps it, or another one, from leading.
#[derive(Debug)]
enum Seat {
    /// Nobody has looked yet: before it was killed, it may have led.
    OfFormerLife,
    /// A lease that may hold the leader's key, also when etcd went away before it said so.
    Granted(i64),
    Nothing,
}

/// Campaigns, leads and campaigns again until told to stop, then resigns.
pub async fn elect(lead: Arc<Lead>, etcd: Etcd, stop: CancellationToken) {
    let mut seat = Seat::OfFormerLife;
    let (mut attempt, mut failures) = (0usize, 0u32);
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = campaign(&lead, &etcd, attempt, &mut seat) => Some(ended),
        };
        lead.lose();
        let Some(Err(error)) = ended else { break };
        lead.set_obstacle(Some(format!("{error:#}")));
        failures = if began.elapsed() < SESSION_GOOD { failures.saturating_add(1) } else { 0 };
        attempt = attempt.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause_after(failures)) => {}
        }
    }
    let Seat::Granted(lease) = seat else { return };
    let resign = async {
        let mut client = connect(&etcd, attempt).await?;
        revoke(&mut client, lease).await
    };
    match tokio::time::timeout(RESIGN_MAX, resign).await {
        Ok(Ok(())) => {}
        failed => tracing::warn!(
            ?failed,
            "the lease was not given back to etcd; another control waits until it is over"
        ),
    }
}

/// Which etcd this is, in the database's words.
async fn identify(client: &mut Client, etcd: &Etcd) -> anyhow::Result<(String, String)> {
    let key = etcd.incarnation_key();
    let new = new_id();
    let name = Txn::new()
        .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.clone(), new.clone(), None)])
        .or_else([TxnOp::get(key.clone(), None)]);
    let named = ask("which one it is", client.txn(name)).await?;
    let name = match named.op_responses().into_iter().next() {
        Some(TxnOpResponse::Get(there)) => {
            let there = there.kvs().first().map(|there| there.value().to_vec()).unwrap_or_default();
            String::from_utf8(there).ok().filter(|name| is_name(name))
        }
        _ => Some(new),
    };
    let name = name.with_context(|| format!("{key} of this etcd was not written by control"))?;
    let cluster = named.header().context("etcd does not say which cluster it is")?.cluster_id();
    Ok((format!("etcd:{cluster:016x}:{name}"), name))
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Ends with a reason, never without.
async fn campaign(
    lead: &Lead,
    etcd: &Etcd,
    attempt: usize,
    seat: &mut Seat,
) -> anyhow::Result<Infallible> {
    let mut client = connect(etcd, attempt).await?;
    if let Seat::Granted(lease) = *seat {
        revoke(&mut client, lease).await?;
        *seat = Seat::Nothing;
    }
    let key = etcd.leader_key();
    let ttl_s = i64::try_from(lead.lease.as_secs()).unwrap_or(i64::MAX).max(1);
    loop {
        let (coordinator, name) = identify(&mut client, etcd).await?;
        if let Some((recorded, _)) = recorded(lead, ANSWER_MAX).await?
            && recorded != coordinator
        {
            lead.set_obstacle(Some(lead::not_adopted(&recorded, &coordinator)));
            tokio::time::sleep(jittered(ADOPTED_LOOK)).await;
            continue;
        }
        let there = ask("who leads", client.get(key.clone(), None)).await?;
        if let Some(leader) = there.kvs().first() {
            // Only once: another one with this one's name, of a folder that was copied, is left alone.
            let former = std::mem::replace(seat, Seat::Nothing);
            let named_as_this = leader.value() == lead.holder.as_bytes() && leader.lease() != 0;
            if matches!(former, Seat::OfFormerLife) && named_as_this {
                revoke(&mut client, leader.lease()).await?;
                continue;
            }
            lead.set_obstacle(None);
            let revision = there.header().map_or(0, |header| header.revision());
            until_free(&mut client, &key, revision).await?;
            continue;
        }
        let asked = Instant::now();
        let granted = ask("a lease", client.lease_grant(ttl_s, None)).await?;
        *seat = Seat::Granted(granted.id());
        // As long as we asked for, or shorter if etcd thinks so.
        let lease = lead.lease.min(seconds(granted.ttl()));
        let held = PutOptions::new().with_lease(granted.id());
        let take = Txn::new()
            .when([
                Compare::create_revision(key.clone(), CompareOp::Equal, 0),
                // Still the etcd that was identified.
                Compare::value(etcd.incarnation_key(), CompareOp::Equal, name),
            ])
            .and_then([
                TxnOp::put(key.clone(), lead.holder.clone(), Some(held)),
                TxnOp::get(key.clone(), None),
            ]);
        let taken = ask("the election", client.txn(take)).await?;
        let revision = taken.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(got) => got.kvs().first().map(|key| key.create_revision()),
            _ => None,
        });
        match revision.filter(|_| taken.succeeded()) {
            None => {
                revoke(&mut client, granted.id()).await?;
                *seat = Seat::Nothing;
            }
            Some(revision) => {
                let won = Won { coordinator, revision, lease: granted.id(), life: lease };
                preside(lead, &mut client, &won, asked + lease).await?;
            }
        }
    }
}

/// An election that was won, which is not to lead yet.
struct Won {
    coordinator: String,
    revision: i64,
    lease: i64,
    life: Duration,
}

/// Has the database take the epoch, and leads for as long as etcd and the database say so.
async fn preside(
    lead: &Lead,
    client: &mut Client,
    won: &Won,
    mut until: Instant,
) -> anyhow::Result<Infallible> {
    let period = won.life / 3;
    let answer = period.min(ANSWER_MAX);
    let asked = Instant::now();
    let (mut keeper, mut answers) =
        ask_for(answer, "keeping the lease", client.lease_keep_alive(won.lease)).await?;
    until = until.max(asked + won.life);

    let recording = tokio::time::timeout(RECORD_MAX, lead.record(&won.coordinator, won.revision));
    tokio::pin!(recording);
    let mut epoch = None;
    let mut changes = lead.changes();
    let mut heard_of_database = Instant::now();
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut recording, if epoch.is_none() => {
                let done = done.context("the database does not answer")?;
                match done.context("the database does not take the epoch")? {
                    Recorded::Leads(now) => {
                        ensure!(Instant::now() < until, "the lease ran out during the takeover");
                        heard_of_database = Instant::now();
                        epoch = Some(now);
                        lead.set_obstacle(None);
                        lead.begin(now, until);
                    }
                    Recorded::NotAdopted(other) => bail!(lead::not_adopted(&other, &won.coordinator)),
                    Recorded::Stale(newest) => bail!(
                        "etcd gives revision {}, which is no later epoch than the database's {}; \
                         if this lasts, etcd was set back to an older state: run `tidegate control \
                         adopt-coordinator {}`",
                        won.revision, newest.0, won.coordinator
                    ),
                }
            }
            _ = tick.tick() => {
                // What etcd needs for it counts against us.
                let asked = Instant::now();
                let keep = ask_for(answer, "keeping the lease", async {
                    keeper.keep_alive().await?;
                    answers.message().await
                });
                let (kept, recorded) = tokio::join!(keep, recorded(lead, answer));
                let kept = kept?.context("etcd ended the stream that keeps the lease")?;
                ensure!(kept.ttl() > 0, "the lease ran out");
                until = asked + won.life.min(seconds(kept.ttl()));
                let Some(epoch) = epoch else { continue };
                match recorded {
                    Ok(now) => {
                        heard_of_database = Instant::now();
                        ensure!(
                            now == Some((won.coordinator.clone(), epoch)),
                            "the database has another leader: {now:?}"
                        );
                    }
                    // Another control may reach it.
                    Err(error) if heard_of_database.elapsed() > won.life => return Err(error),
                    Err(_) => {}
                }
                ensure!(lead.extend(epoch, until), "the database refused epoch {}", epoch.0);
            }
            // Nothing was asked, so all that can come is its end.
            ended = answers.message() => {
                let said = ended.context("etcd broke off the stream that keeps the lease")?;
                ensure!(said.is_some(), "etcd ended the stream that keeps the lease");
            }
            _ = changes.changed(), if epoch.is_some() => {
                ensure!(lead.epoch() == epoch, "the database refused {epoch:?}");
            }
        }
    }
}

async fn recorded(lead: &Lead, max: Duration) -> anyhow::Result<Option<(String, lead::Epoch)>> {
    let recorded = tokio::time::timeout(max, lead::recorded(&lead.store)).await;
    recorded.context("the database does not answer")?.context("the database does not answer")
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// A lease that is gone is as good as one that was given back.
async fn revoke(client: &mut Client, lease: i64) -> anyhow::Result<()> {
    let revoked = tokio::time::timeout(ANSWER_MAX, client.lease_revoke(lease)).await;
    match revoked.context("etcd does not answer (giving the lease back)")? {
        Ok(_) => Ok(()),
        // NotFound.
        Err(etcd_client::Error::GRpcStatus(status)) if status.code() as i32 == 5 => Ok(()),
        Err(error) => Err(error).context("etcd does not take the lease back"),
    }
}

/// Returns when the key was deleted after `revision`, or when it is time to look.
async fn until_free(client: &mut Client, key: &str, revision: i64) -> anyhow::Result<()> {
    let deleted = WatchOptions::new()
        .with_start_revision(revision + 1)
        .with_filters([WatchFilterType::NoPut]);
    let mut watch = ask("watching the leader", client.watch(key, Some(deleted))).await?;
    let watched = async {
        while let Some(heard) = watch.message().await.context("watching the leader")? {
            if heard.canceled() {
                // Compacted, or not permitted; then looking now and then is all there is.
                tokio::time::sleep(jittered(ADOPTED_LOOK)).await;
                return Ok(());
            }
            if !heard.events().is_empty() {
                return Ok(());
            }
        }
        bail!("etcd ended the watch of the leader")
    };
    tokio::time::timeout(jittered(LOOK), watched).await.unwrap_or(Ok(()))
}

/// Keeps `registrations` as etcd has them until told to stop.
pub async fn follow_edges(etcd: Etcd, registrations: Registrations, stop: CancellationToken) {
    let (mut attempt, mut failures) = (0usize, 0u32);
    loop {
        let followed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            followed = follow(&etcd, &registrations, attempt) => followed,
        };
        match followed {
            Ok(()) => failures = 0,
            Err(error) => {
                if registrations.forget() {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "which edges have registered is not known; etcd is asked again"
                    );
                }
                attempt = attempt.wrapping_add(1);
                failures = failures.saturating_add(1);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause_after(failures)) => {}
        }
    }
}

async fn follow(etcd: &Etcd, registrations: &Registrations, attempt: usize) -> anyhow::Result<()> {
    let mut client = connect(etcd, attempt).await?;
    let prefix = etcd.edges_prefix();
    // It ends with /, and 0 comes after that.
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let mut found = BTreeMap::new();
    let (mut from, mut revision) = (prefix.clone().into_bytes(), 0);
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_revision(revision)
            .with_limit(READ_AT_ONCE as i64);
        let page = ask("edges", client.get(from.clone(), Some(options))).await?;
        if revision == 0 {
            revision = page.header().context("etcd does not say how far it is")?.revision();
        }
        for entry in page.kvs() {
            if let Some(edge) = entry.key_str().ok().and_then(|key| etcd.edge_of(key))
                && let Some(said) = Registration::parse(entry.value())
                && found.len() < REGISTRATIONS_MAX
            {
                found.insert(edge, said);
            }
        }
        match page.kvs().last() {
            Some(last) if page.more() && found.len() < REGISTRATIONS_MAX => {
                from = [last.key(), b"\0"].concat();
            }
            _ => break,
        }
    }
    registrations.replace(found);

    let options = WatchOptions::new().with_range(end).with_start_revision(revision + 1);
    let mut watch = ask("watching edges", client.watch(prefix, Some(options))).await?;
    let watched = async {
        while let Some(heard) = watch.message().await.context("watching edges")? {
            ensure!(!heard.canceled(), "etcd ended the watch of edges: {}", heard.cancel_reason());
            for event in heard.events() {
                let Some(entry) = event.kv() else { continue };
                let edge = entry.key_str().ok().and_then(|key| etcd.edge_of(key));
                let Some(edge) = edge else { continue };
                match event.event_type() {
                    EventType::Delete => registrations.lapsed(&edge),
                    EventType::Put => {
                        if let Some(said) = Registration::parse(entry.value()) {
                            registrations.put(edge, said);
                        }
                    }
                }
            }
        }
        bail!("etcd ended the watch of edges")
    };
    tokio::time::timeout(jittered(READ_AGAIN), watched).await.unwrap_or(Ok(()))
}
