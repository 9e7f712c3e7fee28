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

#[cfg(all(test, not(feature = "parquet")))]
mod tests {
    use crate::batch::input::read;

    #[test]
    fn the_missing_feature_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.parquet");
        std::fs::write(&path, "PAR1").unwrap();
        let message = read(&path, None).unwrap_err().to_string();
        assert!(message.contains("mmlu.parquet") && message.contains("--features parquet"), "{message}");
    }
}

#[cfg(all(test, feature = "parquet"))]
mod tests {
    use crate::batch::input::read;
    use crate::batch::tasks::Task;

    #[test]
    fn rows_of_a_parquet_file() {
        use ::parquet::data_type::{ByteArray, ByteArrayType};
        use ::parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.parquet");
        let schema =
            "message m { required binary question (UTF8); required group options (LIST) { repeated group list {
                      required binary element (UTF8); } } required binary answer (UTF8); }";
        let schema = std::sync::Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        type Column<'a> = (&'a [&'a str], Option<&'a [i16]>, Option<&'a [i16]>);
        let columns: [Column<'_>; 3] = [
            (&["Why?", "How?"], None, None),
            (&["x", "y", "z"], Some(&[1, 1, 1]), Some(&[0, 1, 0])),
            (&["B", "A"], None, None),
        ];
        for (values, definitions, repetitions) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = values.iter().map(|&value| ByteArray::from(value)).collect();
            column.typed::<ByteArrayType>().write_batch(&values, definitions, repetitions).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let all = read(&path, Some(Task::MmluPro)).unwrap();
        assert!(all[0].text.starts_with("Why?\n\n(A) x\n(B) y\n"), "{}", all[0].text);
        assert!(all[1].text.contains("(A) z") && all[1].answer.as_deref() == Some("A"));
        let message = read(&path, None).unwrap_err().to_string();
        assert!(message.contains("row 1: expected `prompt` or `messages`"), "{message}");

        // Damaged anywhere: an error or other rows, and no more.
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            std::fs::write(&path, &bad).unwrap();
            let _ = read(&path, Some(Task::MmluPro));
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("expected a Parquet file"));
    }
}
