//! Figures that grow with something, as they are kept.

use crate::common::thousands;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Where the figures stand.
const FILE: &str = "growth.json";

/// What was measured at growing sizes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// What it shows, as a sentence.
    pub(crate) title: String,
    /// What grows.
    pub(crate) of: String,
    /// The names of the figures, each with its unit.
    pub(crate) columns: Vec<String>,
    pub(crate) points: Vec<Point>,
}

/// Figures in the order of the columns; absent where there is nothing to say.
pub(crate) type Row = Vec<Option<f64>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    /// How much there was of what grows.
    pub(crate) at: f64,
    pub(crate) figures: Row,
}

/// What one client noticed of something that others went through: times of its reads, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Noticed {
    pub(crate) meanwhile: String,
    pub(crate) reads: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) longest_turn_us: u64,
    pub(crate) longest_turn_cpu_us: u64,
}

/// All figures there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) curves: BTreeMap<String, Curve>,
    pub(crate) meanwhile: Vec<Noticed>,
}

impl Figures {
    /// The figures that are there; none if there are none yet.
    ///
    /// # Errors
    /// A sentence, if they cannot be read.
    pub(crate) fn read(dir: &Path) -> Result<Figures, String> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Figures::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Keeps them.
    ///
    /// # Errors
    /// A sentence, if they cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), String> {
        let path = dir.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("figures are plain data");
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&path, text + "\n"))
            .map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// A figure for people: three digits where it is small.
pub(crate) fn shown(figure: Option<f64>) -> String {
    match figure {
        None => "–".into(),
        Some(figure) if figure.abs() >= 100.0 || figure == 0.0 => thousands(figure),
        Some(figure) => format!("{figure:.1}"),
    }
}
