//! A block of lines at the bottom of the terminal that is drawn over itself. Nothing else is known of terminals here.

use std::io::Write;

#[derive(Debug, Default)]
pub struct Screen {
    drawn: usize,
}

/// Columns and rows of the terminal on stdout.
fn size() -> (usize, usize) {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .map(|size| (size.ws_col as usize, size.ws_row as usize))
        .ok()
        .filter(|(columns, rows)| *columns > 0 && *rows > 0)
        .unwrap_or((100, 30))
}

impl Screen {
    /// Draws `lines` over what was drawn before, cut to the terminal.
    pub fn draw(&mut self, lines: &[String]) {
        let (columns, rows) = size();
        let shown = lines.len().min(rows.saturating_sub(1));
        // Synchronized update: a terminal that knows it shows the whole frame at once, others ignore it.
        let mut frame = String::from("\x1b[?2026h");
        if self.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        for line in lines.iter().take(shown) {
            frame.push_str(&cut(line, columns.saturating_sub(1)));
            frame.push_str("\x1b[0m\x1b[K\n");
        }
        frame.push_str("\x1b[J\x1b[?2026l");
        let mut out = std::io::stdout().lock();
        // A terminal that went away is not our failure.
        let _ = out.write_all(frame.as_bytes());
        let _ = out.flush();
        self.drawn = shown;
    }

    /// Leaves what is drawn where it is; the next draw begins below.
    pub fn keep(&mut self) {
        self.drawn = 0;
    }
}

/// At most `width` visible characters; escape sequences take no room. Every character is counted as one column.
fn cut(line: &str, width: usize) -> String {
    let mut cut = String::with_capacity(line.len());
    let mut seen = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            cut.push(character);
            for escaped in characters.by_ref() {
                cut.push(escaped);
                if escaped.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if seen < width {
            seen += 1;
            cut.push(character);
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn colour_takes_no_room() {
        assert_eq!(cut("\x1b[31mabcdef\x1b[0m", 3), "\x1b[31mabc\x1b[0m");
        assert_eq!(cut("ab", 3), "ab");
    }
}
