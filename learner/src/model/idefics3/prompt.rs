//! The text that stands for an image in the prompt.

const BORDER: &str = "<fake_token_around_image>";
const GLOBAL: &str = "<global-img>";
/// What the chat template writes for an image.
pub(super) const PLACEHOLDER: &str = "<image>";

/// Placeholders with their borders for an image of `rows × columns` tiles and the whole image, or of the whole image alone
/// when it is not split. `tokens` placeholders a tile.
pub(super) fn image_text(rows: usize, columns: usize, tokens: usize) -> String {
    let tile = PLACEHOLDER.repeat(tokens);
    let whole = format!("{BORDER}{GLOBAL}{tile}{BORDER}");
    if rows == 0 && columns == 0 {
        return whole;
    }
    let mut text = String::new();
    for row in 1..=rows {
        for column in 1..=columns {
            text.push_str(&format!("{BORDER}<row_{row}_col_{column}>{tile}"));
        }
        text.push('\n');
    }
    format!("{text}\n{whole}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_split() {
        assert_eq!(
            image_text(0, 0, 2),
            "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
        );
        assert_eq!(
            image_text(1, 2, 1),
            "<fake_token_around_image><row_1_col_1><image><fake_token_around_image><row_1_col_2><image>\n\n\
             <fake_token_around_image><global-img><image><fake_token_around_image>"
        );
    }
}
