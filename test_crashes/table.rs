//! The table in `README.md` names every test, and nothing that is no test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn the_table_and_the_tests_are_the_same() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("test_crashes");
    let mut tests = BTreeSet::new();
    for entry in fs::read_dir(&here).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("table.rs") {
            continue;
        }
        let module = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let names = text.split("#[test]\nfn ").skip(1).map(|rest| rest.split('(').next().unwrap());
        tests.extend(names.map(|name| format!("{module}::{name}")));
    }
    let table = fs::read_to_string(here.join("README.md")).unwrap();
    let rows: BTreeSet<String> = table
        .split('`')
        .filter(|word| word.contains("::") && !word.contains(' '))
        .map(str::to_owned)
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in table.split('`').filter(|word| word.starts_with("tests/") || word.starts_with("src/")) {
        assert!(
            file.ends_with("/...") || root.join(file).exists(),
            "the table names {file}, which is not there"
        );
    }
    assert!(tests.len() > 50);
    assert_eq!(
        tests.difference(&rows).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "these tests are not in the table"
    );
    assert_eq!(rows.difference(&tests).collect::<Vec<_>>(), Vec::<&String>::new(), "these rows have no test");
}
