//! Says in etcd that this edge is there, under a lease: when the edge is gone, so is its entry.
//!
//! For people, who see it in control's list of edges. Nothing that is served depends on it, and
//! nothing of it is secret. Whatever goes wrong is begun again from nothing. Names: `rules::etcd`.

use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use etcd_client::{Certificate, Client, ConnectOptions, PutOptions, TlsOptions};
use rules::etcd::{Etcd, Registration};
use tokio_util::sync::CancellationToken;

use crate::config::Register;
use crate::feed::random_fraction;

/// Of one question.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Between tries (± 50 %), doubled with each up to the bound.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A shutdown waits no longer than this to take the entry away.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// Whether the entry is there still is asked with one of so many renewals of the lease: an operator,
/// or an edge with the same name, may have taken it away.
const LOOK_EVERY: u32 = 6;
/// etcd cuts off who pings more often than every 5 s.
const PING: Duration = Duration::from_secs(10);

/// Until told to stop; then the entry goes at once.
pub async fn run(register: Register, mut said: Registration, stop: CancellationToken) {
    let mut lease = None;
    let (mut attempt, mut failures) = (0usize, 0u32);
    let mut told = false;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = keep(&register, attempt, &mut said, &mut lease) => Some(ended),
        };
        let Some(Err(error)) = ended else { break };
        if began.elapsed() > register.lease {
            (failures, told) = (0, false);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                error = format!("{error:#}"),
                "this edge is not registered; it serves as before, and tries again"
            );
        }
        let pause = RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
        failures = failures.saturating_add(1);
        attempt = attempt.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause.mul_f64(0.5 + random_fraction())) => {}
        }
    }
    let Some(lease) = lease else { return };
    let leave = async {
        let mut client = connect(&register.etcd, attempt).await?;
        ask("leaving", client.lease_revoke(lease)).await
    };
    if let Ok(Err(error)) = tokio::time::timeout(LEAVE_MAX, leave).await {
        tracing::debug!(error = format!("{error:#}"), "the registration lapses by itself");
    }
}

async fn keep(
    register: &Register,
    attempt: usize,
    said: &mut Registration,
    seat: &mut Option<i64>,
) -> anyhow::Result<Infallible> {
    let mut client = connect(&register.etcd, attempt).await?;
    let ttl_s = i64::try_from(register.lease.as_secs()).unwrap_or(i64::MAX).max(1);
    let lease = ask("a lease", client.lease_grant(ttl_s, None)).await?.id();
    // A former one lapses by itself: its entry is this one's from now on.
    *seat = Some(lease);
    let key = register.etcd.edge_key(&register.edge_key_id, &register.edge_id);
    said.registered_at_us = crate::now_ms().saturating_mul(1_000);
    let entry = serde_json::to_vec(&said)?;
    let held = PutOptions::new().with_lease(lease);
    ask("registering", client.put(key.clone(), entry, Some(held))).await?;
    tracing::info!(key, "this edge is registered");
    let (mut keeper, mut answers) = ask("the lease", client.lease_keep_alive(lease)).await?;
    let mut tick = tokio::time::interval(register.lease / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for renewal in 1u32.. {
        tick.tick().await;
        let kept = ask("the lease", async {
            keeper.keep_alive().await?;
            answers.message().await
        });
        let kept = kept.await?.context("etcd ended the stream that keeps the lease")?;
        ensure!(kept.ttl() > 0, "the lease ran out");
        if renewal.is_multiple_of(LOOK_EVERY) {
            let there = ask("the entry", client.get(key.clone(), None)).await?;
            ensure!(!there.kvs().is_empty(), "somebody took the entry away");
        }
    }
    bail!("it is time for another connection")
}

async fn ask<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
    let answer = answer.with_context(|| format!("etcd does not answer ({what})"))?;
    answer.with_context(|| format!("etcd cannot be used ({what})"))
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
