//! Paged key/value bookkeeping.
