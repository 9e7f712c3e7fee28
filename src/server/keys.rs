//! API keys.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The keys that clients may bring; without any, the server is open.
///
/// Only their SHA-256 sums are kept. A key that is offered is compared with all of them, in a time that does not depend on what
/// they are.
#[derive(Clone, Default)]
pub struct Keys {
    sums: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.sums.len())
    }
}

impl Keys {
    /// Keys as given; empty ones are left out.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Keys {
        let keys = keys.into_iter().map(str::trim).filter(|key| !key.is_empty());
        Keys { sums: keys.map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    /// Whether the server is open.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Whether a request brings a key, as `Authorization: Bearer KEY`.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        if self.sums.is_empty() {
            return true;
        }
        let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        let (scheme, key) = value.split_at_checked(7).unwrap_or((&[], &[]));
        let sum: [u8; 32] = Sha256::digest(key).into();
        let known = self.sums.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&sum));
        bool::from(known) && scheme.eq_ignore_ascii_case(b"bearer ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(value: &'static [u8]) -> HeaderMap {
        let value = axum::http::HeaderValue::from_bytes(value).unwrap();
        [(header::AUTHORIZATION, value)].into_iter().collect()
    }

    #[test]
    fn one_of_several() {
        let keys = Keys::new(["one", " two\n", ""]);
        assert!(keys.admits(&offered(b"Bearer one")) && keys.admits(&offered(b"bearer two")));
        for wrong in [&b"Bearer on"[..], b"Bearer ", b"one", b"Basic! one", b"Bearer one ", b"Bearer \xff", b""] {
            assert!(!keys.admits(&offered(wrong)), "{wrong:?}");
        }
        assert!(!keys.admits(&HeaderMap::new()));
        assert!(Keys::new([""]).is_empty() && Keys::default().admits(&HeaderMap::new()));
        assert_eq!(format!("{keys:?}"), "2 keys");
    }
}
