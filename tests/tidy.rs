//! What no compiler sees: file and function lengths, leftovers, and a README that tells the truth.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources_below(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<PathBuf> {
    ["src", "tools", "tests", "benches"]
        .into_iter()
        .filter(|folder| root().join(folder).exists())
        .flat_map(sources_below)
        .collect()
}

#[test]
fn files_are_short_and_say_what_they_own() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", path.display());
        assert!(text.starts_with("//!"), "{} does not say what it owns", path.display());
    }
}

#[test]
fn lines_are_no_wider_than_a_hundred_columns() {
    for path in all_sources() {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            // A recorded frame or an expected text may not be broken.
            let literal = line.trim_start().starts_with('"') || line.contains("\\r\\n");
            let literal = literal
                || line.contains("r#\"")
                || line.contains("\\\"")
                || line.contains("json!(");
            let width = line.chars().count();
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(width <= COLUMNS_MAX || literal, "{place} has {width} columns");
        }
    }
}

#[test]
fn functions_are_short() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let begins = line.trim_start();
            let is_function = ["fn ", "pub fn ", "pub(crate) fn ", "const fn "]
                .iter()
                .any(|start| begins.starts_with(start));
            if is_function && !begins.ends_with(';') && open.is_none() {
                open = Some((number, indent, begins.to_owned()));
            }
            if let Some((start, depth, name)) = &open
                && line.len() == depth + 1
                && begins == "}"
            {
                let lines = number - start + 1;
                let place = format!("{}:{}", path.display(), start + 1);
                assert!(lines <= FUNCTION_LINES_MAX, "{place} has {lines} lines: {name}");
                open = None;
            }
        }
    }
}

#[test]
fn nothing_is_left_over() {
    let banned = ["TO\u{44}O", "FIX\u{4d}E", "dbg\u{21}(", "todo\u{21}(", "#[ign\u{6f}re"];
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        for word in banned {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

/// What can go wrong, by letter and number: each has a test whose name begins with them. C10 (a
/// test suite for WebSocket clients) and J5 (a night's run) are no tests of this kind.
const ROWS: [(char, &[u8]); 7] = [
    ('a', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ('b', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ('c', &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ('d', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ('g', &[4, 5, 6, 7]),
    ('h', &[1, 2, 3, 4]),
    ('j', &[1, 2, 3, 4, 6, 7, 8, 9]),
];

#[test]
fn every_row_of_what_can_go_wrong_has_a_test() {
    let sources: Vec<_> =
        all_sources().into_iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for (letter, numbers) in ROWS {
        for number in numbers {
            let start = format!("fn {letter}{number}_");
            let tested = sources.iter().any(|text| text.contains(&start));
            assert!(tested, "no test is named {letter}{number}_…");
        }
    }
}

#[test]
fn the_readmes_example_is_the_example() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let example = fs::read_to_string(root().join("tools/examples/embed.rs")).unwrap();
    let code: Vec<_> =
        example.lines().skip_while(|line| line.starts_with("//!") || line.is_empty()).collect();
    assert!(code.len() <= 21, "the example has {} lines", code.len());
    assert!(readme.contains(&code.join("\n")), "README and tools/examples/embed.rs differ");
}

#[test]
fn the_readme_names_every_setting_and_no_other() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let config = fs::read_to_string(root().join("src/config.rs")).unwrap();
    let block = config.split("\nsettings! {\n").nth(1).unwrap().split("\n}\n").next().unwrap();
    let names: Vec<_> = block
        .lines()
        .filter(|line| !line.trim_start().starts_with(['/', '#']))
        .filter_map(|line| line.trim_start_matches([' ', '[', ']']).split_once(": "))
        .filter_map(|(name, _)| name.split(' ').next_back())
        .collect();
    assert!(names.len() > 25, "{names:?}");
    for name in &names {
        assert!(readme.contains(&format!("| `{name}` |")), "README lacks the setting {name}");
    }
    let section = readme.split("## Configuration").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for name in listed {
        assert!(names.contains(&name), "README names a setting there is not: {name}");
    }
}

#[test]
fn the_readmes_layout_names_every_part_and_no_other() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let layout = readme.split("\n## Layout").nth(1).unwrap().split("```").nth(1).unwrap();
    let words: Vec<_> = layout.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name == "lib" || words.contains(&name), "the layout lacks {name}");
    }
    for line in layout.lines().filter(|line| line.starts_with("  ")) {
        let name = line.split_whitespace().next().unwrap();
        assert!(root().join("src").join(format!("{name}.rs")).exists(), "there is no {name}");
    }
}
