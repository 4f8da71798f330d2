//! Charts of points and lines, as SVG or PNG.
//!
//! Text is set in Ubuntu Light, which is part of the program: a chart looks the same on a machine
//! without fonts.

use std::{fmt::Display, io::Write, ops::Range, path::Path, sync::Once};

use flate2::{Compression, Crc, write::ZlibEncoder};
use plotters::coord::{
    Shift,
    ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::BenchError;

const PANEL: (u32, u32) = (760, 460);
/// A panel is at least as high as its legend.
const LEGEND_LINE: u32 = 16;
/// One for each curve, then from the first again.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 90, 170),
    RGBColor(214, 108, 20),
    RGBColor(30, 140, 80),
    RGBColor(130, 70, 160),
    RGBColor(90, 90, 90),
    RGBColor(0, 150, 170),
];
const FONT: &str = "sans-serif";

/// What a chart is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Lines and text, for a browser.
    Svg,
    /// Pixels.
    Png,
}

impl ImageFormat {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// If it ends in neither `.svg` nor `.png`.
    ///
    /// ```
    /// use engine_bench::ImageFormat;
    /// assert_eq!(ImageFormat::of("plots/price.PNG".as_ref())?, ImageFormat::Png);
    /// # Ok::<(), engine_bench::BenchError>(())
    /// ```
    pub fn of(path: &Path) -> Result<Self, BenchError> {
        match path.extension().map(|extension| extension.to_ascii_lowercase()) {
            Some(extension) if extension == "svg" => Ok(Self::Svg),
            Some(extension) if extension == "png" => Ok(Self::Png),
            _ => Err(BenchError::ImageFormat { path: path.to_owned() }),
        }
    }
}

/// One chart of a picture.
pub(crate) struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub curves: Vec<Curve>,
    pub legend: SeriesLabelPosition,
}

/// What an axis shows, and which part of it.
pub(crate) struct Axis {
    pub label: String,
    pub scale: Scale,
    pub range: Range<f64>,
}

/// How numbers lie on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

impl Axis {
    /// A linear axis from zero to a little more than the largest value.
    pub fn from_zero(label: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let most = finite(values).fold(1e-9, f64::max);
        Self { label: label.into(), scale: Scale::Linear, range: 0.0..1.1 * most }
    }

    /// A linear axis around the values.
    pub fn around(label: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = ends(values);
        let margin = (0.12 * (most - least)).max(1e-3 * most.abs()).max(1e-9);
        Self { label: label.into(), scale: Scale::Linear, range: least - margin..most + margin }
    }

    /// A logarithmic axis around the values above zero.
    pub fn logarithmic(label: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = ends(values.filter(|value| *value > 0.0));
        let least = if least > 0.0 { least } else { 1e-6 };
        let range = least / 1.3..(most * 1.5).max(least * 2.0);
        Self { label: label.into(), scale: Scale::Logarithmic, range }
    }

    /// The same axis from a power of ten on, so that short ranges have a labelled tick.
    pub fn starting_at_power_of_ten(mut self) -> Self {
        self.range.start = 10_f64.powf(self.range.start.log10().floor());
        self
    }
}

fn finite(values: impl Iterator<Item = f64>) -> impl Iterator<Item = f64> {
    values.filter(|value| value.is_finite())
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = finite(values).fold(None, |ends: Option<(f64, f64)>, value| {
        let (least, most) = ends.unwrap_or((value, value));
        Some((least.min(value), most.max(value)))
    });
    ends.unwrap_or((0.0, 1.0))
}

/// Points of one name and color.
pub(crate) struct Curve {
    pub name: String,
    pub points: Vec<Point>,
    /// Whether a line joins the points.
    pub joined: bool,
}

/// One point; those that are not finite are left out.
pub(crate) struct Point {
    pub x: f64,
    pub y: f64,
    /// Stands beside it.
    pub label: String,
    /// Whether a ring is around it.
    pub marked: bool,
}

