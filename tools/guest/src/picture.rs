// SPDX-License-Identifier: GPL-2.0

//! Pictures of what was measured, as SVG, with the data beside them as CSV.

use crate::cache::write;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::{fmt::Display, path::Path};

const SIZE: (u32, u32) = (760, 380);

/// The colour of the C code, and that of the Rust code; both are told apart in grey, too.
pub const C: RGBColor = RGBColor(213, 94, 0);
pub const RUST: RGBColor = RGBColor(0, 114, 178);

/// A curve: its points, from left to right.
pub struct Curve {
    pub name: String,
    pub colour: RGBColor,
    /// In pixels.
    pub width: u32,
    pub points: Vec<(f64, f64)>,
}

/// A picture with two axes. That of y begins with 0.
pub struct Picture<'a> {
    pub title: String,
    pub x: &'a str,
    pub y: &'a str,
    /// Along the x axis each step is twice the one before; else it begins with 0, too.
    pub doubling: bool,
    pub curves: Vec<Curve>,
}

impl Picture<'_> {
    /// Draws it into `path`; the data is in a file of the same name that ends in `.csv`.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, self.svg()?.as_bytes(), 0o644)?;
        write(&path.with_extension("csv"), self.csv().as_bytes(), 0o644)
    }

    fn csv(&self) -> String {
        let mut text = format!("curve,{},{}\n", self.x, self.y);
        for curve in &self.curves {
            for (x, y) in &curve.points {
                text += &format!("{},{x},{y}\n", curve.name);
            }
        }
        text
    }

    fn svg(&self) -> Result<String> {
        let failed = |error: &dyn Display| anyhow!("'{}' cannot be drawn: {error}", self.title);
        let place = |x: f64| if self.doubling { x.log2() } else { x };
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let top = points()
            .map(|point| point.1)
            .fold(f64::MIN_POSITIVE, f64::max);
        let right = points().map(|point| place(point.0)).fold(1.0, f64::max);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE).map_err(|error| failed(&error))?;
            let mut chart = ChartBuilder::on(&area)
                .caption(&self.title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(42)
                .y_label_area_size(64)
                .build_cartesian_2d(0.0..right, 0.0..top * 1.05)
                .map_err(|error| failed(&error))?;
            let value = |at: &f64| match self.doubling {
                true => at.exp2().to_string(),
                false => at.to_string(),
            };
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(WHITE)
                .x_labels(if self.doubling {
                    right as usize + 1
                } else {
                    10
                })
                .x_label_formatter(&value)
                .x_desc(self.x)
                .y_desc(self.y)
                .draw()
                .map_err(|error| failed(&error))?;
            for curve in &self.curves {
                let style = curve.colour.stroke_width(curve.width);
                let points = curve.points.iter().map(|(x, y)| (place(*x), *y));
                chart
                    .draw_series(LineSeries::new(points, style))
                    .map_err(|error| failed(&error))?
                    .label(&curve.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            }
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.2))
                .position(SeriesLabelPosition::UpperRight)
                .draw()
                .map_err(|error| failed(&error))?;
            area.present().map_err(|error| failed(&error))?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(doubling: bool, points: Vec<(f64, f64)>) -> Picture<'static> {
        Picture {
            title: "Time to lock memory".into(),
            x: "CPUs",
            y: "seconds",
            doubling,
            curves: vec![Curve {
                name: "C, 40 µs".into(),
                colour: C,
                width: 2,
                points,
            }],
        }
    }

    #[test]
    fn a_picture_has_its_words_and_its_data() {
        let picture = picture(true, vec![(1.0, 60.5), (2.0, 30.0), (16.0, 20.0)]);
        let svg = picture.svg().unwrap();
        for text in ["Time to lock memory", "CPUs", "seconds", "C, 40 µs", "16"] {
            let is_there = svg.lines().any(|line| line.trim() == text);
            assert!(is_there, "'{text}' is not in\n{svg}");
        }
        assert!(svg.contains("polyline"), "{svg}");
        assert_eq!(
            picture.csv(),
            "curve,CPUs,seconds\nC, 40 µs,1,60.5\nC, 40 µs,2,30\nC, 40 µs,16,20\n"
        );
    }

    #[test]
    fn a_picture_without_points_is_empty() {
        let svg = picture(false, Vec::new()).svg().unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
    }
}
