//! A curve as a picture: both axes logarithmic, one line a figure.

use crate::curve::{Curve, shown};
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (860, 460);

/// Colours that stay apart, also for those who see red and green alike (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Draws it.
///
/// # Errors
/// A sentence, if there is nothing to draw or nowhere to draw it.
pub(crate) fn draw(curve: &Curve, path: &Path) -> Result<(), String> {
    // A figure of nothing has no place on such an axis.
    let points = |column: usize| {
        let figures = curve.points.iter().map(move |point| (point.at, point.figures[column]));
        figures.filter_map(|(at, figure)| Some((at, figure.filter(|figure| *figure > 0.0)?)))
    };
    // Neither have parts of a hundred beside the rest, nor what is hardly ever anything else: the table has them.
    let is_drawn = |column: &usize| {
        !curve.columns[*column].ends_with('%') && points(*column).count() * 2 > curve.points.len()
    };
    let columns: Vec<usize> = (0..curve.columns.len()).filter(is_drawn).collect();
    let all: Vec<(f64, f64)> = columns.iter().flat_map(|column| points(*column)).collect();
    if all.is_empty() {
        return Err(format!("there is nothing to draw of {}", curve.of));
    }
    let across = span(all.iter().map(|(at, _)| *at), 1.1);
    let up = span(all.iter().map(|(_, figure)| *figure), 1.5);
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (chart_area, legend) = area.split_horizontally(610);
        let mut chart = ChartBuilder::on(&chart_area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(across.clone().log_scale(), up.clone().log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(curve.of.as_str())
            .x_label_formatter(&|at| shown(Some(*at)))
            .y_label_formatter(&|figure| shown(Some(*figure)))
            .draw()?;
        for (line, column) in columns.iter().copied().enumerate() {
            let colour = COLOURS[line % COLOURS.len()];
            chart.draw_series(LineSeries::new(points(column), colour.stroke_width(2)))?;
            chart.draw_series(points(column).map(|point| Circle::new(point, 3, colour.filled())))?;
            let at = (10, 30 + 24 * i32::try_from(line)?);
            legend.draw(&Rectangle::new([(at.0, at.1), (at.0 + 14, at.1 + 4)], colour.filled()))?;
            legend.draw(&Text::new(
                curve.columns[column].clone(),
                (at.0 + 20, at.1 - 5),
                ("sans-serif", 14),
            ))?;
        }
        area.present()?;
        Ok(())
    };
    drawn().map_err(|error| format!("{}: {error}", path.display()))
}

/// From the smallest to the largest, with some room.
fn span(numbers: impl Iterator<Item = f64> + Clone, room: f64) -> Range<f64> {
    let smallest = numbers.clone().fold(f64::INFINITY, f64::min);
    let largest = numbers.fold(f64::NEG_INFINITY, f64::max);
    smallest / room..largest * room
}
