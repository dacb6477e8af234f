//! How cost grows: the same work beside ever more locks, sessions, waiters, locks in one request and bytes of keys; what is done
//! when more is asked than can be; and what everybody else notices of a snapshot, of a million leases that end at once, and of
//! a thousand clients that come back.
//!
//! `cargo bench --bench growth` runs all of it (some fifteen minutes), writes the figures as JSON and the curves as pictures
//! into `docs/growth`, and prints the Markdown of `docs/performance.md`. `--only waiters` runs what has `waiters` in its
//! name, and leaves the rest of the figures as they were; `--draw` measures nothing and draws again. Without cargo's
//! `--bench`, or with `--test`, it only shows that it works, in a few seconds, and writes nothing.

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]

#[allow(dead_code, reason = "each benchmark uses a part of what they share")]
mod common;
#[path = "growth/curve.rs"]
mod curve;
#[path = "growth/meanwhile.rs"]
mod meanwhile;
#[path = "growth/measure.rs"]
mod measure;
#[path = "growth/picture.rs"]
mod picture;

use clap::Parser;
use common::{Plan, machine};
use curve::{Curve, Figures};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures how cost grows, draws it, and prints Markdown")]
#[command(after_help = "Names: locks, sessions, waiters, together, overload, state, meanwhile")]
struct Options {
    #[command(flatten)]
    common: common::Options,
    /// Where the figures and pictures go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/growth"), hide_default_value = true)]
    out: PathBuf,
    /// Measure nothing: draw the figures that are there.
    #[arg(long)]
    draw: bool,
}

fn main() -> ExitCode {
    let done = if Plan::is_test() {
        test()
    } else {
        let Options { common, out, draw } = Options::parse();
        run(&Plan::of(common), &out, draw)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("growth: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Everything once, tiny, and nothing of it kept.
fn test() -> Result<(), String> {
    let plan = Plan::test();
    let dir = common::fresh_dir(&plan.dir)?;
    run(&plan, dir.path(), false)
}

fn run(plan: &Plan, out: &std::path::Path, draw: bool) -> Result<(), String> {
    let mut figures = Figures::read(out)?;
    if !draw {
        machine::describe(&plan.dir, &plan.cores, "cargo bench --bench growth")?;
        for measured in measure::CURVES {
            if plan.wants(measured.name) {
                let curve = measured.run(plan)?;
                print(&curve);
                figures.curves.insert(measured.name.to_owned(), curve);
                figures.write(out)?;
            }
        }
        if plan.wants("meanwhile") {
            figures.meanwhile = meanwhile::run(plan)?;
            meanwhile::print(&figures.meanwhile);
            figures.write(out)?;
        }
    }
    for (name, curve) in &figures.curves {
        picture::draw(curve, &out.join(format!("{name}.svg")))?;
    }
    Ok(())
}

/// A curve as a table.
fn print(curve: &Curve) {
    println!("\n**{}**\n", curve.title);
    println!("| {} | {} |", curve.of, curve.columns.join(" | "));
    println!("|---:|{}", "---:|".repeat(curve.columns.len()));
    for point in &curve.points {
        let cells: Vec<String> = point.figures.iter().map(|figure| curve::shown(*figure)).collect();
        println!("| {} | {} |", common::thousands(point.at), cells.join(" | "));
    }
}
