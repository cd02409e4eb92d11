//! A configuration as directives and blocks, with the files it includes. Every part knows the bytes it stands on, so that a change
//! touches nothing else. What it cannot read for sure (blocks of another language) it refuses.

use super::lexer::{Lexer, Token, Word, Wrong, wrong};
use crate::EntryError;
use crate::files::{self, FileChange, Original};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_DEPTH: usize = 64;
const MAX_FILES: usize = 2_000;
const MAX_BYTES: usize = 64 << 20;

/// Blocks of pairs, not of directives: what they include leads nowhere and is not read.
const TABLES: [&str; 5] = ["map", "geo", "types", "split_clients", "charset_map"];

#[derive(Debug, Clone)]
pub struct Directive {
    /// The name and what follows it.
    pub words: Vec<Word>,
    /// Which file of the [`Tree`] it stands in.
    pub file: usize,
    /// From its name to its `;` or `}`.
    pub span: Range<usize>,
    pub block: Option<Block>,
    /// `include`: the files that take its place.
    pub included: Vec<usize>,
}

#[derive(Debug, Clone)]
pub struct Block {
    /// After `{`.
    pub inside: usize,
    pub children: Vec<Directive>,
}

impl Directive {
    pub fn name(&self) -> &str {
        self.words.first().map_or("", |word| word.text.as_str())
    }

    /// The values after the name.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).map(|word| word.text.as_str())
    }

    pub fn value(&self) -> &str {
        self.values().next().unwrap_or_default()
    }

    pub fn children(&self) -> &[Directive] {
        self.block.as_ref().map_or(&[], |block| &block.children)
    }
}

#[derive(Debug)]
pub struct Source {
    pub original: Original,
    pub directives: Vec<Directive>,
    /// Bytes with everything included, as often as it is included.
    weight: usize,
}

#[derive(Debug)]
pub struct Tree {
    pub files: Vec<Source>,
    /// The folder against which `include` is read: that of the main file.
    pub folder: PathBuf,
    numbers: HashMap<PathBuf, usize>,
    bytes: usize,
    /// Contents to take in the place of what the disk holds.
    instead: HashMap<PathBuf, Vec<u8>>,
}

impl Tree {
    /// Reads the main file and everything it includes. Nothing is executed.
    ///
    /// # Errors
    /// When a file cannot be read or understood; the text names file and line.
    pub fn read(config: &Path) -> Result<Self, EntryError> {
        Self::read_with(config, &[])
    }

    /// The same, as if the changes were made.
    pub(super) fn read_with(config: &Path, changes: &[FileChange]) -> Result<Self, EntryError> {
        // nginx takes the folder of the path it was given, not of the file that a link leads to.
        let named = std::path::absolute(config).map_err(files::failed(config))?;
        let folder = named.parent().unwrap_or(Path::new("/")).to_owned();
        let instead = changes.iter().map(|change| (change.path.clone(), change.after.clone())).collect();
        let mut tree = Self { files: Vec::new(), folder, numbers: HashMap::new(), bytes: 0, instead };
        let original = tree.load(config)?;
        tree.add(original, &mut Vec::new())?;
        Ok(tree)
    }

    fn load(&self, path: &Path) -> Result<Original, EntryError> {
        let mut original = files::read(path)?;
        if let Some(bytes) = self.instead.get(&original.real) {
            original.bytes.clone_from(bytes);
        }
        Ok(original)
    }

    /// Everything in one file: each `include` replaced by what it includes.
    pub(super) fn flat(&self) -> Vec<u8> {
        self.flat_file(0)
    }

    fn flat_file(&self, number: usize) -> Vec<u8> {
        let Some(source) = self.files.get(number) else { return Vec::new() };
        let bytes = &source.original.bytes;
        let (mut flat, mut at) = (Vec::with_capacity(bytes.len()), 0);
        for include in includes(&source.directives) {
            flat.extend_from_slice(bytes.get(at..include.span.start).unwrap_or_default());
            for included in &include.included {
                flat.extend(self.flat_file(*included));
                flat.push(b'\n');
            }
            at = include.span.end;
        }
        flat.extend_from_slice(bytes.get(at..).unwrap_or_default());
        flat
    }

    pub fn main(&self) -> &[Directive] {
        self.files.first().map_or(&[], |source| &source.directives)
    }

    /// `file:line` of a byte.
    pub fn place(&self, file: usize, at: usize) -> String {
        let Some(source) = self.files.get(file) else { return String::new() };
        place(&source.original.named, &source.original.bytes, at)
    }

    pub fn place_of(&self, directive: &Directive) -> String {
        self.place(directive.file, directive.span.start)
    }

