//! Rules about the repository itself: which crate may use which, where determinism is enforced, and that the page
//! which explains the code points at code that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read_toml(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Folder of each member → the folders of ours that it links (tests of its own aside).
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let top = read_toml(&root().join("Cargo.toml"));
    let shared = top["workspace"]["dependencies"].as_table().unwrap();
    let members = top["workspace"]["members"].as_array().unwrap();
    let edges = members.iter().map(|member| {
        let folder = member.as_str().unwrap().to_owned();
        let manifest = read_toml(&root().join(&folder).join("Cargo.toml"));
        let dependencies = manifest.get("dependencies").and_then(|table| table.as_table());
        let ours = dependencies.into_iter().flatten().filter(|(name, _)| name.starts_with("drover-"));
        let folders = ours.map(|(name, dependency)| {
            // Its own path, else that of the workspace.
            let (base, dependency) = match dependency.get("path") {
                Some(_) => (root().join(&folder), dependency),
                None => (root(), shared.get(name).unwrap_or_else(|| panic!("{folder} uses the unknown {name}"))),
            };
            let path = base.join(dependency["path"].as_str().unwrap()).canonicalize().unwrap();
            path.strip_prefix(root()).unwrap().display().to_string()
        });
        (folder.clone(), folders.collect())
    });
    edges.collect()
}

/// Ours that each crate may use directly. Whoever is not named here may use all that lies below it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("engine/base", &[]),
    ("engine/runtime", &["engine/base"]),
    ("engine/disk", &["engine/base"]),
    ("engine/wire", &["engine/base"]),
    ("engine/store", &["engine/base", "engine/disk", "engine/wire"]),
    ("engine/transfer", &["engine/base", "engine/disk", "engine/wire", "engine/store", "tiers/heat"]),
    ("tiers/heat", &["engine/base"]),
    ("api/types", &["engine/base"]),
    ("api/meta", &["engine/base"]),
    ("api/control", &["engine/base", "engine/wire", "api/types", "api/meta"]),
    ("api/server", &["engine/base", "engine/wire", "api/types", "api/meta", "api/control"]),
];

/// Folders from the bottom up: an arrow never points to a later one.
const ORDER: &[&str] = &["engine", "tiers", "api", "tools", "tests", "benches"];

#[test]
fn arrows_between_crates_point_down() {
    let edges = edges();
    assert!(edges.contains_key("engine/store"), "the members were read");
    for (folder, uses) in &edges {
        if let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == folder) {
            for used in uses {
                assert!(allowed.contains(&used.as_str()), "{folder} must not depend on {used}");
            }
        }
        let level = |path: &str| ORDER.iter().position(|top| path.split('/').next() == Some(top)).unwrap();
        for used in uses {
            // The node counts heat where the I/O is.
            let is_heat = used == "tiers/heat" && folder.starts_with("engine/");
            assert!(is_heat || level(used) <= level(folder), "{folder} must not depend on {used}, which lies above");
        }
    }
}

#[test]
fn the_control_plane_never_links_what_sees_a_block() {
    let edges = edges();
    let forbidden = ["engine/disk", "engine/store", "engine/transfer", "engine/node"];
    for start in edges.keys().filter(|folder| folder.starts_with("api/")) {
        let mut seen = BTreeSet::new();
        let mut next = vec![start.clone()];
        while let Some(folder) = next.pop() {
            assert!(!forbidden.contains(&folder.as_str()), "{start} links {folder}");
            if seen.insert(folder.clone()) {
                next.extend(edges[&folder].iter().cloned());
            }
        }
    }
}

