//! Whatever an origin sends, a result's file name is safe to save under, and reads back as the same name.
//!
//! An input is the origin's Content-Disposition, its Content-Type and the URL, a line each.

use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use operator_service::api::results::FileName;
use percent_encoding::percent_decode_str;

/// The maximum length of a name, in characters, and that of the extensions which are added to it.
const NAME_LIMIT: usize = 200 + 1 + 40;

pub fn check(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [CONTENT_DISPOSITION, CONTENT_TYPE] {
        match HeaderValue::from_bytes(lines.next().unwrap_or_default()) {
            Ok(value) if !value.is_empty() => drop(headers.insert(name, value)),
            // Others do not arrive: the HTTP client refuses them.
            _ => {}
        }
    }
    let url = String::from_utf8_lossy(lines.next().unwrap_or_default());

    let file = FileName::of_origin(&headers, &url);
    let value = file.content_disposition();
    let text = value.to_str().unwrap();
    let name = saved_as(text);
    assert!(!name.is_empty() && name != "." && name != "..", "{text}");
    assert!(!name.contains(|c: char| c.is_control() || c == '/' || c == '\\'), "{text}");
    assert!(name.chars().count() <= NAME_LIMIT, "{text}");
    assert_eq!(name.trim(), name, "{text}");
    if let Some(sent) = headers.get(CONTENT_TYPE) {
        assert_eq!(file.content_type(), sent);
    }

    // A file with such a header has the same name again, unless what was added to it made it too long.
    let mut again = headers.clone();
    again.insert(CONTENT_DISPOSITION, value.clone());
    if name.chars().count() <= 200 {
        assert_eq!(FileName::of_origin(&again, &url).content_disposition(), value);
    }
}

/// The name that a client saves under: `filename*`, else `filename` without quotes and escapes.
fn saved_as(value: &str) -> String {
    let rest = value.strip_prefix("attachment;filename=").unwrap();
    let Some(quoted) = rest.strip_prefix('"') else {
        assert!(!rest.contains([' ', ';', '"']), "{value}");
        return rest.to_owned();
    };
    let (mut name, mut characters) = (String::new(), quoted.chars());
    loop {
        match characters.next().unwrap() {
            '"' => break,
            '\\' => name.extend(characters.next()),
            character => name.push(character),
        }
    }
    match characters.as_str() {
        "" => name,
        extended => {
            let encoded = extended.strip_prefix(";filename*=UTF-8''").unwrap();
            percent_decode_str(encoded).decode_utf8().unwrap().into_owned()
        }
    }
}
