//! JSON written exactly as Python's `json.dumps` writes it, because models were trained on that.

use std::fmt::Write;

use serde_json::Value;

/// The options of `json.dumps` that chat templates use.
#[derive(Clone, Debug)]
pub(crate) struct JsonStyle {
    /// Characters outside ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Spaces per level; none for one line.
    pub indent: Option<usize>,
    /// Between items, and between key and value.
    pub separators: (String, String),
    /// Keys in alphabetical order.
    pub sort_keys: bool,
}

impl JsonStyle {
    /// Python's defaults for this indentation, with text left as it is.
    pub(crate) fn new(indent: Option<usize>) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self {
            ensure_ascii: false,
            indent,
            separators: (item.to_owned(), ": ".to_owned()),
            sort_keys: false,
        }
    }

    /// Writes `value`.
    pub(crate) fn dump(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(&mut out, value, 0);
        out
    }

    fn write(&self, out: &mut String, value: &Value, level: usize) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => out.push_str(&python_float(float)),
                None => out.push_str(&number.to_string()),
            },
            Value::String(text) => self.write_string(out, text),
            Value::Array(items) => {
                self.write_items(out, ('[', ']'), items.iter(), level, |out, item| {
                    self.write(out, item, level + 1);
                });
            }
            Value::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| key.as_str());
                }
                self.write_items(out, ('{', '}'), entries.into_iter(), level, |out, entry| {
                    self.write_string(out, entry.0);
                    out.push_str(&self.separators.1);
                    self.write(out, entry.1, level + 1);
                });
            }
        }
    }

    fn write_items<T>(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: impl ExactSizeIterator<Item = T>,
        level: usize,
        mut write: impl FnMut(&mut String, T),
    ) {
        let is_empty = items.len() == 0;
        out.push(open);
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.separators.0);
            }
            self.break_line(out, level + 1);
            write(out, item);
        }
        if !is_empty {
            self.break_line(out, level);
        }
        out.push(close);
    }

    fn break_line(&self, out: &mut String, level: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `repr` of a Python float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) =
        exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_read_as_python_writes_them() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789012345.0, "123456789012345.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (-2.5e-300, "-2.5e-300"),
        ] {
            assert_eq!(python_float(value), expected);
        }
    }

    #[test]
    fn layout_follows_the_options() {
        let value = json!({"b": [1, 2.0, null, true], "a": {}, "c": []});
        assert_eq!(
            JsonStyle::new(None).dump(&value),
            r#"{"b": [1, 2.0, null, true], "a": {}, "c": []}"#
        );
        let sorted = JsonStyle { sort_keys: true, ..JsonStyle::new(Some(2)) };
        assert_eq!(
            sorted.dump(&json!({"b": [1], "a": {}})),
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}"
        );
        let compact = JsonStyle { separators: (",".into(), ":".into()), ..JsonStyle::new(None) };
        assert_eq!(compact.dump(&json!({"a": [1, 2]})), r#"{"a":[1,2]}"#);
    }

    #[test]
    fn text_is_escaped_as_json_and_never_for_html() {
        let text = json!("<a href='x'>&\u{1}\n\"é🙂\u{7f}");
        assert_eq!(JsonStyle::new(None).dump(&text), "\"<a href='x'>&\\u0001\\n\\\"é🙂\u{7f}\"");
        let ascii = JsonStyle { ensure_ascii: true, ..JsonStyle::new(None) };
        assert_eq!(ascii.dump(&json!("é🙂\u{7f}")), r#""\u00e9\ud83d\ude42\u007f""#);
    }
}