    /// The directives that stand here once every `include` is replaced by what it includes.
    pub fn expanded<'t>(&'t self, directives: &'t [Directive]) -> Vec<&'t Directive> {
        let mut flat = Vec::with_capacity(directives.len());
        for directive in directives {
            if directive.name() == "include" {
                for number in &directive.included {
                    flat.extend(self.expanded(&self.files[*number].directives));
                }
            } else {
                flat.push(directive);
            }
        }
        flat
    }

    fn add(&mut self, original: Original, under: &mut Vec<usize>) -> Result<usize, EntryError> {
        if let Some(number) = self.numbers.get(&original.real) {
            return if under.contains(number) {
                Err(EntryError::unfit(
                    format!("{} includes itself", original.named.display()),
                    "nginx would refuse it too",
                ))
            } else {
                Ok(*number)
            };
        }
        self.bytes += original.bytes.len();
        if self.files.len() >= MAX_FILES || self.bytes > MAX_BYTES || under.len() >= MAX_DEPTH {
            return Err(too_large());
        }
        let number = self.files.len();
        let mut directives = parse(&original.bytes, number)
            .map_err(|error| unreadable(&original.named, &original.bytes, &error))?;
        self.numbers.insert(original.real.clone(), number);
        self.files.push(Source { original, directives: Vec::new(), weight: 0 });
        under.push(number);
        self.follow(&mut directives, under)?;
        under.pop();
        let included = includes(&directives).into_iter().flat_map(|include| &include.included);
        let included = included.filter_map(|number| self.files.get(*number)).map(|source| source.weight);
        let weight = included.fold(0, usize::saturating_add);
        let Some(source) = self.files.get_mut(number) else { return Ok(number) };
        source.weight = weight.saturating_add(source.original.bytes.len());
        source.directives = directives;
        if source.weight > MAX_BYTES { Err(too_large()) } else { Ok(number) }
    }

    fn follow(&mut self, directives: &mut [Directive], under: &mut Vec<usize>) -> Result<(), EntryError> {
        for directive in directives {
            if directive.name() == "include" {
                for path in self.matching(directive)? {
                    let original = self.load(&path)?;
                    directive.included.push(self.add(original, under)?);
                }
            } else if let Some(block) = &mut directive.block
                && !directive.words.first().is_some_and(|name| TABLES.contains(&name.text.as_str()))
            {
                self.follow(&mut block.children, under)?;
            }
        }
        Ok(())
    }

    /// As glob(3) does it: sorted, hidden files only where they are meant. A path without signs must be there.
    fn matching(&self, include: &Directive) -> Result<Vec<PathBuf>, EntryError> {
        let path = self.folder.join(include.value());
        if !include.value().contains(['*', '?', '[']) {
            return Ok(vec![path]);
        }
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        let unfit = |error: String| {
            let place = self.place_of(include);
            EntryError::unfit(format!("{place}: include {}: {error}", include.value()), "see what it names")
        };
        // The folder's own name is no pattern.
        let pattern = match include.value().starts_with('/') {
            true => include.value().to_owned(),
            false => format!("{}/{}", glob::Pattern::escape(&self.folder.to_string_lossy()), include.value()),
        };
        let found = glob::glob_with(&pattern, options).map_err(|error| unfit(error.to_string()))?;
        let paths: Result<Vec<PathBuf>, _> = found.take(MAX_FILES).collect();
        paths.map_err(|error| unfit(error.to_string()))
    }
}

/// Those that were followed, in the order of the file.
fn includes(directives: &[Directive]) -> Vec<&Directive> {
    let mut found = Vec::new();
    for directive in directives {
        if directive.name() == "include" {
            found.push(directive);
        } else if !TABLES.contains(&directive.name()) {
            found.extend(includes(directive.children()));
        }
    }
    found
}

fn too_large() -> EntryError {
    EntryError::unfit(
        format!("the configuration is larger than {MAX_FILES} files or {} MiB", MAX_BYTES >> 20),
        "name a smaller part of it with --config",
    )
}

fn place(path: &Path, bytes: &[u8], at: usize) -> String {
    let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    format!("{}:{line}", path.display())
}

fn unreadable(path: &Path, bytes: &[u8], error: &Wrong) -> EntryError {
    let text = format!("{}: {}", place(path, bytes, error.at), error.what);
    EntryError::unfit(text, "see what `nginx -t` says of it, or change this entry by hand")
}

fn parse(bytes: &[u8], file: usize) -> Result<Vec<Directive>, Wrong> {
    block(&mut Lexer::new(bytes), bytes.len(), file, 0).map(|(directives, _)| directives)
}

