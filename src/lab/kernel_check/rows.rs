//! What every op on rows promises: a row has the same bits whenever it is run, and whatever is run with it.

use super::case::Check;
use crate::Result;
use std::fmt::Debug;
use std::ops::Range;

/// Row counts whose results must agree bit for bit.
pub const ROWS: [usize; 7] = [1, 2, 7, 32, 33, 129, 257];

/// One output of a launch, `width` elements a row.
#[derive(Clone)]
pub struct Rows<T> {
    pub name: &'static str,
    pub width: usize,
    pub values: Vec<T>,
}

/// What a launch writes: an output, or several.
pub trait Outputs {
    /// Holds them to rows of another launch's.
    fn hold(&self, check: &mut Check, what: &str, other: &Self, rows: Range<usize>);
}

impl<T: bytemuck::Pod + Debug> Outputs for Rows<T> {
    fn hold(&self, check: &mut Check, what: &str, other: &Self, rows: Range<usize>) {
        let expected = &other.values[rows.start * self.width..rows.end * self.width];
        check.same(&format!("{}, {what}", self.name), &self.values, expected);
    }
}

impl<A: Outputs, B: Outputs> Outputs for (A, B) {
    fn hold(&self, check: &mut Check, what: &str, other: &Self, rows: Range<usize>) {
        self.0.hold(check, what, &other.0, rows.clone());
        self.1.hold(check, what, &other.1, rows);
    }
}

/// Runs all rows twice, which gives the same bits.
pub fn repeated<O: Outputs>(
    check: &mut Check,
    rows: usize,
    mut run: impl FnMut(&mut Check, Range<usize>) -> Result<O>,
) -> Result<O> {
    let all = run(check, 0..rows)?;
    run(check, 0..rows)?.hold(check, "run again", &all, 0..rows);
    Ok(all)
}

/// Runs some of the rows in batches of their own, which gives the bits that they have among all.
pub fn batches<O: Outputs>(
    check: &mut Check,
    all: &O,
    batches: impl IntoIterator<Item = Range<usize>>,
    mut run: impl FnMut(&mut Check, Range<usize>) -> Result<O>,
) -> Result<()> {
    for rows in batches {
        let what = if rows.len() == 1 { format!("row {} alone", rows.start) } else { format!("rows {rows:?} alone") };
        run(check, rows.clone())?.hold(check, &what, all, rows);
    }
    Ok(())
}

/// The first 1, 2, 7, ... of so many rows.
pub fn first_of(rows: usize) -> impl Iterator<Item = Range<usize>> {
    ROWS.into_iter().filter(move |&some| some <= rows).map(|some| 0..some)
}

/// Single rows.
pub fn single<const N: usize>(rows: [usize; N]) -> impl Iterator<Item = Range<usize>> {
    rows.into_iter().map(|row| row..row + 1)
}
