//! The filter `pprint`.

use super::arguments::pay;
use super::python::{is_macro, repr};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

/// `pprint.pformat` of what fits a line; longer values are written over several lines, as Python breaks lists and mappings.
pub(super) fn pretty(state: &State, value: &Value) -> Result<Value, Error> {
    let mut output = String::new();
    write_pretty(state, value, 0, 0, &mut output)?;
    Ok(output.into())
}

const PRETTY_WIDTH: usize = 80;

/// Deepest nesting that is laid out.
const PRETTY_DEPTH: usize = 64;

fn write_pretty(state: &State, value: &Value, indent: usize, behind: usize, output: &mut String) -> Result<(), Error> {
    let sorted = sorted_keys(state, value, 0)?;
    let line = repr(&sorted)?;
    pay(state, line.len() + 64)?;
    let count = value.len().unwrap_or(0);
    let (open, close) = match value.kind() {
        ValueKind::Map if !is_macro(value) => ("{", "}"),
        ValueKind::Seq if value.is_tuple() => ("(", ")"),
        ValueKind::Seq => ("[", "]"),
        _ => ("", ""),
    };
    if open.is_empty() || count == 0 || indent > PRETTY_DEPTH || line.chars().count() + indent + behind <= PRETTY_WIDTH
    {
        output.push_str(&line);
        return Ok(());
    }
    output.push_str(open);
    let keys: Vec<Value> = sorted.try_iter()?.checked().collect::<Result<_, _>>()?;
    for (at, key) in keys.iter().enumerate() {
        if at > 0 {
            output.push_str(",\n");
            output.push_str(&" ".repeat(indent + 1));
        }
        let behind = if at + 1 == count { behind + 1 } else { 1 };
        if open == "{" {
            let name = repr(key)?;
            output.push_str(&name);
            output.push_str(": ");
            let indent = indent + name.chars().count() + 3;
            write_pretty(state, &sorted.get_item(key)?, indent, behind, output)?;
        } else {
            write_pretty(state, key, indent + 1, behind, output)?;
        }
    }
    output.push_str(if open == "(" && count == 1 { "," } else { "" });
    output.push_str(close);
    Ok(())
}

fn sorted_keys(state: &State, value: &Value, depth: usize) -> Result<Value, Error> {
    // Lists that hold the same list many times are few in memory, and without end here.
    state.consume_fuel(1)?;
    if depth > PRETTY_DEPTH {
        return Ok(value.clone());
    }
    match value.kind() {
        ValueKind::Map if !is_macro(value) => {
            let mut keys: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
            keys.sort();
            let pairs = keys.into_iter().map(|key| {
                let item = sorted_keys(state, &value.get_item(&key)?, depth + 1)?;
                Ok((key, item))
            });
            Ok(Value::from_pairs(pairs.collect::<Result<Vec<(Value, Value)>, Error>>()?))
        }
        ValueKind::Seq => {
            let items = value.try_iter()?.checked().map(|item| sorted_keys(state, &item?, depth + 1));
            let items = items.collect::<Result<Vec<Value>, Error>>()?;
            Ok(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        _ => Ok(value.clone()),
    }
}
