//! Arguments of filters and methods by the names that Python gives them.

use super::python::{refused, text};
use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Arguments by position and by name; what is not given, or given as none, is `None`.
pub(super) fn bind<const N: usize>(
    positional: &[Value],
    named: &Kwargs,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = [const { None }; N];
    for (at, name) in names.into_iter().enumerate() {
        let by_name: Option<Value> = named.get(name)?;
        let given = positional.get(at).cloned().or(by_name);
        found[at] = given.filter(|value| !value.is_none() && !value.is_undefined());
    }
    named.assert_all_used()?;
    Ok(found)
}

/// The arguments of a method.
pub(super) fn of_method<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    bind(&positional, &named, names)
}

/// A text that is given.
pub(super) fn text_of(value: Option<Value>, name: &str) -> Result<Option<String>, Error> {
    match value {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) => Ok(Some(text.to_string())),
            None => Err(refused(format!("`{name}` must be a text, not a value of type {}", value.kind()))),
        },
    }
}

/// A text that must be given.
pub(super) fn needed(value: Option<Value>, name: &str) -> Result<String, Error> {
    text_of(value, name)?.ok_or_else(|| refused(format!("`{name}` is missing")))
}

/// A whole number that is given.
pub(super) fn whole(value: Option<Value>) -> Result<Option<i64>, Error> {
    value.map(i64::try_from).transpose()
}

/// Whether an argument is true; it is not without one.
pub(super) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// The text of what a filter is put behind, as Python's `str` has it.
pub(super) fn subject(value: &Value) -> Result<String, Error> {
    text(value)
}

/// Pays for bytes before they are made, at the price that the engine takes for those that are there.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / 64) as u64)
}