/// Draws panels below one another.
pub(crate) fn draw(panels: &[Panel], format: ImageFormat) -> Result<Vec<u8>, BenchError> {
    register_fonts();
    let curves = panels.iter().map(|panel| panel.curves.len()).max().unwrap_or(0);
    let height = PANEL.1.max(LEGEND_LINE * curves as u32 + 120);
    let size = (PANEL.0, height * panels.len() as u32);
    match format {
        ImageFormat::Svg => {
            let mut svg = String::new();
            draw_panels(panels, SVGBackend::with_string(&mut svg, size))?;
            Ok(svg.into_bytes())
        }
        ImageFormat::Png => {
            let mut pixels = vec![255; 3 * size.0 as usize * size.1 as usize];
            draw_panels(panels, BitMapBackend::with_buffer(&mut pixels, size))?;
            encode_png(&pixels, size)
        }
    }
}

/// The drawing library knows no font until it is told of one.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A font that is refused shows up as an error of the drawing.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

/// PNG of 8-bit RGB (W3C recommendation, third edition): a signature and three chunks, each with
/// its length, kind and check sum.
fn encode_png(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, BenchError> {
    // 8 bits, RGB, the only compression, the only set of filters, not interlaced.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut body = ZlibEncoder::new(Vec::new(), Compression::default());
    for row in pixels.chunks_exact(3 * width as usize) {
        // Each row begins with its filter: none.
        body.write_all(&[0]).and_then(|()| body.write_all(row)).map_err(failed)?;
    }
    let body = body.finish().map_err(failed)?;
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", body), (b"IEND", Vec::new())] {
        let mut sum = Crc::new();
        sum.update(kind);
        sum.update(&data);
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(kind);
        png.extend(data);
        png.extend(sum.sum().to_be_bytes());
    }
    Ok(png)
}

fn draw_panels<D: DrawingBackend>(panels: &[Panel], backend: D) -> Result<(), BenchError> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
        draw_panel(panel, &area)?;
    }
    root.present().map_err(failed)
}

fn draw_panel<D: DrawingBackend>(
    panel: &Panel,
    area: &DrawingArea<D, Shift>,
) -> Result<(), BenchError> {
    let (x, y) = (panel.x.range.clone(), panel.y.range.clone());
    match (panel.x.scale, panel.y.scale) {
        (Scale::Linear, Scale::Linear) => draw_chart(panel, area, x, y),
        (Scale::Logarithmic, Scale::Linear) => draw_chart(panel, area, x.log_scale(), y),
        (Scale::Linear, Scale::Logarithmic) => draw_chart(panel, area, x, y.log_scale()),
        (Scale::Logarithmic, Scale::Logarithmic) => {
            draw_chart(panel, area, x.log_scale(), y.log_scale())
        }
    }
}

type Chart<'a, 'b, D, X, Y> = ChartContext<
    'a,
    D,
    Cartesian2d<<X as AsRangedCoord>::CoordDescType, <Y as AsRangedCoord>::CoordDescType>,
>;

fn draw_chart<D, X, Y>(
    panel: &Panel,
    area: &DrawingArea<D, Shift>,
    x: X,
    y: Y,
) -> Result<(), BenchError>
where
    D: DrawingBackend,
    X: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
    Y: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
{
    let mut chart: Chart<'_, '_, D, X, Y> = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(&panel.x.label)
        .y_desc(&panel.y.label)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .x_labels(8)
        .y_labels(8)
        .label_style((FONT, 12))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()
        .map_err(failed)?;
    for (curve, color) in panel.curves.iter().zip(COLORS.iter().cycle()) {
        draw_curve(&mut chart, curve, *color)?;
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .label_font((FONT, 12))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

/// A number beside an axis, without the digits that rounding adds.
fn tick(value: f64) -> String {
    let digits = format!("{value:.6}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn draw_curve<D, X, Y>(
    chart: &mut ChartContext<'_, D, Cartesian2d<X, Y>>,
    curve: &Curve,
    color: RGBColor,
) -> Result<(), BenchError>
where
    D: DrawingBackend,
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let shown = |point: &&Point| point.x.is_finite() && point.y.is_finite();
    let points = || curve.points.iter().filter(shown);
    let at = |point: &Point| (point.x, point.y);
    let line = curve.joined.then(|| PathElement::new(points().map(at).collect::<Vec<_>>(), color));
    let series = chart.draw_series(line).map_err(failed)?.label(&curve.name);
    if curve.joined {
        series.legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color));
    } else {
        series.legend(move |(x, y)| Circle::new((x + 9, y), 3, color.filled()));
    }
    let dots = points().map(|point| Circle::new(at(point), 3, color.filled()));
    chart.draw_series(dots).map_err(failed)?;
    let marked = points().filter(|point| point.marked);
    let rings = marked.map(|point| Circle::new(at(point), 8, RED.stroke_width(2)));
    chart.draw_series(rings).map_err(failed)?;
    let labels = points().filter(|point| !point.label.is_empty()).map(|point| {
        EmptyElement::at(at(point)) + Text::new(point.label.clone(), (7, -12), (FONT, 11))
    });
    chart.draw_series(labels).map_err(failed)?;
    Ok(())
}

