//! What a person sees: colour only on a terminal, columns that line up.

use std::io::{IsTerminal as _, Write as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people; may change from version to version.
    Text,
    /// For programs, on one line; errors too, on standard error.
    Json,
}

/// Styles of the terminal, or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Of standard output: colour on a terminal, unless NO_COLOR is set (no-color.org).
    pub fn of_stdout() -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint { on: std::io::stdout().is_terminal() && !refused }
    }

    #[cfg(test)]
    pub fn plain() -> Paint {
        Paint { on: false }
    }

    fn style(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(self, text: &str) -> String {
        self.style("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.style("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.style("32", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.style("31", text)
    }

    pub fn warn(self, text: &str) -> String {
        self.style("33", text)
    }

    /// A tick or a cross.
    pub fn mark(self, ok: bool) -> String {
        if ok { self.good("✓") } else { self.bad("✗") }
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

pub fn print_json(value: &serde_json::Value) {
    print(&value.to_string());
}

/// Columns padded to their widest cell; the head is dim.
pub fn table(paint: Paint, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            let missing = width.saturating_sub(cell.chars().count());
            line.extend(std::iter::repeat_n(' ', missing + 2));
        }
        line.trim_end().to_owned()
    };
    let mut text = paint.dim(&line(&mut head.iter().copied()));
    text.push('\n');
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
        text.push('\n');
    }
    text
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["grün".to_owned(), "y".to_owned()]];
        assert_eq!(table(Paint::plain(), &["KEY", "V"], &rows), "KEY   V\na     x\ngrün  y\n");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [7, 999, 1_000, 100_000, 1_234_567].map(grouped),
            ["7", "999", "1,000", "100,000", "1,234,567"]
        );
    }
}
