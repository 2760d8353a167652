//! Reads configuration files. It never checks the settings themselves: the library does.

use std::path::Path;

use kalshi_feed::ConfigBuilder;

use crate::failure::Failure;

/// The settings of a TOML file.
///
/// # Errors
/// The file cannot be read, is not TOML, or names a setting that does not exist.
pub(crate) fn read(path: &Path) -> Result<ConfigBuilder, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "config: cannot read {}: {error}; check the path and its permissions",
            path.display()
        ))
    })?;
    toml::from_str(&text).map_err(|error| Failure::usage(sentence(path, &text, &error)))
}

fn sentence(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or_default();
        format!(" line {}", before.matches('\n').count() + 1)
    });
    format!("config: {}{place}: {}", path.display(), error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_named_with_its_line() {
        let text = "url = \"wss://localhost\"\nmarkets = 5\n";
        let error = toml::from_str::<ConfigBuilder>(text).unwrap_err();
        let sentence = sentence(Path::new("feed.toml"), text, &error);
        assert!(
            sentence.starts_with("config: feed.toml line 2: unknown field `markets`"),
            "{sentence}"
        );
        assert!(!sentence.contains('\n'));
    }

    #[test]
    fn a_word_there_is_not_is_told_by_setting_line_and_choices() {
        for (written, setting, choice) in [
            ("\"adaptiv\"", "wait", "{ adaptive = { spin = \"50us\" } }"),
            ("\"drop-oldest\"", "overflow", "conflate-by-market"),
            ("{ trades = \"backpressure\" }", "overflow", "ticker, trade and orderbook"),
            ("\"first_wins\"", "arbitration", "first-wins"),
        ] {
            let text = format!("chunk = 5\n{setting} = {written}\n");
            let error = toml::from_str::<ConfigBuilder>(&text).unwrap_err();
            let sentence = sentence(Path::new("feed.toml"), &text, &error);
            let begin = format!("config: feed.toml line 2: {setting}: write ");
            assert!(sentence.starts_with(&begin) && sentence.contains(choice), "{sentence}");
        }
        assert!(toml::from_str::<ConfigBuilder>("wait = \"adaptive\"").is_ok());
    }
}
