//! The demo pair.
