//! The documents of the checkout, and what stands in them between fences.

use std::{fs, path::Path};

/// The text of a document.
pub(crate) fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The fenced blocks of a document: what stands after the fence, and the block.
pub(crate) fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// The statement in a document's SQL that stands under this comment.
pub(crate) fn statement(path: &str, comment: &str) -> String {
    let text = document(path);
    let found = blocks(&text).into_iter().find_map(|(info, block)| {
        let (_, after) = block.split_once(&format!("-- {comment}\n"))?;
        (info == "sql").then(|| after.split("\n-- ").next().unwrap().to_owned())
    });
    found.unwrap_or_else(|| panic!("{path} has no SQL under `-- {comment}`"))
}
