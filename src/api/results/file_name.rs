//! The name and the content type of a result's file (docs/contract/http.md, "GET /getResult").

use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

/// The name of a file that has none.
const UNNAMED: &str = "result";

/// The extension to use for content types that have several.
const USUAL_EXTENSIONS: [(&str, &str); 8] = [
    ("application/octet-stream", "bin"),
    ("application/gzip", "gz"),
    ("audio/mpeg", "mp3"),
    ("image/jpeg", "jpg"),
    ("image/tiff", "tiff"),
    ("text/html", "html"),
    ("text/plain", "txt"),
    ("video/mp4", "mp4"),
];

/// A file's name and content type.
#[derive(Debug, PartialEq, Eq)]
pub struct FileName {
    name: String,
    content_type: HeaderValue,
}

impl FileName {
    /// The name is the origin's, else the URL's last segment; the content type is the origin's, else what the
    /// name's extension implies; a name without an extension gets the content type's.
    pub fn of_origin(headers: &HeaderMap, url: &str) -> Self {
        let disposition = headers.get(CONTENT_DISPOSITION).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let named = disposition.and_then(|value| disposition_name(&value)).and_then(|name| clean(&name));
        let mut name = named.or_else(|| clean(&last_segment(url))).unwrap_or_else(|| UNNAMED.to_owned());

        let content_type = headers.get(CONTENT_TYPE).cloned();
        let extension = name.rsplit_once('.').map(|(stem, extension)| (!stem.is_empty(), extension));
        match (&content_type, extension) {
            (Some(content_type), None | Some((false, _))) => {
                if let Some(extension) = extension_of(content_type) {
                    name = format!("{name}.{extension}");
                }
                Self { name, content_type: content_type.clone() }
            }
            (Some(content_type), Some(_)) => Self { content_type: content_type.clone(), name },
            (None, _) => {
                let guess = mime_guess::from_path(&name).first_raw().unwrap_or("application/octet-stream");
                Self { name, content_type: HeaderValue::from_static(guess) }
            }
        }
    }

    /// The content type.
    pub fn content_type(&self) -> &HeaderValue {
        &self.content_type
    }

    /// `attachment;filename=` and the name: quoted where it is not a token (RFC 9110, 5.6.2), and also in UTF-8 where
    /// it is not ASCII (RFC 6266, 4.3).
    pub fn content_disposition(&self) -> HeaderValue {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let value = if self.name.bytes().all(is_token) {
            format!("attachment;filename={}", self.name)
        } else if self.name.is_ascii() {
            format!("attachment;filename=\"{}\"", quoted(&self.name))
        } else {
            const NOT_ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
            let ascii: String = self.name.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect();
            let encoded = utf8_percent_encode(&self.name, NOT_ATTR_CHAR);
            format!("attachment;filename=\"{}\";filename*=UTF-8''{encoded}", quoted(&ascii))
        };
        HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("attachment"))
    }
}

/// Escapes a name for a quoted string (RFC 9110, 5.6.4).
fn quoted(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"")
}

/// The file name in a Content-Disposition header: a well-formed `filename*`, or else `filename` (RFC 6266, 4.3).
fn disposition_name(value: &str) -> Option<String> {
    let parameters = parameters(value);
    let values = |name| parameters.iter().filter(move |(found, _)| found == name).map(|(_, value)| value);
    values("filename*").find_map(|value| extended(value)).or_else(|| values("filename").next().cloned())
}

/// The text of an extended value, such as `UTF-8'en'na%C3%AFve` (RFC 8187, 3.2); `None` if it is malformed or not
/// UTF-8.
fn extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    let text = percent_decode_str(encoded).decode_utf8().ok()?;
    charset.eq_ignore_ascii_case("utf-8").then(|| text.into_owned())
}

/// The `name=value` and `name="quoted value"` parameters of a header's value.
fn parameters(value: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = value.split_once(';').map_or("", |(_kind, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim().trim_start_matches(';').trim().to_ascii_lowercase();
        let after = after.trim_start();
        let mut value = String::new();
        let mut characters = after.char_indices();
        let mut end = after.len();
        if after.starts_with('"') {
            characters.next();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        end = at;
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                    other => value.push(other),
                }
            }
            rest = after.get(end..).unwrap_or_default();
            rest = rest.split_once(';').map_or("", |(_, rest)| rest);
        } else {
            let (plain, next) = after.split_once(';').unwrap_or((after, ""));
            value.push_str(plain.trim());
            rest = next;
        }
        parameters.push((name, value));
    }
    parameters
}

fn last_segment(url: &str) -> String {
    let url = Url::parse(url).ok();
    let segment = url.as_ref().and_then(|url| url.path_segments()?.rfind(|segment| !segment.is_empty()));
    percent_decode_str(segment.unwrap_or_default()).decode_utf8_lossy().into_owned()
}

