//! The file that says where PgBouncer's clients go: one line, written whole or not at all.

use super::PgBouncer;
use crate::backend::Backend;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What the file is to say.
pub(super) fn text(bouncer: &PgBouncer, backend: &Backend) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = match bouncer.database.chars().all(plain) {
        true => bouncer.database.clone(),
        false => super::console::name(&bouncer.database),
    };
    let value = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let options = if bouncer.options.is_empty() { String::new() } else { format!(" {}", bouncer.options) };
    format!(
        "; Written by rehome at every switch; change the migration file instead.\n[databases]\n{name} = host={} port={} dbname={}{options}\n",
        value(&backend.host),
        backend.port,
        value(&backend.database),
    )
}

/// Replaces the file in one step. It holds no secret; PgBouncer's user must be able to read it, so its mode stays as it was.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path);
    let mode = match &found {
        Ok(found) if !found.is_file() => {
            let text = format!("{} is a link or no plain file; name the file itself", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(found) => found.permissions().mode() & 0o777,
        Err(_) => 0o644,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        // What an earlier process of this number left.
        let _gone = std::fs::remove_file(&aside);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if let Ok(found) = &found {
            use std::os::unix::fs::MetadataExt;
            std::os::unix::fs::fchown(&file, Some(found.uid()), Some(found.gid()))?;
        }
        file.sync_all()?;
        std::fs::rename(&aside, path)
    })();
    if written.is_err() {
        let _gone = std::fs::remove_file(&aside);
    }
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bouncer(database: &str) -> PgBouncer {
        let backend = Backend { host: "10.0.0.5".into(), port: 5432, database: "it's".into() };
        PgBouncer {
            name: "orders".into(),
            console: ("127.0.0.1".into(), 6432),
            user: "rehome".into(),
            password: Some("hunter2".into()),
            file: "/x".into(),
            database: database.into(),
            options: "pool_size=20".into(),
            source: backend.clone(),
            target: backend,
        }
    }

    #[test]
    fn a_line_holds_whatever_a_name_holds() {
        let plain = bouncer("shop");
        let written = text(&plain, &plain.source);
        assert!(
            written.ends_with("\nshop = host='10.0.0.5' port=5432 dbname='it''s' pool_size=20\n"),
            "{written}"
        );
        let odd = bouncer("my \"shop\"");
        assert!(text(&odd, &odd.source).contains("\n\"my \"\"shop\"\"\" = host"));
        assert!(!format!("{odd:?}{}", text(&odd, &odd.source)).contains("hunter2"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rehome.ini");
        write(&path, "one").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let link = folder.path().join("link.ini");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write(&link, "three").unwrap_err().to_string().contains("is a link"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left aside");
    }
}
