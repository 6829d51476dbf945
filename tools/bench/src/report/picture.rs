//! A picture of a run: a bar for each figure, as long as the part of its limit that it takes.

use std::fmt::{self, Write};

use super::Row;

/// Pixels: a row's height, where the bars begin, and the length of a bar that takes its whole limit.
const HEIGHT: usize = 20;
const BEGIN: f64 = 400.0;
const WHOLE: f64 = 300.0;

/// Draws the figures as SVG.
pub fn draw(rows: &[Row]) -> Result<String, fmt::Error> {
    let (width, limit) = (BEGIN + 1.5 * WHOLE + 150.0, BEGIN + WHOLE);
    let height = (rows.len() + 2) * HEIGHT;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{limit}" y="14" text-anchor="middle">limit</text>
"##
    );
    for (number, row) in rows.iter().enumerate() {
        let (top, part) = ((number + 1) * HEIGHT, row.part());
        let baseline = top + 14;
        // A bar that is far above its limit is cut.
        let length = WHOLE * part.clamp(0.0, 1.5);
        let (end, color) = (BEGIN + length + 6.0, if part <= 1.0 { "#4a7fb5" } else { "#c0504d" });
        let [figure, _, _, result, ..] = row.cells();
        let figure = figure.replace('&', "&amp;").replace('<', "&lt;");
        writeln!(svg, r#"<text x="{}" y="{baseline}" text-anchor="end">{figure}</text>"#, BEGIN - 8.0)?;
        writeln!(svg, r#"<rect x="{BEGIN}" y="{}" width="{length:.0}" height="14" fill="{color}"/>"#, top + 3)?;
        writeln!(svg, r#"<text x="{end:.0}" y="{baseline}">{result}</text>"#)?;
    }
    let bottom = (rows.len() + 1) * HEIGHT + 4;
    writeln!(
        svg,
        r##"<line x1="{limit}" y1="18" x2="{limit}" y2="{bottom}" stroke="#333333" stroke-dasharray="4 3"/>"##
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}
