//! The XML of Route 53: an answer as a small tree, a change as text. Answers are bounded by the caller.

use crate::dns::{Entry, Kind};
use quick_xml::Reader;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::Event;

/// Nothing that Route 53 answers is as deep.
const MAX_DEPTH: usize = 32;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of a name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text below, by a path of names; empty where there is none.
    pub fn at(&self, path: &[&str]) -> &str {
        let found = path.iter().try_fold(self, |element, name| element.child(name));
        found.map_or("", |element| element.text.trim())
    }

    /// The children of the child `list`.
    pub fn list(&self, list: &str) -> &[Self] {
        self.child(list).map_or(&[], |list| &list.children)
    }
}

/// # Errors
/// When it is no XML.
pub(super) fn parse(document: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(document);
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let depth = open.len();
        let Some(top) = open.last_mut() else {
            return Err("an element that was not opened is closed".into());
        };
        match event {
            Event::Start(start) if depth < MAX_DEPTH => {
                open.push(Element { name: start.local_name().as_ref().to_owned(), ..Element::default() });
            }
            Event::Start(_) => return Err("it is too deep".into()),
            Event::Empty(element) => {
                top.children
                    .push(Element { name: element.local_name().as_ref().to_owned(), ..Element::default() });
            }
            Event::End(_) => {
                let closed = open.pop().unwrap_or_default();
                let Some(parent) = open.last_mut() else { return Err("it ends too often".into()) };
                parent.children.push(closed);
            }
            Event::Text(part) => top.text.push_str(&part.xml10_content()),
            Event::CData(part) => top.text.push_str(&part.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref() {
                Ok(Some(character)) => top.text.push(character),
                Ok(None) => {
                    let name: &str = &reference;
                    top.text.push_str(resolve_predefined_entity(name).ok_or_else(|| format!("&{name};"))?);
                }
                Err(error) => return Err(error.to_string()),
            },
            Event::Eof => break,
            _ => {}
        }
    }
    match (open.len(), open.pop().and_then(|mut document| document.children.pop())) {
        (1, Some(root)) => Ok(root),
        _ => Err("it ends too early".into()),
    }
}

/// A record set as it stands in a change: the values as the service wrote them.
pub(super) struct Raw {
    pub kind: Kind,
    pub ttl: u32,
    pub values: Vec<String>,
}

impl Raw {
    pub fn all_of(entry: &Entry) -> Vec<Self> {
        let raw = |set: &crate::dns::RecordSet| Self {
            kind: set.kind,
            ttl: set.ttl,
            values: set.values.iter().cloned().collect(),
        };
        entry.sets().iter().map(raw).collect()
    }
}

/// All of it happens, or nothing: `DELETE` wants exactly what is there, `CREATE` that nothing is there.
pub(super) fn change(name: &str, gone: &[Raw], new: &[Raw]) -> String {
    let changes: String = gone
        .iter()
        .map(|set| ("DELETE", set))
        .chain(new.iter().map(|set| ("CREATE", set)))
        .map(|(action, set)| {
            let values: String = set
                .values
                .iter()
                .map(|value| format!("<ResourceRecord><Value>{}</Value></ResourceRecord>", escape(value.as_str())))
                .collect();
            format!(
                "<Change><Action>{action}</Action><ResourceRecordSet><Name>{}.</Name><Type>{}</Type><TTL>{}</TTL>\
                 <ResourceRecords>{values}</ResourceRecords></ResourceRecordSet></Change>",
                escape(name),
                set.kind,
                set.ttl
            )
        })
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ChangeResourceRecordSetsRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><ChangeBatch>\
         <Comment>rehome</Comment><Changes>{changes}</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_a_tree() {
        let root =
            parse("<?xml version=\"1.0\"?><A x=\"1\"><B><C>a &amp; b&#x21;</C><D/></B><B/></A>").unwrap();
        assert_eq!(root.at(&["B", "C"]), "a & b!");
        assert_eq!((root.children.len(), root.list("B").len(), root.at(&["no", "way"])), (2, 2, ""));
        for wrong in ["", "<A>", "<A></B>", "</A>", "plain", "<A>&bomb;</A>", &"<A>".repeat(40)] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_can_be_read_again() {
        let old = Entry::to(&["192.0.2.1".into()], 300).unwrap();
        let root = parse(&change("shop.example.com", &Raw::all_of(&old), &[])).unwrap();
        let set = root.list("ChangeBatch")[1].children[0].child("ResourceRecordSet").unwrap();
        assert_eq!((set.at(&["Name"]), set.at(&["TTL"])), ("shop.example.com.", "300"));
        assert_eq!(set.at(&["ResourceRecords", "ResourceRecord", "Value"]), "192.0.2.1");
    }
}
