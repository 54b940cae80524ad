//! `shoal.toml`: the settings' names as keys, values as numbers, strings, booleans, or (for `join`) a list of strings.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use super::setting::{Setting, names};
use super::{ConfigError, Given, Layer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Number(i64),
    Flag(bool),
    Text(String),
    List(Vec<String>),
}

pub(super) fn read(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let whole: BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>> = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or_else(|| path.display().to_string(), |span| place(path, text, &span));
        ConfigError::new(place, error.message())
    })?;
    let mut layer = Layer::new();
    for (key, value) in whole {
        let name = key.get_ref();
        let setting = Setting::find(name).ok_or_else(|| {
            ConfigError::new(place(path, text, &key.span()), format!("unknown key '{name}'"))
                .with_help(shoal_kernel::suggest::help(name, names()))
        })?;
        let place = place(path, text, &value.span());
        let value = match value.into_inner().try_into::<Value>() {
            Ok(Value::Number(number)) => number.to_string(),
            Ok(Value::Flag(flag)) => flag.to_string(),
            Ok(Value::Text(text)) => text,
            Ok(Value::List(items)) if name == "join" => items.join(","),
            _ => {
                let message = format!("{name} takes a number, a string, true or false; join also a list of strings");
                return Err(ConfigError::new(place, message));
            }
        };
        layer.insert(setting.name, Given { value, place });
    }
    Ok(layer)
}

/// `path:line:column`, as editors understand it.
fn place(path: &Path, text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!("{}:{line}:{column}", path.display())
}