fn failed(error: impl Display) -> BenchError {
    BenchError::Plot { message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn panel(x: Axis, y: Axis) -> Panel {
        let point = |x, y, label: &str| Point { x, y, label: label.to_owned(), marked: x == 2.0 };
        let points =
            vec![point(1.0, 3.0, "one"), point(2.0, f64::NAN, "lost"), point(9.0, 4.0, "")];
        Panel {
            title: "Title".to_owned(),
            x,
            y,
            curves: vec![
                Curve { name: "joined".to_owned(), points, joined: true },
                Curve { name: "empty".to_owned(), points: Vec::new(), joined: false },
            ],
            legend: SeriesLabelPosition::UpperRight,
        }
    }

    fn panels() -> Vec<Panel> {
        let values = || [1.0, 9.0].into_iter();
        vec![
            panel(Axis::from_zero("x", values()), Axis::logarithmic("y", values())),
            panel(Axis::logarithmic("x", values()), Axis::around("y", values())),
        ]
    }

    #[test]
    fn an_svg_has_every_text_and_leaves_out_what_is_no_number() {
        let svg = String::from_utf8(draw(&panels(), ImageFormat::Svg).unwrap()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["Title", "joined", "empty", "one"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("lost") && !svg.contains("NaN"));
    }

    #[test]
    fn a_png_has_the_pixels_of_all_panels_and_text_on_them() {
        let png = draw(&panels(), ImageFormat::Png).unwrap();
        let (width, height) = (PANEL.0 as usize, 2 * PANEL.1 as usize);
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((number(16), number(20)), (width, height));
        // The header takes 33 bytes; length and kind of the pixels stand before them.
        let mut rows = Vec::new();
        let mut body = flate2::read::ZlibDecoder::new(&png[41..41 + number(33)]);
        body.read_to_end(&mut rows).unwrap();
        assert_eq!(rows.len(), height * (1 + 3 * width));
        // The published check sum of an empty last chunk.
        assert!(png.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
        // The caption's rows hold nothing but the title.
        let caption = rows.chunks_exact(1 + 3 * width).take(28);
        let pixels = caption.flat_map(|row| row[1..].chunks_exact(3));
        let dark = pixels.filter(|pixel| pixel[0] < 128).count();
        assert!((20..1000).contains(&dark), "{dark} dark pixels");
    }

    #[test]
    fn ticks_are_short() {
        let ticks = [0.1 + 0.2, 1e-6, 3.0, 1200.0].map(tick);
        assert_eq!(ticks, ["0.3", "0.000001", "3", "1200"]);
    }

    #[test]
    fn the_name_of_a_file_says_its_format() {
        for name in ["plot", "plot.jpeg", ".svg"] {
            assert!(ImageFormat::of(name.as_ref()).is_err(), "{name}");
        }
        assert_eq!(ImageFormat::of("a.b.svg".as_ref()).unwrap(), ImageFormat::Svg);
    }
}
