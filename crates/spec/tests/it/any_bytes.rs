use proptest::prelude::*;
use rehome_spec::{Migration, Size, Span, TEMPLATE};
use std::time::Duration;

/// Pieces of real files, so that random files get past the first line.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "[migration]\n",
        "[[objects]]\n",
        "[objects.source]\n",
        "[[services]]\n",
        "[switch]\n",
        "[switch.hold]\n",
        "[[switch]]\n",
        "name = ",
        "url = ",
        "source = ",
        "target = ",
        "uses = ",
        "read_steps = ",
        "age = ",
        "secret_key = ",
        "fence.by = ",
        "listen = ",
        "\"media\"\n",
        "\"s3://b\"\n",
        "\"2s\"\n",
        "[1, 5]\n",
        "[\"a\"]\n",
        "{ cloud = \"x\" }\n",
        "{ url = 1 }\n",
        "-1\n",
        "99999999999\n",
        "1.5\n",
        "true\n",
        "\"\"\"\n",
        "'",
        "\"",
        "\n",
        "=",
        "{",
        "}",
        "ä",
        "\u{0}",
        "\t",
        "env:A",
        "\"env:\"\n",
        "\"http://u:p@h/\"\n",
        "1979-05-27\n",
        "# ",
    ];
    prop_oneof![8 => prop::sample::select(words.to_vec()).prop_map(String::from), 1 => ".{0,8}"]
}

/// Whatever is said has a place inside the file, and is fit for a terminal.
fn check(text: &str) {
    let Err(error) = Migration::parse(text, "any.toml") else { return };
    assert!(!error.problems().is_empty());
    let lines = text.split('\n').count();
    for problem in error.problems() {
        if let Some(spot) = &problem.at {
            assert!(spot.line >= 1 && spot.line <= lines && spot.column >= 1, "{problem:?}");
        }
    }
    let shown = error.render(false);
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gets_an_answer(text in ".{0,200}") {
        check(&text);
    }

    #[test]
    fn any_bytes_in_a_file_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("any.toml");
        std::fs::write(&path, &bytes).expect("write");
        let _ = Migration::load(&path).map_err(|error| error.render(true));
    }

    #[test]
    fn pieces_of_real_files_get_an_answer(pieces in prop::collection::vec(piece(), 0..40)) {
        check(&pieces.concat());
    }

    #[test]
    fn a_file_with_a_slip_gets_an_answer(at in 0..TEMPLATE.len(), with in prop::option::of(any::<char>())) {
        let at = (0..=at).rev().find(|at| TEMPLATE.is_char_boundary(*at)).expect("0 is one");
        let (before, after) = TEMPLATE.split_at(at);
        let mut rest = after.chars();
        rest.next();
        check(&format!("{before}{}{}", with.map(String::from).unwrap_or_default(), rest.as_str()));
    }

    #[test]
    fn times_are_written_and_read_without_loss(micros in 0..315_360_000_000_000u64) {
        let span = Span(Duration::from_micros(micros));
        let text = serde_json::to_string(&span).expect("writes");
        prop_assert_eq!(serde_json::from_str::<Span>(&text).expect(&text), span);
    }

    #[test]
    fn sizes_are_written_and_read_without_loss(bytes in 0..(1u64 << 52), shift in 0..52u32) {
        let size = Size(bytes >> shift << shift);
        let text = serde_json::to_string(&size).expect("writes");
        prop_assert_eq!(serde_json::from_str::<Size>(&text).expect(&text), size);
    }

    /// A secret in plain text never comes back out, whatever else is wrong with the line.
    #[test]
    fn plain_secrets_are_never_shown(
        secret in "[a-z0-9/+]{12,30}",
        line in prop::sample::select(vec![
            "secret_key = \"SECRET\"", "secret_key = SECRET", "secret_key = \"SECRET", "secret_key = 'SECRET' x",
            "acess_key = \"SECRET\"", "source = { url = 1, secret_key = \"SECRET\" }", "secret_key \"SECRET\"",
            "source = { url = \"s3://u:SECRET@bucket\", x = 1 }", "token = [\"SECRET\"]", "secret_key = \"\"\"\nSECRET\n\"\"\"",
            "secret_key = \"env:SECRET \"", "password = \"SECRET\"", "secret_key = \"\"\"\nSECRET", "token = [\n  \"SECRET\"\n x", "token = { x = \"SECRET\" }", "acess_ky = \"SECRET\"",
            "secret_key =\n  \"SECRET\"", "source = { url = \"s3://me:SECRET@b\" }\ntarget = { url = \"s3://me:SECRET@b\" }",
        ]),
        after in prop::sample::select(vec!["", "x = ", "= 2", "[", "\u{7}"]),
    ) {
        let text = format!("[[objects]]\nname = \"a\"\n{}\n{after}\n", line.replace("SECRET", &secret));
        let error = Migration::parse(&text, "f").expect_err("never right");
        let said = format!("{}{error:?}", error.render(false));
        prop_assert!(!said.contains(&secret), "{said}");
    }
}
