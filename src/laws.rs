//! What must hold whatever comes in. A room that reads what others have written says so in a
//! module `laws`: the fuzz targets (`fuzz/`) look for an input that breaks one, and the ordinary
//! tests hold them against the inputs that are kept in `fuzz/corpus/`.

#[cfg(test)]
pub(crate) use self::kept::replay;

/// A name and its value.
pub(crate) type Named<'a> = (&'a [u8], &'a [u8]);

/// The input as lines of the form `name=value` up to the first empty one, and what comes behind.
pub(crate) fn named_and_rest(input: &[u8]) -> (Vec<Named<'_>>, &[u8]) {
    let mut named = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (line, behind) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) => named.push((&line[..at], &line[at + 1..])),
            None if line.is_empty() => return (named, behind),
            None => return (named, rest),
        }
        rest = behind;
    }
    (named, rest)
}

#[cfg(test)]
mod kept {
    #![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

    use std::{fs, panic::catch_unwind, path::Path};

    /// Holds a law against every input kept for a target.
    pub(crate) fn replay(target: &str, law: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 10, "{} has too few inputs to say anything", folder.display());
        for file in files {
            let input = fs::read(&file).unwrap();
            if catch_unwind(|| law(&input)).is_err() {
                panic!("{} breaks a law, see above", file.display());
            }
        }
    }

    #[test]
    fn an_input_is_read_as_its_lines_and_the_rest() {
        let read = |text: &'static str| {
            let (named, rest) = super::named_and_rest(text.as_bytes());
            (named.len(), std::str::from_utf8(rest).unwrap())
        };
        assert_eq!(read("a=1\nb=2\n\n{}\n"), (2, "{}\n"));
        assert_eq!(read("{}"), (0, "{}"));
        assert_eq!(read("a=1\n{}"), (1, "{}"));
        assert_eq!(read("a=1"), (1, ""));
        assert_eq!(read("\nx=1"), (0, "x=1"));
        assert_eq!(read(""), (0, ""));
    }
}
