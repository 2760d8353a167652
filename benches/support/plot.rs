//! Horizontal bars as an SVG file: people look before they read. It knows nothing of what the
//! numbers mean.

use std::fmt::Write as _;
use std::path::PathBuf;

/// One bar.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    /// The second part of the bar, drawn lighter; zero for none.
    pub(crate) more: f64,
}

impl Bar {
    pub(crate) fn new(label: impl Into<String>, value: f64, more: f64) -> Self {
        Self { label: label.into(), value, more }
    }
}

/// A point of a curve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

const ROW: f64 = 34.0;
const LEFT: f64 = 230.0;
const WIDTH: f64 = 520.0;
const TOP: f64 = 64.0;

/// Writes `target/bench/<name>.svg` and says where.
pub(crate) fn bars(name: &str, title: &str, note: &str, bars: &[Bar]) -> PathBuf {
    let most = bars.iter().map(|bar| bar.value + bar.more).fold(1e-9, f64::max);
    let height = TOP + ROW * bars.len() as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"16\" y=\"46\" fill=\"#555\">{note}</text>\n"
    );
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let (first, second) = (bar.value / most * WIDTH, bar.more / most * WIDTH);
        let (text, end) = (y + 17.0, LEFT + first + second + 8.0);
        let own = bar.label.starts_with("kalshi-feed");
        let (dark, light) = if own { ("#0a7d5a", "#7fcfb5") } else { ("#4b5f7a", "#a9b7c9") };
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{first:.1}\" height=\"24\" fill=\"{dark}\"/>\
             <rect x=\"{:.1}\" y=\"{y}\" width=\"{second:.1}\" height=\"24\" fill=\"{light}\"/>\
             <text x=\"{end:.1}\" y=\"{text}\">{:.0}</text>",
            LEFT - 10.0,
            bar.label,
            LEFT + first,
            bar.value + bar.more
        )
        .unwrap();
    }
    svg.push_str("</svg>\n");
    let folder = peers::target_dir().join("bench");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.svg"));
    std::fs::write(&path, svg).unwrap();
    eprintln!("plot: {}", path.display());
    path
}

/// Writes a curve as `target/bench/<name>.svg` and says where.
pub(crate) fn line(name: &str, title: &str, points: &[Point]) -> PathBuf {
    let most = |of: fn(&Point) -> f64| points.iter().map(of).fold(1e-9, f64::max);
    let (right, top) = (most(|point| point.x), most(|point| point.y));
    let (width, height, left, base) = (700.0, 320.0, 90.0, 400.0);
    let mut path = String::new();
    for point in points {
        let (x, y) = (left + point.x / right * width, base - point.y / top * height);
        write!(path, "{x:.1},{y:.1} ").unwrap();
    }
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"440\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"30\" font-size=\"17\" font-weight=\"bold\">{title}</text>\n\
         <path d=\"M{left} 70V{base}H800\" stroke=\"#999\" fill=\"none\"/>\n\
         <text x=\"{left}\" y=\"425\">0 s</text><text x=\"760\" y=\"425\">{right:.1} s</text>\n\
         <text x=\"8\" y=\"86\">{top:.0}</text>\n\
         <polyline points=\"{path}\" stroke=\"#0a7d5a\" stroke-width=\"2\" fill=\"none\"/>\n\
         </svg>\n"
    );
    let folder = peers::target_dir().join("bench");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.svg"));
    std::fs::write(&path, svg).unwrap();
    eprintln!("plot: {}", path.display());
    path
}