/// Characters that change the direction of the text around them (Unicode's property Bidi_Control): `gpj.exe` can be shown
/// as `exe.jpg` with one.
const BIDI_CONTROLS: [char; 12] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}',
    '\u{2067}', '\u{2068}', '\u{2069}',
];

/// A name that is safe to save under: no path, no control characters, not too long; `None` if nothing is left.
fn clean(name: &str) -> Option<String> {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control() && !BIDI_CONTROLS.contains(c)).take(200).collect();
    let name = name.trim();
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

fn extension_of(content_type: &HeaderValue) -> Option<&'static str> {
    let essence = content_type.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    let usual = USUAL_EXTENSIONS.iter().find(|(content_type, _)| *content_type == essence);
    usual.map(|(_, extension)| *extension).or_else(|| mime_guess::get_mime_extensions_str(&essence)?.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_may_hold_a_semicolon() {
        let found = parameters(r#"attachment; filename="a;"; x=y"#);
        assert_eq!(found, [("filename".to_owned(), "a;".to_owned()), ("x".to_owned(), "y".to_owned())]);
    }

    fn named(disposition: Option<&'static str>, content_type: Option<&'static str>, url: &str) -> (String, String) {
        let mut headers = HeaderMap::new();
        if let Some(value) = disposition {
            headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static(value));
        }
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        let name = FileName::of_origin(&headers, url);
        let text = |value: HeaderValue| value.to_str().unwrap().to_owned();
        (text(name.content_disposition()), text(name.content_type().clone()))
    }

    #[test]
    fn names_and_types_come_from_the_origin_or_the_url() {
        let cases = [
            (None, None, "http://o/a/out.csv?x=1", "attachment;filename=out.csv", "text/csv"),
            (
                None,
                Some("text/plain; charset=utf-8"),
                "http://o/a/out",
                "attachment;filename=out.txt",
                "text/plain; charset=utf-8",
            ),
            (None, Some("application/json"), "http://o/a/out", "attachment;filename=out.json", "application/json"),
            (
                None,
                Some("application/octet-stream"),
                "http://o/a/x",
                "attachment;filename=x.bin",
                "application/octet-stream",
            ),
            (None, None, "http://o/a/x", "attachment;filename=x", "application/octet-stream"),
            (None, None, "http://o/", "attachment;filename=result", "application/octet-stream"),
            (
                Some("attachment; filename=\"my file.tar.gz\""),
                None,
                "http://o/x",
                "attachment;filename=\"my file.tar.gz\"",
                "application/gzip",
            ),
            (
                Some("attachment; size=3; filename=a.txt; x=y"),
                Some("text/css"),
                "http://o/x",
                "attachment;filename=a.txt",
                "text/css",
            ),
            (
                Some("attachment; filename=\"a;\\\"b.txt\""),
                None,
                "http://o/x",
                "attachment;filename=\"a;\\\"b.txt\"",
                "text/plain",
            ),
            (
                Some("attachment; filename*=UTF-8''photo%E2%80%AEgpj.exe"),
                None,
                "http://o/x",
                "attachment;filename=photogpj.exe",
                "application/octet-stream",
            ),
            (
                Some("attachment; filename=x.txt; filename*=UTF-8''k%C3%A4se.txt"),
                None,
                "http://o/x",
                "attachment;filename=\"k_se.txt\";filename*=UTF-8''k%C3%A4se.txt",
                "text/plain",
            ),
            (
                Some("attachment; filename=\"../../etc/passwd\""),
                None,
                "http://o/x",
                "attachment;filename=passwd",
                "application/octet-stream",
            ),
            // A malformed `filename*`, or one in another character set.
            (
                Some("attachment; filename*=no-charset.txt; filename=good.txt"),
                None,
                "http://o/x",
                "attachment;filename=good.txt",
                "text/plain",
            ),
            (
                Some("attachment; filename=good.txt; filename*=ISO-8859-1''other.txt"),
                None,
                "http://o/x",
                "attachment;filename=good.txt",
                "text/plain",
            ),
            (
                Some("attachment; filename=good.txt; filename*=UTF-8''%ff%fe"),
                None,
                "http://o/x",
                "attachment;filename=good.txt",
                "text/plain",
            ),
            (Some("inline"), None, "http://o/x.txt", "attachment;filename=x.txt", "text/plain"),
            (None, None, "http://o/a%0d%0aSet-Cookie:b.txt", "attachment;filename=\"aSet-Cookie:b.txt\"", "text/plain"),
        ];
        for (disposition, content_type, url, expected_disposition, expected_type) in cases {
            let expected = (expected_disposition.to_owned(), expected_type.to_owned());
            assert_eq!(named(disposition, content_type, url), expected, "{disposition:?} {content_type:?} {url}");
        }
    }
}
