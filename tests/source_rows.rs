//! `docs/source-rows.md` names what exists, and goes through every row.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join("docs/source-rows.md")).expect("the page is there")
}

#[test]
fn every_test_script_and_example_that_is_named_exists() {
    let page = page();
    let (mut checked, mut missing) = (0, Vec::new());
    // What stands between two backticks.
    for named in page.split('`').skip(1).step_by(2) {
        let exists = if let Some((path, name)) = named.split_once("::") {
            let text = fs::read_to_string(root().join(path)).unwrap_or_default();
            let heads = [format!("#[test]\nfn {name}()"), format!("#[test]\n    fn {name}()")];
            heads.iter().any(|head| text.contains(head))
        } else if named.starts_with("tests/") || named.starts_with("docs/") || named.ends_with(".toml") {
            root().join(named).is_file()
        } else if let Some((_, after)) = named.split_once("--example ") {
            let name = after.split(' ').next().unwrap_or_default();
            root().join(format!("examples/{name}.rs")).is_file()
        } else {
            continue;
        };
        checked += 1;
        if !exists {
            missing.push(named);
        }
    }
    assert_eq!(missing, Vec::<&str>::new(), "these are named in docs/source-rows.md and do not exist");
    assert!(checked > 150, "only {checked} names were found");
}

#[test]
fn every_row_stands_on_the_page_once() {
    let page = page();
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(|row| row.chars().any(|c| c.is_ascii_digit()))
        .collect();
    let series = [("A", 1..=23), ("D", 1..=20), ("P", 1..=11), ("X", 1..=40), ("W", 1..=14), ("W", 17..=20)];
    let due: BTreeSet<String> = series
        .into_iter()
        .flat_map(|(letter, numbers)| numbers.map(move |number| format!("{letter}{number}")))
        .collect();
    let found: BTreeSet<String> = rows.iter().map(|&row| row.to_owned()).collect();
    assert_eq!(found, due);
    assert_eq!(rows.len(), due.len(), "a row stands twice");
}
