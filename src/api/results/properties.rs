//! What holds of the file name in every response of getResult.

use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use proptest::prelude::*;

use super::file_name::FileName;

/// A Content-Disposition header as origins may send it, well-formed or not.
fn disposition() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        any::<String>().prop_map(|name| format!("attachment; filename=\"{name}\"").into_bytes()),
        "[a-z]{0,8};( ?filename\\*?=[\"'\\\\;/%a-fA-F0-9.=UTF-]{0,20};?){0,4}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            format!("attachment; filename*=UTF-8''{encoded}").into_bytes()
        }),
    ]
}

fn respond(disposition: &[u8], content_type: &str, url: &str) -> HeaderValue {
    let mut headers = HeaderMap::new();
    for (name, value) in [(CONTENT_DISPOSITION, disposition), (CONTENT_TYPE, content_type.as_bytes())] {
        // Others do not arrive: the HTTP client refuses them.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    FileName::of_origin(&headers, url).content_disposition()
}

/// The name that a client saves under: `filename*`, else `filename` without quotes and escapes.
fn saved_as(value: &str) -> String {
    let rest = value.strip_prefix("attachment;filename=").unwrap();
    if let Some((_, encoded)) = rest.split_once(";filename*=UTF-8''") {
        return percent_decode_str(encoded).decode_utf8().unwrap().into_owned();
    }
    let Some(quoted) = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return rest.to_owned();
    };
    let (mut name, mut characters) = (String::new(), quoted.chars());
    while let Some(character) = characters.next() {
        assert_ne!(character, '"', "a quote that is not escaped: {value}");
        name.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    name
}

proptest! {
    #[test]
    fn a_file_name_is_safe_to_save_under(
        disposition in disposition(),
        content_type in prop_oneof![Just("text/plain".to_owned()), any::<String>()],
        url in prop_oneof![Just("http://o/a/b.txt".to_owned()), "http://o/[!-~]{0,20}", any::<String>()],
    ) {
        let value = respond(&disposition, &content_type, &url);
        let value = value.to_str().unwrap();
        let name = saved_as(value);
        prop_assert!(!name.is_empty() && name != "." && name != "..", "{}", value);
        prop_assert!(!name.contains(|c: char| c.is_control() || c == '/' || c == '\\'), "{}", value);
    }

    #[test]
    fn a_plain_name_is_kept(name in "[a-z0-9][a-z0-9 _-]{0,20}[a-z0-9]\\.[a-z]{1,4}") {
        let value = respond(format!("attachment; filename=\"{name}\"").as_bytes(), "text/plain", "http://o/x");
        prop_assert_eq!(saved_as(value.to_str().unwrap()), name);
    }
}
