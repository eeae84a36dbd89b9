//! Which build this is.

/// The version of the package, e.g. `0.1.0`.
pub const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, 12 hexadecimal digits, or `unknown`; see `build.rs`.
pub const COMMIT: &str = env!("LONGSHORE_COMMIT");

/// Both, e.g. `0.1.0 (0123456789ab)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LONGSHORE_COMMIT"), ")");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_number_and_commit() {
        assert_eq!(VERSION, format!("{NUMBER} ({COMMIT})"));
        assert!(
            !COMMIT.is_empty()
                && COMMIT.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        );
    }
}
