//! What a pair needs on a device, before anything is loaded.
