//! What a session at a server has become since it began: its settings, role, prepared statements and channels. Read from the server itself
//! between two transactions, and made again at another one. What cannot be made again is named, and the session stays where it is.

use super::frame;
use super::server::Server;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The name of our own prepared statement, which must not be the unnamed one: that is the client's.
const OURS: &[u8] = b"rehome's own";
/// Numbers of types below this are the same on every server (PostgreSQL's `FirstNormalObjectId`).
const FIRST_OWN_TYPE: u32 = 16_384;

/// Rows: kind, name, value, numbers and names of types, made by SQL. Catalogs by their full names: nothing of the session's search path
/// may stand in.
const LOOK: &str = "SELECT 'setting', name, setting, NULL, NULL, NULL FROM pg_catalog.pg_settings
    WHERE source = 'session' AND context IN ('user', 'superuser') AND name NOT IN ('client_encoding', 'transaction_isolation',
    'transaction_read_only', 'transaction_deferrable')
  UNION ALL SELECT 'setting', n, pg_catalog.current_setting(n, true), NULL, NULL, NULL FROM pg_catalog.unnest($1) n
  UNION ALL SELECT 'role', pg_catalog.current_setting('role'), NULL, NULL, NULL, NULL
  UNION ALL SELECT 'user', session_user::text, NULL, NULL, NULL, NULL
  UNION ALL SELECT 'statement', s.name, s.statement, t.numbers, t.names, s.from_sql::text FROM pg_catalog.pg_prepared_statements s,
    LATERAL (SELECT pg_catalog.string_agg(p.oid::text, ',' ORDER BY a.n) AS numbers,
        pg_catalog.string_agg(pg_catalog.quote_ident(c.nspname) || '.' || pg_catalog.quote_ident(p.typname), ' ' ORDER BY a.n) AS names
      FROM pg_catalog.unnest(s.parameter_types) WITH ORDINALITY a(type, n)
      JOIN pg_catalog.pg_type p ON p.oid = a.type JOIN pg_catalog.pg_namespace c ON c.oid = p.typnamespace) t
    WHERE s.name <> 'rehome''s own'
  UNION ALL SELECT 'channel', c, NULL, NULL, NULL, NULL FROM pg_catalog.pg_listening_channels() c
  UNION ALL SELECT 'bound', 'it has a temporary table', NULL, NULL, NULL, NULL WHERE EXISTS
    (SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())
  UNION ALL SELECT 'bound', 'it has an advisory lock', NULL, NULL, NULL, NULL WHERE EXISTS
    (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())
  UNION ALL SELECT 'bound', 'it has a cursor that outlives its transaction', NULL, NULL, NULL, NULL WHERE EXISTS
    (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)";
const SET: &str = "SELECT pg_catalog.set_config($1, $2, false)";
const NUMBER: &str = "SELECT $1::pg_catalog.regtype::pg_catalog.oid";
/// `text` and `text[]`
const TEXT: u32 = 25;
const TEXTS: u32 = 1_009;

/// A prepared statement of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prepared {
    name: Bytes,
    statement: Bytes,
    types: Vec<Type>,
    /// By PREPARE; its text is all of that.
    by_sql: bool,
}

/// The type of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Type {
    /// The same on every server; 0: the server finds out.
    Number(u32),
    /// Has another number on every server.
    Named(Bytes),
}

/// The last statement without a name, which the client may still run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unnamed {
    pub statement: Bytes,
    pub types: Vec<u32>,
}

/// Everything of a session that can be made again, and what cannot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct State {
    settings: BTreeMap<Bytes, Bytes>,
    role: Option<Bytes>,
    user: Option<Bytes>,
    prepared: Vec<Prepared>,
    channels: Vec<Bytes>,
    pub unnamed: Option<Unnamed>,
    /// Why the session cannot go elsewhere.
    pub bound: Option<String>,
}

impl State {
    /// Asks the server. `custom`: names of settings that no catalog lists.
    ///
    /// # Errors
    /// The server is gone or refuses; its words.
    pub async fn read(
        server: &mut Server,
        custom: &BTreeSet<Bytes>,
        aside: &mut BytesMut,
    ) -> io::Result<Self> {
        let names: Vec<&[u8]> = custom.iter().map(|name| &name[..]).collect();
        let list = [&b"{"[..], &names.join(&b","[..]), b"}"].concat();
        let mut asked = BytesMut::new();
        frame::put_parse(&mut asked, OURS, LOOK.as_bytes(), &[TEXTS]);
        frame::put_run(&mut asked, OURS, &[&list]);
        forget_ours(&mut asked);
        frame::put_sync(&mut asked);
        let mut state = Self::default();
        for row in server.ask(&asked, aside).await? {
            state.take(row)?;
        }
        state.prepared.sort_by(|one, other| one.name.cmp(&other.name));
        state.channels.sort();
        Ok(state)
    }

