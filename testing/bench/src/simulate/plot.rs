//! Curves as SVG, with logarithmic axes: growth over decades is what they show.

use std::fmt::Write as _;

/// One curve.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// The vertical axis; the horizontal one is logarithmic always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Log,
}

/// A diagram.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) scale: Scale,
    pub(super) series: Vec<Series>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart in grey too.
const COLOURS: [&str; 4] = ["#0b5fa5", "#c8511b", "#3a7d34", "#6b6b6b"];

/// An axis over whole decades.
struct Axis {
    first: f64,
    last: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut first, mut last) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0) {
            first = first.min(value.log10().floor());
            last = last.max(value.log10().ceil());
        }
        if !first.is_finite() {
            (first, last) = (0.0, 1.0);
        }
        if last - first < 1.0 {
            last = first + 1.0;
        }
        Self { first, last, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - self.first) / (self.last - self.first);
        self.from + share * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        let (first, last) = (self.first, self.last);
        let next = move |decade: &f64| Some(decade + 1.0).filter(|decade| *decade <= last);
        std::iter::successors(Some(first), next).map(|decade| 10_f64.powf(decade))
    }
}

impl Plot {
    /// The whole picture.
    pub(super) fn svg(&self) -> String {
        let Scale::Log = self.scale;
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(all().map(|(x, _)| *x), LEFT, WIDTH - RIGHT);
        let y = Axis::new(all().map(|(_, y)| *y), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" \
             font-size=\"15\">{}</text>\n",
            escaped(self.title)
        );
        grid(&mut svg, &x, &y);
        let (bottom, middle) = (HEIGHT - 12.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text>\n<text transform=\"translate(16 {middle:.1}) \
             rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            escaped(self.x),
            escaped(self.y)
        );
        for (n, series) in self.series.iter().enumerate() {
            curve(&mut svg, series, COLOURS[n % COLOURS.len()], &x, &y);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn grid(svg: &mut String, x: &Axis, y: &Axis) {
    for value in x.decades() {
        let at = x.place(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 16.0,
            number(value)
        );
    }
    for value in y.decades() {
        let at = y.place(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            number(value)
        );
    }
}

fn curve(svg: &mut String, series: &Series, colour: &str, x: &Axis, y: &Axis) {
    let places: Vec<(f64, f64)> = series.points.iter().map(|(a, b)| (x.place(*a), y.place(*b))).collect();
    let path: Vec<String> = places.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
        path.join(" ")
    );
    for (a, b) in &places {
        let _ = writeln!(svg, "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
    if let Some((a, b)) = places.last() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            a + 8.0,
            b + 4.0,
            escaped(&series.name)
        );
    }
}

/// `1,000` and `0.01`.
fn number(value: f64) -> String {
    if value < 1.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_within_their_axes() {
        let series = vec![
            Series { name: "a<b".into(), points: vec![(1_000.0, 0.02), (1_000_000.0, 5.0)] },
            Series { name: "one".into(), points: vec![(10_000.0, 300.0)] },
            Series { name: "none".into(), points: Vec::new() },
        ];
        let svg = Plot { title: "t", x: "entries", y: "s", scale: Scale::Log, series }.svg();
        assert!(svg.contains("1,000,000</text>") && svg.contains(">0.01</text>"), "{svg}");
        assert!(svg.contains("points=\"70.0,") && svg.contains("a&lt;b"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        let at = |name: &str| -> Vec<f64> {
            let found = svg.split(name).skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok());
            found.collect()
        };
        assert!(at(" cx=\"").iter().all(|x| (LEFT..=WIDTH - RIGHT).contains(x)), "{svg}");
        assert!(at(" cy=\"").iter().all(|y| (TOP..=HEIGHT - BOTTOM).contains(y)), "{svg}");
    }

    #[test]
    fn nothing_is_a_picture_too() {
        let svg = Plot { title: "t", x: "x", y: "y", scale: Scale::Log, series: Vec::new() }.svg();
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"), "{svg}");
    }
}
