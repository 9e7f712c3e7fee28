//! Rows of Parquet files, where the feature `parquet` is.

use serde_json::Value;
use std::fs::File;

/// Every row as an object.
#[cfg(feature = "parquet")]
pub(super) fn rows(file: File) -> Result<Vec<Value>, String> {
    use ::parquet::errors::ParquetError;
    use ::parquet::file::reader::SerializedFileReader;

    let read = || {
        let expected = |e: ParquetError| format!("expected a Parquet file: {e}");
        let reader = SerializedFileReader::new(file).map_err(expected)?;
        reader.into_iter().map(|row| row.map(|row| row.to_json_value()).map_err(expected)).collect()
    };
    // The reader panics at some damaged files.
    let rows = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    rows.unwrap_or_else(|_| Err("expected a Parquet file, found a damaged one".to_string()))
}

/// Refuses: the reader is not in this build.
#[cfg(not(feature = "parquet"))]
pub(super) fn rows(_: File) -> Result<Vec<Value>, String> {
    Err("this build reads no Parquet files: it lacks the feature `parquet` (cargo build --release --features parquet)"
        .into())
}
