//! What a change does to a file, as people read it (a unified diff), and how a change is taken out of a file that others edited
//! meanwhile. Works on bytes: a configuration need not be UTF-8.

use std::path::Path;

/// A unified diff; empty when nothing differs.
pub fn unified(path: &Path, before: &[u8], after: &[u8]) -> String {
    if before == after {
        return String::new();
    }
    let name = path.display().to_string();
    let mut options = diffy::DiffOptions::new();
    options.set_original_filename(name.clone()).set_modified_filename(name);
    let patch = options.create_patch_bytes(before, after);
    String::from_utf8_lossy(&patch.to_bytes()).into_owned()
}

/// `now` is `base` with somebody's edits; the same edits on `wanted`. `None` when they touch the same lines.
pub fn carry_over(base: &[u8], now: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    if now == base {
        return Some(wanted.to_vec());
    }
    diffy::merge_bytes(base, now, wanted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_the_file_and_nothing_else_is_said() {
        let diff = unified(Path::new("/etc/a.conf"), b"one\ntwo\n", b"one\n2\n");
        assert_eq!(diff, "--- /etc/a.conf\n+++ /etc/a.conf\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n");
        assert_eq!(unified(Path::new("a"), b"x", b"x"), "");
    }

    #[test]
    fn what_others_added_stays() {
        let (base, wanted) = (&b"a\nGATEWAY\nb\nc\nd\ne\n"[..], &b"a\nsource\nb\nc\nd\ne\n"[..]);
        let now = b"a\nGATEWAY\nb\nc\nd\ne\nnew\n";
        assert_eq!(carry_over(base, now, wanted).unwrap(), b"a\nsource\nb\nc\nd\ne\nnew\n");
        assert_eq!(carry_over(base, b"a\nother\nb\nc\nd\ne\n", wanted), None);
    }
}
