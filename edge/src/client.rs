//! The browsers' snapshot of one environment as this edge hands it out: checked, wrapped and
//! compressed once, when it is taken up, and the same bytes for everybody.

use std::io::Write as _;

use bytes::Bytes;
use http::HeaderValue;
use rules::client::{self, ClientHead, ClientManifest};
use rules::head::SignedHead;

/// Compressing happens before a swap, so it must not take long; of the levels that a megabyte passes
/// in some ten milliseconds these make the smallest.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 9;

/// How an answer's bytes are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// In `Content-Encoding` and `Accept-Encoding`.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Coding::Identity => None,
            Coding::Gzip => Some("gzip"),
            Coding::Zstd => Some("zstd"),
        }
    }
}

/// The container in one coding, with the entity tag that it has in it: a strong one names bytes.
#[derive(Debug)]
pub struct Representation {
    pub coding: Coding,
    pub etag: HeaderValue,
    pub body: Bytes,
}

#[derive(Debug)]
pub struct Client {
    pub head: ClientHead,
    pub signed: SignedHead,
    pub manifest: ClientManifest,
    /// As its digest names it; a part of the container's bytes.
    pub blob: Bytes,
    /// The shortest first; the last one is the container as it is.
    representations: Vec<Representation>,
}

impl Client {
    /// `head` is what `signed` says, and `blob` what it names; the caller has checked both. Slow for
    /// megabytes.
    pub fn make(head: ClientHead, signed: SignedHead, blob: &[u8]) -> Result<Client, String> {
        let (manifest, _) = client::decode_blob(blob).map_err(|error| error.to_string())?;
        if (&manifest.namespace, &manifest.environment) != (&head.namespace, &head.environment) {
            return Err("the client snapshot is of another environment than its head".to_owned());
        }
        let container =
            client::encode_container(&signed, blob).map_err(|error| error.to_string())?;
        let container = Bytes::from(container);
        let blob = container.slice(container.len() - blob.len()..);
        let tag = xxhash_rust::xxh3::xxh3_128(&container);
        let of = |coding: Coding, body: Bytes| {
            let suffix = coding.name().map(|name| format!("-{name}")).unwrap_or_default();
            let etag = HeaderValue::from_str(&format!("\"{tag:032x}{suffix}\""))
                .map_err(|error| error.to_string())?;
            Ok::<_, String>(Representation { coding, etag, body })
        };
        let mut representations = vec![
            of(Coding::Zstd, zstd(&container).map_err(|error| error.to_string())?)?,
            of(Coding::Gzip, gzip(&container).map_err(|error| error.to_string())?)?,
        ];
        representations.retain(|coded| coded.body.len() < container.len());
        representations.sort_by_key(|coded| coded.body.len());
        representations.push(of(Coding::Identity, container)?);
        Ok(Client { head, signed, manifest, blob, representations })
    }

    /// The shortest one that a request with this `Accept-Encoding` takes.
    pub fn for_request(&self, accept_encoding: &str) -> Option<&Representation> {
        let mut all = self.representations.iter();
        all.find(|coded| accepts(accept_encoding, coded.coding)).or(self.representations.last())
    }

    pub fn representations(&self) -> &[Representation] {
        &self.representations
    }
}

/// RFC 9110, 12.5.3, as far as browsers go: a coding is taken if it is named, or all are, and not with
/// a weight of zero.
fn accepts(accept_encoding: &str, coding: Coding) -> bool {
    let Some(name) = coding.name() else { return true };
    let mut any = false;
    for offer in accept_encoding.split(',') {
        let mut parts = offer.split(';').map(str::trim);
        let named = parts.next().unwrap_or_default();
        let refused = parts.any(|part| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
        });
        if named.eq_ignore_ascii_case(name) {
            return !refused;
        }
        any |= named == "*" && !refused;
    }
    any
}

fn gzip(bytes: &[u8]) -> std::io::Result<Bytes> {
    let level = flate2::Compression::new(GZIP_LEVEL);
    // No time and no name in the header: the same container, the same bytes, on every edge.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

fn zstd(bytes: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    // RFC 9659: browsers take windows of up to 8 MB.
    encoder.window_log(22)?;
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_accepts_is_read_as_the_rfc_says() {
        for (offer, gzip, zstd) in [
            ("", false, false),
            ("gzip, deflate, br, zstd", true, true),
            ("gzip;q=0, zstd", false, true),
            ("GZIP ; q=0.5", true, false),
            ("*", true, true),
            ("*;q=0, gzip", true, false),
            ("gzip;q=0.000, *", false, true),
            ("x-gzip, identity", false, false),
        ] {
            let taken = (accepts(offer, Coding::Gzip), accepts(offer, Coding::Zstd));
            assert_eq!(taken, (gzip, zstd), "{offer:?}");
            assert!(accepts(offer, Coding::Identity));
        }
    }
}
