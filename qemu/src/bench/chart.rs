//! Curves as a picture: one SVG that stands in a page of the book as well as by
//! itself. It has no empty line, because Markdown would end it there.

/// Width and height of the field that the curves are drawn in.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
/// What is left for numbers and names around it.
const LEFT: f64 = 70.0;
const TOP: f64 = 28.0;
const RIGHT: f64 = 190.0;
const BOTTOM: f64 = 44.0;
/// Colours that differ without red against green.
const COLOURS: [&str; 8] = [
    "#1769aa", "#b4531d", "#555555", "#8e44ad", "#0b8f8f", "#c2185b", "#8a6d00", "#2c3e90",
];

/// One line of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is called beside it.
    pub name: String,
    /// Where it goes through.
    pub points: Vec<(u64, f64)>,
}

/// A picture.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below it.
    pub across: String,
    /// At its side.
    pub up: String,
    /// A step up is ten times more, instead of one more.
    pub decades: bool,
    /// How a value across is written.
    pub label: fn(u64) -> String,
    /// The curves.
    pub series: Vec<Series>,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A number of few letters.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{}G", v / 1e9),
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

impl Chart {
    /// The marks up, from the lowest to the highest: all values lie between.
    fn marks(&self) -> Vec<f64> {
        let values = || self.series.iter().flat_map(|s| &s.points).map(|p| p.1);
        let most = values().fold(1.0, f64::max);
        if !self.decades {
            let top = most.ceil() as u32;
            return (0..=top).map(f64::from).collect();
        }
        let least = values().fold(most, f64::min).max(1.0);
        let first = least.log10().floor() as i32;
        let last = (most.log10().ceil() as i32).max(first + 1);
        (first..=last).map(|n| 10f64.powi(n)).collect()
    }

    /// As one element.
    pub fn svg(&self) -> String {
        let marks = self.marks();
        let (low, high) = (marks[0], marks[marks.len() - 1]);
        let height = |value: f64| {
            let part = match self.decades {
                true => (value.max(low) / low).log10() / (high / low).log10(),
                false => (value - low) / (high - low),
            };
            TOP + HEIGHT * (1.0 - part)
        };
        let mut across: Vec<u64> = self
            .series
            .iter()
            .flat_map(|s| s.points.iter().map(|p| p.0))
            .collect();
        across.sort_unstable();
        across.dedup();
        let (first, last) = match (across.first(), across.last()) {
            (Some(first), Some(last)) => ((*first).max(1) as f64, (*last).max(1) as f64),
            _ => (1.0, 1.0),
        };
        let place = |at: u64| {
            let range = (last / first).log2();
            let part = match range > 0.0 {
                true => (at.max(1) as f64 / first).log2() / range,
                false => 0.0,
            };
            LEFT + WIDTH * part
        };
        let (full, tall) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {tall}\" \
             width=\"{full}\" height=\"{tall}\" font-family=\"sans-serif\" font-size=\"11\" \
             style=\"background:#fff\">\n<text x=\"{LEFT}\" y=\"16\" font-size=\"13\" \
             fill=\"#222\">{}</text>\n",
            escaped(&self.title)
        );
        for mark in &marks {
            let y = height(*mark);
            out.push_str(&format!(
                "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{}</text>\n",
                LEFT - 6.0,
                y + 4.0,
                short(*mark)
            ));
        }
        for at in &across {
            out.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>\n",
                place(*at),
                TOP + HEIGHT + 16.0,
                escaped(&(self.label)(*at))
            ));
        }
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#222\">{}</text>\n\
             <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\" \
             fill=\"#222\">{}</text>\n",
            LEFT + WIDTH / 2.0,
            TOP + HEIGHT + 36.0,
            escaped(&self.across),
            TOP + HEIGHT / 2.0,
            escaped(&self.up)
        ));
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points: Vec<String> = series
                .points
                .iter()
                .map(|(at, value)| format!("{:.1},{:.1}", place(*at), height(*value)))
                .collect();
            out.push_str(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            ));
            for point in &points {
                let (x, y) = point.split_once(',').unwrap_or(("0", "0"));
                out.push_str(&format!(
                    "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>"
                ));
            }
            let y = TOP + 10.0 + 16.0 * index as f64;
            out.push_str(&format!(
                "<path d=\"M{:.1} {y:.1}h16\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222\">{}</text>\n",
                LEFT + WIDTH + 10.0,
                LEFT + WIDTH + 32.0,
                y + 4.0,
                escaped(&series.name)
            ));
        }
        out + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(decades: bool, points: &[(u64, f64)]) -> Chart {
        Chart {
            title: "a < b".into(),
            across: "threads".into(),
            up: "times".into(),
            decades,
            label: |at| at.to_string(),
            series: vec![Series {
                name: "one".into(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn points_lie_where_their_values_say() {
        let svg = chart(false, &[(1, 1.0), (2, 2.0), (4, 4.0)]).svg();
        // From the left and the lowest quarter to the right and the top.
        assert!(
            svg.contains("points=\"70.0,208.0 280.0,148.0 490.0,28.0\""),
            "{svg}"
        );
        let svg = chart(true, &[(10, 10.0), (1_000, 1_000.0)]).svg();
        assert!(svg.contains("points=\"70.0,268.0 490.0,28.0\""), "{svg}");
        assert!(svg.contains(">1k</text>") && svg.contains("a &lt; b"));
    }

    #[test]
    fn a_picture_has_no_empty_line_and_no_points_are_no_fault() {
        for chart in [
            chart(true, &[]),
            chart(false, &[]),
            chart(true, &[(1, 0.0)]),
        ] {
            let svg = chart.svg();
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("\n\n") && !svg.contains("NaN"), "{svg}");
        }
    }
}