    fn take(&mut self, row: Vec<Option<Bytes>>) -> io::Result<()> {
        let [Some(kind), Some(name), value, numbers, names, by_sql] =
            <[_; 6]>::try_from(row).map_err(|_| frame::wrong("a row of another form"))?
        else {
            return Err(frame::wrong("a row without a name"));
        };
        match &kind[..] {
            // A custom setting that was only set for a transaction has no value after it.
            b"setting" => drop(value.map(|value| self.settings.insert(name, value))),
            b"role" => self.role = Some(name).filter(|role| &role[..] != b"none"),
            b"user" => self.user = Some(name),
            // The text of a PREPARE is all that was sent with it; what else is in there must not run again.
            b"statement" if by_sql.as_deref() == Some(b"true") && !is_alone(value.as_deref()) => {
                self.bound = Some("it has a statement that was prepared in one text with others".into());
            }
            b"statement" => self.prepared.push(Prepared {
                name,
                statement: value.unwrap_or_default(),
                types: types(&numbers.unwrap_or_default(), &names.unwrap_or_default()),
                by_sql: by_sql.as_deref() == Some(b"true"),
            }),
            b"channel" => self.channels.push(name),
            _ => self.bound = Some(String::from_utf8_lossy(&name).into_owned()),
        }
        Ok(())
    }

    /// Makes the session that `caller` just opened the same.
    ///
    /// # Errors
    /// The server is gone or refuses; its words.
    pub async fn make(&self, server: &mut Server, caller: &[u8]) -> io::Result<()> {
        let mut aside = BytesMut::new();
        let numbers = self.numbers(server, &mut aside).await?;
        let mut asked = BytesMut::new();
        self.put_settings(&mut asked, caller);
        for prepared in &self.prepared {
            if prepared.by_sql {
                frame::put_parse(&mut asked, b"", &prepared.statement, &[]);
                frame::put_run(&mut asked, b"", &[]);
                continue;
            }
            let number = |one: &Type| match one {
                Type::Number(number) => *number,
                Type::Named(name) => numbers.get(name).copied().unwrap_or_default(),
            };
            let types: Vec<u32> = prepared.types.iter().map(number).collect();
            frame::put_parse(&mut asked, &prepared.name, &prepared.statement, &types);
        }
        for channel in &self.channels {
            frame::put_parse(&mut asked, b"", &[b"LISTEN ", &quoted(channel)[..]].concat(), &[]);
            frame::put_run(&mut asked, b"", &[]);
        }
        if !asked.is_empty() {
            frame::put_sync(&mut asked);
            server.ask(&asked, &mut aside).await?;
        }
        if let Some(unnamed) = &self.unnamed {
            let mut asked = BytesMut::new();
            frame::put_parse(&mut asked, b"", &unnamed.statement, &unnamed.types);
            frame::put_sync(&mut asked);
            // One that was wrong is wrong again, and then there is none, as before.
            if let Err(error) = server.ask(&asked, &mut aside).await
                && error.kind() != io::ErrorKind::Other
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Settings first, since they decide how the rest is read; then who the session is.
    fn put_settings(&self, asked: &mut BytesMut, caller: &[u8]) {
        let user = self.user.iter().filter(|user| user[..] != *caller);
        let who = user.map(|user| (&b"session_authorization"[..], user));
        let who = who.chain(self.role.iter().map(|role| (&b"role"[..], role)));
        let all: Vec<_> = self.settings.iter().map(|(name, value)| (&name[..], value)).chain(who).collect();
        if all.is_empty() {
            return;
        }
        frame::put_parse(asked, OURS, SET.as_bytes(), &[TEXT, TEXT]);
        all.iter().for_each(|(name, value)| frame::put_run(asked, OURS, &[name, value]));
        forget_ours(asked);
    }

    /// The numbers that types of the application have at this server.
    async fn numbers(&self, server: &mut Server, aside: &mut BytesMut) -> io::Result<BTreeMap<Bytes, u32>> {
        let named = |one: &Type| match one {
            Type::Named(name) => Some(name.clone()),
            Type::Number(_) => None,
        };
        let names: BTreeSet<Bytes> =
            self.prepared.iter().flat_map(|prepared| &prepared.types).filter_map(named).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut asked = BytesMut::new();
        frame::put_parse(&mut asked, OURS, NUMBER.as_bytes(), &[TEXT]);
        names.iter().for_each(|name| frame::put_run(&mut asked, OURS, &[name]));
        forget_ours(&mut asked);
        frame::put_sync(&mut asked);
        let rows = server.ask(&asked, aside).await?;
        let number = |row: Vec<Option<Bytes>>| {
            let text = row.into_iter().next().flatten().unwrap_or_default();
            std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        Ok(names.into_iter().zip(rows.into_iter().map(number)).collect())
    }
}

/// Names of types hold a space only in quotes.
fn types(numbers: &[u8], names: &[u8]) -> Vec<Type> {
    let mut is_quoted = false;
    let names = names.split(|byte| {
        is_quoted ^= *byte == b'"';
        *byte == b' ' && !is_quoted
    });
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let both = numbers.split(|byte| *byte == b',').map(number).zip(names);
    let of = |(number, name): (u32, &[u8])| match number < FIRST_OWN_TYPE {
        true => Type::Number(number),
        false => Type::Named(Bytes::copy_from_slice(name)),
    };
    if numbers.is_empty() { Vec::new() } else { both.map(of).collect() }
}

fn is_alone(statement: Option<&[u8]>) -> bool {
    let is_end = |byte: &u8| *byte == b';' || byte.is_ascii_whitespace();
    let text = statement.unwrap_or_default();
    let end = text.iter().rposition(|byte| !is_end(byte)).unwrap_or(0);
    !text[..end].contains(&b';')
}

fn forget_ours(out: &mut BytesMut) {
    frame::put(out, b'C', |out| {
        out.put_u8(b'S');
        frame::put_text(out, OURS);
    });
}

/// A name in quotes. In every encoding of PostgreSQL's clients the quote is no part of another character.
fn quoted(name: &[u8]) -> Vec<u8> {
    let inner = name.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 }));
    std::iter::once(b'"').chain(inner).chain(std::iter::once(b'"')).collect()
}

