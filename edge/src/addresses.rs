//! Connections by the address that they come from, so that one address cannot have them all.
//!
//! Off unless it is configured: behind one address there may be an office, a mobile network or a proxy of
//! ours, each of whose pages holds a stream, and an edge that closed those would take flags from people
//! who did nothing. What holds for everybody is the limit of all connections and the time limits.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// No more entries than there are connections.
#[derive(Debug, Clone)]
pub struct Addresses {
    most: NonZeroUsize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place among those of its address.
pub struct Entered {
    addresses: Addresses,
    address: IpAddr,
}

/// Whoever has an IPv6 address has 2^64 of them.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        four => four,
    }
}

impl Addresses {
    pub fn new(most: NonZeroUsize) -> Addresses {
        Addresses { most, counts: Arc::default() }
    }

    /// None if there are as many as there may be.
    pub fn enter(&self, address: IpAddr) -> Option<Entered> {
        let address = counted_as(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.most.get() {
            return None;
        }
        *count += 1;
        Some(Entered { addresses: self.clone(), address })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_connection_ends_and_a_network_of_ipv6_is_one_address() {
        let addresses = Addresses::new(const { NonZeroUsize::new(2).unwrap() });
        let enter = |text: &str| addresses.enter(text.parse().unwrap());
        let (one, two) = (enter("2001:db8::1"), enter("2001:db8::ffff:2"));
        assert!(one.is_some() && two.is_some() && enter("2001:db8::3").is_none());
        let other = enter("2001:db8:0:1::1");
        assert!(other.is_some());
        drop(one);
        let again = enter("2001:db8::3");
        assert!(again.is_some() && enter("2001:db8::4").is_none());
        let four = [enter("::ffff:192.0.2.1"), enter("192.0.2.1"), enter("192.0.2.1")];
        assert_eq!(four.map(|place| place.is_some()), [true, true, false]);
        drop((two, again, other));
        assert!(addresses.counts.lock().unwrap().is_empty(), "nothing is remembered");
    }
}
