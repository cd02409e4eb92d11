//! nginx's own syntax as words with their places: quotes, escapes, comments, `${…}`. It decides nothing about their meaning and
//! never changes a byte.

use std::ops::Range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The value as nginx reads it: without quotes, escapes undone.
    pub text: String,
    /// Where it stands, quotes included.
    pub span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Word(Word),
    End(usize),
    Open(usize),
    Close(usize),
}

/// Why a file cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub at: usize,
    pub what: String,
}

pub fn wrong<T>(at: usize, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { at, what: what.into() })
}

#[derive(Debug)]
pub struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next token; `None` at the end of the file.
    pub fn token(&mut self) -> Result<Option<Token>, Wrong> {
        self.skip_blank();
        let at = self.at;
        let Some(first) = self.bytes.get(at) else { return Ok(None) };
        let sign = match first {
            b';' => Token::End(at),
            b'{' => Token::Open(at),
            b'}' => Token::Close(at),
            b'"' | b'\'' => return self.quoted(*first).map(Some),
            _ => return Ok(Some(self.bare())),
        };
        self.at += 1;
        Ok(Some(sign))
    }

    fn skip_blank(&mut self) {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                b'#' => {
                    let rest = self.bytes.get(self.at..).unwrap_or_default();
                    self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                }
                _ => break,
            }
        }
    }

    fn quoted(&mut self, quote: u8) -> Result<Token, Wrong> {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => return wrong(begin, "a quote is not closed"),
                Some(b'\\') => self.at += 2,
                Some(byte) if *byte == quote => break,
                Some(_) => self.at += 1,
            }
        }
        let inner = self.bytes.get(begin + 1..self.at).unwrap_or_default();
        self.at += 1;
        match self.bytes.get(self.at) {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => {}
            Some(_) => return wrong(self.at, "a quoted word goes on after its quote"),
        }
        Ok(Token::Word(Word { text: unescaped(inner), span: begin..self.at }))
    }

    /// A word without quotes ends at a blank, `;` or `{`; everything else, `}` and `#` too, belongs to it.
    fn bare(&mut self) -> Token {
        let begin = self.at;
        let mut after_dollar = false;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'{' if after_dollar => after_dollar = false,
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' => break,
                b'\\' => {
                    self.at += 1;
                    after_dollar = false;
                }
                byte => after_dollar = *byte == b'$',
            }
            self.at += 1;
        }
        self.at = self.at.min(self.bytes.len());
        let inner = self.bytes.get(begin..self.at).unwrap_or_default();
        Token::Word(Word { text: unescaped(inner), span: begin..self.at })
    }
}

/// A backslash is taken away before quotes and itself, makes blanks of t, r and n, and stays before everything else.
fn unescaped(bytes: &[u8]) -> String {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let made = match (byte, rest.peek()) {
            (b'\\', Some(next @ (b'"' | b'\'' | b'\\'))) => *next,
            (b'\\', Some(b't')) => b'\t',
            (b'\\', Some(b'r')) => b'\r',
            (b'\\', Some(b'n')) => b'\n',
            _ => {
                plain.push(byte);
                continue;
            }
        };
        rest.next();
        plain.push(made);
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut lexer = Lexer::new(text.as_bytes());
        let mut found = Vec::new();
        while let Some(token) = lexer.token().unwrap() {
            found.push(match token {
                Token::Word(word) => word.text,
                Token::End(_) => ";".into(),
                Token::Open(_) => "{".into(),
                Token::Close(_) => "}".into(),
            });
        }
        found
    }

    #[test]
    fn words_are_read_as_nginx_reads_them() {
        for (text, expected) in [
            ("a b;c{}", &["a", "b", ";", "c", "{", "}"][..]),
            ("a # b;\n c;", &["a", "c", ";"]),
            ("a#b c;", &["a#b", "c", ";"]),
            ("return 200 a}b;", &["return", "200", "a}b", ";"]),
            ("x ${name}y;", &["x", "${name}y", ";"]),
            ("x 'a;b{' \"c\\\"d\";", &["x", "a;b{", "c\"d", ";"]),
            ("x a\\;b a\\tb \\.php$;", &["x", "a\\;b", "a\tb", "\\.php$", ";"]),
            ("if ($a = 'b') {", &["if", "($a", "=", "b", ")", "{"]),
            ("x\r\n\ty;", &["x", "y", ";"]),
            ("location ~ ^/a\\{2\\} {", &["location", "~", "^/a\\{2\\}", "{"]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn an_open_quote_is_named_by_its_place() {
        let mut lexer = Lexer::new(b"a 'b");
        lexer.token().unwrap();
        assert_eq!(lexer.token().unwrap_err().at, 2);
        assert!(Lexer::new(b"'a'b;").token().is_err());
    }
}
