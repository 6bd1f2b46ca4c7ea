//! How often somebody may be wrong about a password: five times a minute for one account, twenty for
//! one address. Who is right is not counted.
//!
//! An attempt is counted when it begins and given back when it succeeds, so that a thousand at once are
//! no way around it. What is remembered is bounded; who is forgotten has been quiet for a minute, or was
//! crowded out by a hundred thousand others.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;

const ACCOUNT_MAX: f64 = 5.0;
const ADDRESS_MAX: f64 = 20.0;
const MINUTE: Duration = Duration::from_secs(60);
const REMEMBERED_MAX: u64 = 100_000;

/// Fills with attempts, and empties once a minute.
#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

#[derive(Debug, Clone)]
pub struct Attempts {
    buckets: Cache<String, Arc<Mutex<Bucket>>>,
}

/// One attempt that was let through.
#[derive(Debug)]
pub struct Attempt {
    counted: Vec<Arc<Mutex<Bucket>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many attempts; come again in {seconds} s")]
pub struct TooMany {
    pub seconds: u64,
}

impl Default for Attempts {
    fn default() -> Attempts {
        let buckets = Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(MINUTE).build();
        Attempts { buckets }
    }
}

impl Attempts {
    /// Neither an account nor an address is told to be there by this: both are what was asked for.
    pub fn begin(
        &self,
        account: Option<&str>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Attempt, TooMany> {
        let account = account.map(|account| (format!("account {account}"), ACCOUNT_MAX));
        let address =
            address.map(|address| (format!("address {}", counted_as(address)), ADDRESS_MAX));
        let mut attempt = Attempt { counted: Vec::new() };
        for (name, most) in [account, address].into_iter().flatten() {
            let new = || Arc::new(Mutex::new(Bucket { level: 0.0, at: now }));
            let bucket = self.buckets.get_with(name, new);
            let taken = {
                let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
                let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
                let rate = most / MINUTE.as_secs_f64();
                bucket.level = (bucket.level - passed * rate).max(0.0);
                bucket.at = bucket.at.max(now);
                match bucket.level + 1.0 <= most {
                    true => {
                        bucket.level += 1.0;
                        Ok(())
                    }
                    false => Err(((bucket.level + 1.0 - most) / rate).ceil()),
                }
            };
            match taken {
                Ok(()) => attempt.counted.push(bucket),
                Err(seconds) => {
                    // Refused by one of them, it does not count for the other.
                    attempt.succeeded();
                    return Err(TooMany { seconds: seconds as u64 });
                }
            }
        }
        Ok(attempt)
    }
}

impl Attempt {
    /// It was no mistake.
    pub fn succeeded(self) {
        for bucket in self.counted {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.level = (bucket.level - 1.0).max(0.0);
        }
    }
}

/// Whoever has an IPv6 address has the 2^64 of its network: wherever addresses are counted, these are one.
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_sixth_mistake_of_a_minute_waits_whatever_address_it_comes_from() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for n in 0..5 {
            let from = address(&format!("192.0.2.{n}"));
            assert!(attempts.begin(Some("ann@example.com"), from, now).is_ok());
        }
        let refused = attempts.begin(Some("ann@example.com"), address("192.0.2.9"), now);
        assert_eq!(refused.unwrap_err(), TooMany { seconds: 12 });
        assert!(attempts.begin(Some("bob@example.com"), address("192.0.2.9"), now).is_ok());
        let later = now + Duration::from_secs(12);
        assert!(attempts.begin(Some("ann@example.com"), address("192.0.2.9"), later).is_ok());
        assert!(attempts.begin(Some("ann@example.com"), address("192.0.2.9"), later).is_err());
    }

    #[test]
    fn an_address_tries_twenty_accounts_a_minute_and_is_its_whole_network() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for n in 0..20 {
            let from = address(&format!("2001:db8:1:2::{n:x}"));
            assert!(attempts.begin(Some(&format!("{n}@example.com")), from, now).is_ok());
        }
        let from = address("2001:db8:1:2:ffff::1");
        assert!(attempts.begin(Some("x@example.com"), from, now).is_err());
        // What the address was refused for is not held against the account.
        for _ in 0..5 {
            assert!(attempts.begin(Some("x@example.com"), address("192.0.2.1"), now).is_ok());
        }
    }

    #[test]
    fn who_is_right_is_not_counted() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for _ in 0..100 {
            let attempt = attempts.begin(Some("ann@example.com"), address("192.0.2.1"), now);
            attempt.unwrap().succeeded();
        }
    }
}
