//! API keys.

use crate::{Error, Result};
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

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
    /// Keys as given, without the white space around them.
    ///
    /// # Errors
    /// One is empty: a variable that is not set, mostly, and the server would be open to everybody.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Keys> {
        let sum = |key: &str| match key.trim() {
            "" => Err(Error::invalid("expected an API key, found an empty one")),
            key => Ok(Sha256::digest(key.as_bytes()).into()),
        };
        Ok(Keys { sums: keys.into_iter().map(sum).collect::<Result<_>>()? })
    }

    /// Whether the server is open.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Which key a request brings, as `Authorization: Bearer KEY`: its number from 1 on, and 0 if the server is open.
    pub fn admits(&self, headers: &HeaderMap) -> Option<u32> {
        if self.sums.is_empty() {
            return Some(0);
        }
        let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        let (scheme, key) = value.split_at_checked(7).unwrap_or((&[], &[]));
        let sum: [u8; 32] = Sha256::digest(key).into();
        let found = self
            .sums
            .iter()
            .zip(1..)
            .fold(0_u32, |found, (known, number)| u32::conditional_select(&found, &number, known.ct_eq(&sum)));
        (found > 0 && scheme.eq_ignore_ascii_case(b"bearer ")).then_some(found)
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
        let keys = Keys::new(["one", " two\n"]).unwrap();
        assert_eq!(keys.admits(&offered(b"Bearer one")), Some(1));
        assert_eq!(keys.admits(&offered(b"bearer two")), Some(2));
        for wrong in [&b"Bearer on"[..], b"Bearer ", b"one", b"Basic! one", b"Bearer one ", b"Bearer \xff", b""] {
            assert_eq!(keys.admits(&offered(wrong)), None, "{wrong:?}");
        }
        assert_eq!(keys.admits(&HeaderMap::new()), None);
        assert_eq!(Keys::default().admits(&HeaderMap::new()), Some(0));
        for empty in ["", " ", "\n"] {
            assert!(Keys::new(["one", empty]).is_err());
        }
        assert_eq!(format!("{keys:?}"), "2 keys");
    }
}
