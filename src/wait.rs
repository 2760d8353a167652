//! What a shard does when nothing is ready, and how that is written in a configuration file. The
//! waiting itself is `thread`'s.

use std::time::Duration;

use serde::Deserialize;

/// What a shard does when nothing is ready.
///
/// ```
/// use std::time::Duration;
/// use kalshi_feed::{Config, Wait};
/// let wait = Wait::Adaptive { spin: Duration::from_micros(80) };
/// let config = Config::builder().wait(wait).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub enum Wait {
    /// Sleep in the kernel until a socket is ready: no CPU when idle.
    #[default]
    Block,
    /// Never sleep: lowest latency, one whole core each.
    Spin,
    /// Spin this long after the last work, then sleep.
    Adaptive {
        /// How long.
        spin: Duration,
    },
}

impl Wait {
    /// `Adaptive` with the time it has where none is said, 50 us.
    pub const ADAPTIVE: Self = Self::Adaptive { spin: Duration::from_micros(50) };
}

/// In a file: one word, or a table with the time.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "wait: write \"block\", \"spin\", \"adaptive\" or \
                 { adaptive = { spin = \"50us\" } }"
)]
enum Written {
    Word(Word),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Block,
    Spin,
    Adaptive,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    adaptive: Adaptive,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adaptive {
    #[serde(with = "humantime_serde")]
    spin: Duration,
}

impl From<Written> for Wait {
    fn from(written: Written) -> Self {
        match written {
            Written::Word(Word::Block) => Self::Block,
            Written::Word(Word::Spin) => Self::Spin,
            Written::Word(Word::Adaptive) => Self::ADAPTIVE,
            Written::Table(Table { adaptive: Adaptive { spin } }) => Self::Adaptive { spin },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j8_a_wait_is_a_word_or_a_table_and_anything_else_is_told_what_there_is() {
        let read = |text: &str| serde_json::from_str::<Wait>(text).map_err(|e| e.to_string());
        let words = ["\"block\"", "\"spin\"", "\"adaptive\""];
        assert_eq!(words.map(read), [Ok(Wait::Block), Ok(Wait::Spin), Ok(Wait::ADAPTIVE)]);
        let spin = Duration::from_micros(80);
        assert_eq!(read(r#"{"adaptive":{"spin":"80us"}}"#), Ok(Wait::Adaptive { spin }));
        for wrong in ["\"adaptiv\"", "7", r#"{"adaptive":{"spin":"soon"}}"#, r#"{"adaptive":{}}"#] {
            let told = read(wrong).unwrap_err();
            assert!(told.starts_with("wait: write \"block\", \"spin\", \"adaptive\" or"), "{told}");
        }
    }
}