#[test]
fn the_crates_that_decide_are_denied_the_machines_clock_and_chance() {
    // clippy takes the nearest clippy.toml upwards from the package.
    let nearest = |folder: &str| {
        let start = root().join(folder);
        start.ancestors().map(|place| place.join("clippy.toml")).find(|file| file.exists()).unwrap()
    };
    for folder in
        ["engine/base", "engine/wire", "engine/store", "engine/transfer", "engine/node", "api/control", "tiers/heat"]
    {
        let rules = read_toml(&nearest(folder));
        for list in ["disallowed-methods", "disallowed-types"] {
            let denied = rules.get(list).and_then(|list| list.as_array()).map_or(0, Vec::len);
            assert!(denied >= 10, "{folder}: {list} has {denied} entries");
        }
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_bug_that_can_be_planted_is_planted_by_a_test() {
    let declared = std::fs::read_to_string(root().join("engine/base/src/planted.rs")).unwrap();
    let list = declared.split_once("bugs! {").and_then(|(_, rest)| rest.split_once("\n}")).unwrap().0;
    let names = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    let names: BTreeSet<&str> = names.map(|line| line.trim_end_matches(',')).collect();
    assert!(names.len() >= 12, "{names:?}");
    let mut files = Vec::new();
    ["engine", "api", "tests"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    let mut planted = BTreeSet::new();
    for file in files {
        let code = std::fs::read_to_string(file).unwrap();
        // Where a bug sits it is asked for; a test names it otherwise.
        for (at, _) in code.match_indices("Bug::").filter(|(at, _)| !code[..*at].ends_with("is_planted(")) {
            let name = code[at + "Bug::".len()..].split(|letter: char| !letter.is_alphanumeric()).next().unwrap();
            planted.extend(names.get(name));
        }
    }
    let missing: Vec<_> = names.difference(&planted).collect();
    assert!(missing.is_empty(), "no test plants {missing:?}");
}

#[test]
fn the_page_about_the_code_points_at_code_that_exists() {
    let page = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let mut paths = 0;
    for path in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        // In code quotes a table names paths, all with a slash or an ending of files; and commands, with a space.
        let is_path = !path.contains(' ') && (path.contains('/') || path.ends_with(".rs") || path.ends_with(".toml"));
        if is_path && !path.starts_with('/') {
            assert!(root().join(path).exists(), "docs/ARCHITECTURE.md names {path}, which is not there");
            paths += 1;
        }
    }
    assert!(paths >= 20, "only {paths} paths were found: has the table changed its form?");
}

/// What stands directly above the test, its attributes aside, as one line.
fn comment_of(source: &str, test: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.trim_start_matches("pub ").starts_with(&format!("fn {test}(")))?;
    let above = lines[..at].iter().rev().filter(|line| !line.starts_with("#["));
    let mut comment: Vec<&str> = above.map_while(|line| line.strip_prefix("/// ")).collect();
    comment.reverse();
    Some(comment.join(" "))
}

#[test]
fn every_complaint_has_a_test_that_opens_by_telling_it() {
    let page = std::fs::read_to_string(root().join("docs/complaints.md")).unwrap();
    let mut complaints = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with('|') && line.contains('#')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, references, test] = cells[..] else { panic!("not three cells: {row}") };
        let quoted: Vec<&str> = test.split('`').skip(1).step_by(2).collect();
        let [path, test] = quoted[..] else { panic!("not a path and a test: {row}") };
        let source = std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let comment = comment_of(&source, test).unwrap_or_else(|| panic!("{path} has no test {test}"));
        for reference in references.split(", ") {
            assert!(comment.contains(reference), "{path}: the comment of {test} does not tell of {reference}");
            complaints.insert(reference.to_owned());
        }
        let opening = comment.split(':').next().unwrap_or_default();
        assert!(opening.contains('#'), "{path}: the comment of {test} does not open by telling a complaint");
    }
    assert!(complaints.len() >= 30, "only {} complaints were found: has the table changed its form?", complaints.len());
}

#[test]
fn every_hole_of_others_has_a_test_whose_comment_tells_it() {
    let page = std::fs::read_to_string(root().join("docs/hostile.md")).unwrap();
    let mut holes = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with('|') && line.contains('`')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [.., references, test] = cells[..] else { panic!("not three cells: {row}") };
        // What is quoted at last; the hole itself may quote, too.
        let quoted: Vec<&str> = test.split('`').skip(1).step_by(2).collect();
        let [path, test] = quoted[..] else { panic!("not a path and a test: {row}") };
        let source = std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let comment = comment_of(&source, test).unwrap_or_else(|| panic!("{path} has no test {test}"));
        for reference in references.split(", ") {
            assert!(comment.contains(reference), "{path}: the comment of {test} does not tell of {reference}");
            holes.insert(reference.to_owned());
        }
    }
    assert!(holes.len() >= 18, "only {} holes were found: has the table changed its form?", holes.len());
}
