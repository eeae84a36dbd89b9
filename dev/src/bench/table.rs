//! Tables that read alike on a terminal and as Markdown.

/// A table whose columns also stand in line where nothing renders it. The first row is its head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| {
            let dashes = "-".repeat(width.saturating_sub(1));
            if column == 0 { format!("-{dashes}") } else { format!("{dashes}:") }
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text += &line(row);
        if number == 0 {
            text += &line(&rule);
        }
    }
    text
}

/// A row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_line() {
        let rows = [row(["way", "requests/s"]), row(["`raw`", "7 (5–9)"])];
        assert_eq!(
            table(&rows),
            "| way   | requests/s |\n| ----- | ---------: |\n| `raw` |    7 (5–9) |\n"
        );
    }
}