/// The settings with a name of the application's own (`app.user`) that a text sets: no catalog lists them. `None` for one whose name
/// cannot be seen in the text.
pub(super) fn custom_settings(text: &[u8]) -> impl Iterator<Item = Option<Bytes>> + '_ {
    let starts = (0..text.len()).filter(|at| {
        let is_word = *at == 0 || !is_part_of_name(text[at - 1]);
        is_word && text[*at..].len() >= 3 && text[*at..*at + 3].eq_ignore_ascii_case(b"set")
    });
    starts.filter_map(|at| {
        let rest = &text[at + 3..];
        let name = match after_word(rest, b"_config") {
            Some(rest) => match trimmed(trimmed(rest).strip_prefix(b"(")?).strip_prefix(b"'") {
                Some(literal) => literal,
                None => return Some(None),
            },
            None if rest.first().is_some_and(u8::is_ascii_whitespace) => {
                let rest = trimmed(rest);
                trimmed(after_word(rest, b"session").or_else(|| after_word(rest, b"local")).unwrap_or(rest))
            }
            None => return None,
        };
        let end = name.iter().position(|byte| !is_part_of_name(*byte) && *byte != b'.').unwrap_or(name.len());
        let name = &name[..end];
        name.contains(&b'.').then(|| Some(Bytes::from(name.to_ascii_lowercase())))
    })
}

fn is_part_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

fn trimmed(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

/// What follows a word, if the text begins with it.
fn after_word<'t>(text: &'t [u8], word: &[u8]) -> Option<&'t [u8]> {
    let (start, rest) = text.split_at_checked(word.len())?;
    let ends = rest.first().is_none_or(|byte| !is_part_of_name(*byte));
    (ends && start.eq_ignore_ascii_case(word)).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Option<String>> {
        let text_of = |name: Bytes| String::from_utf8(name.to_vec()).unwrap();
        custom_settings(text.as_bytes()).map(|name| name.map(text_of)).collect()
    }

    #[test]
    fn settings_of_the_application_are_seen() {
        let one = |name: &str| vec![Some(name.to_owned())];
        assert_eq!(found("SET app.user = '7'"), one("app.user"));
        assert_eq!(found("begin; set  session App.User to 7"), one("app.user"));
        assert_eq!(found("SELECT set_config('app.tenant', $1, false)"), one("app.tenant"));
        assert_eq!(found("select pg_catalog.set_config ( 'a.b','c',true)"), one("a.b"));
        assert_eq!(found("SELECT set_config($1, $2, false)"), vec![None]);
        for text in [
            "SET timezone = 'UTC'",
            "UPDATE t SET a = 1",
            "SELECT offset_config('a.b')",
            "SELECT set_config('search_path', 'x', false)",
            "RESET app.user",
            "set",
            "",
        ] {
            assert_eq!(found(text), Vec::<Option<String>>::new(), "{text}");
        }
        // A column of a table by its full name: asking for a setting of that name does no harm.
        assert_eq!(found("UPDATE t SET x.y = 1"), one("x.y"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_looked_through(text in proptest::collection::vec(proptest::sample::select(b"set_config('a.b session,local;$ ".to_vec()), 0..60)) {
            for name in custom_settings(&text).flatten() {
                proptest::prop_assert!(name.contains(&b'.') && name.iter().all(|byte| is_part_of_name(*byte) || *byte == b'.'));
            }
        }
    }

    #[test]
    fn types_of_the_application_go_by_name() {
        let named = |name: &str| Type::Named(Bytes::copy_from_slice(name.as_bytes()));
        assert_eq!(types(b"", b""), []);
        assert_eq!(
            types(b"23,16400,16401", b"pg_catalog.int4 public.mood public.\"my type\""),
            [Type::Number(23), named("public.mood"), named("public.\"my type\"")]
        );
    }

    #[test]
    fn a_name_is_quoted() {
        assert_eq!(quoted(br#"a"b"#), br#""a""b""#);
    }
}