/// The directives up to the end of the file (depth 0) or the block's `}`, and the byte after it.
fn block(
    lexer: &mut Lexer<'_>,
    length: usize,
    file: usize,
    depth: usize,
) -> Result<(Vec<Directive>, usize), Wrong> {
    let mut directives = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    loop {
        let begin = words.first().map(|word| word.span.start);
        match (lexer.token()?, begin) {
            (Some(Token::Word(word)), _) => words.push(word),
            (Some(Token::End(at)), None) => return wrong(at, "a `;` without a directive"),
            (Some(Token::Open(at)), None) => return wrong(at, "a `{` without a name"),
            (Some(Token::End(at)), Some(begin)) => {
                let words = std::mem::take(&mut words);
                let span = begin..at + 1;
                directives.push(Directive { words, file, span, block: None, included: Vec::new() });
            }
            (Some(Token::Open(at)), Some(begin)) => {
                let name = words[0].text.as_str();
                if name.ends_with("_by_lua_block") {
                    return wrong(begin, format!("`{name}` holds another language, which is not read here"));
                }
                if depth + 1 >= MAX_DEPTH {
                    return wrong(at, "blocks are nested too deep");
                }
                let (children, end) = block(lexer, length, file, depth + 1)?;
                let (words, block) = (std::mem::take(&mut words), Some(Block { inside: at + 1, children }));
                directives.push(Directive { words, file, span: begin..end, block, included: Vec::new() });
            }
            (Some(Token::Close(at)), Some(_)) => return wrong(at, "a directive without its `;`"),
            (Some(Token::Close(at)), None) if depth == 0 => return wrong(at, "a `}` without its `{`"),
            (Some(Token::Close(at)), None) => return Ok((directives, at + 1)),
            (None, Some(begin)) => return wrong(begin, "a directive without its `;`"),
            (None, None) if depth > 0 => return wrong(length, "a `}` is missing"),
            (None, None) => return Ok((directives, length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn within(directives: &[Directive], length: usize) -> bool {
        directives.iter().all(|one| {
            let words = one.words.iter().all(|word| word.span.end <= one.span.end);
            words && one.span.end <= length && within(one.children(), length)
        })
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_nothing_breaks(text in "[a-z ;{}\"'#$\\\\\r\n\u{e9}]{0,60}") {
            if let Ok(directives) = parse(text.as_bytes(), 0) {
                prop_assert!(within(&directives, text.len()));
            }
        }
    }

    fn names(directives: &[&Directive]) -> Vec<String> {
        directives.iter().map(|directive| directive.name().to_owned()).collect()
    }

    #[test]
    fn includes_are_followed_as_nginx_does() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        write(
            "nginx.conf",
            "a;\ninclude conf.d/*.conf;\nhttp { include one; map $a $b { include none; } }\n",
        );
        write("conf.d/2.conf", "two;");
        write("conf.d/1.conf", "one;");
        write("conf.d/.hidden.conf", "hidden;");
        write("conf.d/other", "other;");
        write("one", "inner { x; }");
        let tree = Tree::read(&folder.path().join("nginx.conf")).unwrap();
        let top = tree.expanded(tree.main());
        assert_eq!(names(&top), ["a", "one", "two", "http"]);
        assert_eq!(names(&tree.expanded(top[3].children())), ["inner", "map"]);
        let inner = tree.expanded(top[3].children())[0];
        assert!(tree.place_of(inner).ends_with("one:1"), "{}", tree.place_of(inner));
        let source = &tree.files[inner.file].original.bytes;
        assert_eq!(&source[inner.span.clone()], b"inner { x; }");
        let flat = String::from_utf8(tree.flat()).unwrap();
        assert_eq!(flat, "a;\none;\ntwo;\n\nhttp { inner { x; }\n map $a $b { include none; } }\n");

        write("one", "include nginx.conf;");
        let error = Tree::read(&folder.path().join("nginx.conf")).unwrap_err().to_string();
        assert!(error.contains("includes itself"), "{error}");
        // Twice the former, thirty times over.
        for number in 0..30 {
            let next = format!("include {0}.conf; include {0}.conf;", number + 1);
            write(&format!("{number}.conf"), &next);
        }
        write("30.conf", &"x;".repeat(100));
        write("one", "include 0.conf;");
        let error = Tree::read(&folder.path().join("nginx.conf")).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
        write("one", "include gone.conf;");
        assert!(matches!(Tree::read(&folder.path().join("nginx.conf")), Err(EntryError::File { .. })));
    }

    #[test]
    fn what_cannot_be_read_for_sure_is_refused_by_line() {
        for (text, expected) in [
            ("http {\n  access_by_lua_block { return }\n}", "access_by_lua_block"),
            ("http {\n a b\n}", "without its `;`"),
            ("http {", "missing"),
            ("}", "without its"),
            (";", "without a directive"),
            ("a b", "without its `;`"),
        ] {
            assert!(parse(text.as_bytes(), 0).unwrap_err().what.contains(expected), "{text}");
        }
        assert!(parse("a {".repeat(100).as_bytes(), 0).is_err());
    }
}
