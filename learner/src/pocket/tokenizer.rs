//! The pocket's tokenizer: one token for every word that the pocket writes, bytes for everything else.
//!
//! It is a byte-level BPE without merges. `ignore_merges` makes a whole pre-token that is in the vocabulary one token,
//! and without merges anything else falls into the bytes that it is made of, so any text a user types has tokens.
//! Nothing is learnt from a corpus: the vocabulary follows from [`lexicon::pieces`].

use serde_json::{Map, Value, json};

use super::text::lexicon;

/// Special tokens, in the order of their ids from 0. The names are Idefics3's.
pub const SPECIAL: [&str; 11] = [
    "<unk>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<pad>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    "<row_1_col_2>",
    "<row_2_col_1>",
    "<row_2_col_2>",
];

/// Id of the token that begins every conversation.
pub const BEGIN: u32 = 1;
/// Id of the token that ends every turn.
pub const END: u32 = 2;
/// Id of the padding token.
pub const PAD: u32 = 3;
/// Id of the placeholder that image features replace.
pub const IMAGE: u32 = 4;

/// Chat template, word for word that of SmolVLM.
pub const CHAT_TEMPLATE: &str = "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
    {% if message['content'] is not string and message['content'][0]['type']=='image' %}:{% else %}: {% endif %}\
    {% if message['content'] is string %}{{ message['content'] }}{% else %}{% for c in message['content'] %}\
    {% if c['type']=='image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n\
    {% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// The tokens in the order of their ids, written the way a byte-level vocabulary writes them.
pub fn vocabulary() -> Vec<String> {
    let special = SPECIAL.iter().map(|&token| token.to_owned());
    let bytes = byte_letters();
    let mut letters: Vec<char> = bytes.to_vec();
    letters.sort_unstable();
    let pieces = lexicon::pieces()
        .into_iter()
        .map(|piece| piece.bytes().map(|byte| bytes[usize::from(byte)]).collect::<String>());
    special
        .chain(letters.into_iter().map(String::from))
        // A word of one letter is a byte already.
        .chain(pieces.filter(|piece| piece.chars().count() > 1))
        .collect()
}

/// `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let vocabulary: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocabulary, "merges": []
        }
    })
}

/// `tokenizer_config.json`.
pub fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BEGIN as usize],
        "eos_token": SPECIAL[END as usize],
        "pad_token": SPECIAL[PAD as usize],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": super::hub::CONTEXT
    })
}

/// The printable letter that byte-level tokenizers write for each byte: itself where it is printable, else the next free
/// one from U+0100 on.
fn byte_letters() -> [char; 256] {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut letters = ['\0'; 256];
    let mut unprintable = (0x100..).filter_map(char::from_u32);
    for byte in 0..=255u8 {
        let letter = if printable(byte) { Some(char::from(byte)) } else { unprintable.next() };
        letters[usize::from(byte)] = letter.unwrap_or_default();
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::text::{Caption, Detail, Question, rewrite};
    use crate::pocket::world::{Scene, Statistics};
    use proptest::prelude::*;
    use tokenizers::Tokenizer;

    fn tokenizer() -> Tokenizer {
        tokenizer_json().to_string().parse().unwrap()
    }

    fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn special_tokens_have_their_ids() {
        let tokenizer = tokenizer();
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        }
        assert_eq!(SPECIAL[IMAGE as usize], "<image>");
        assert_eq!(tokenizer.get_vocab_size(true), vocabulary().len());
    }

    #[test]
    fn every_word_of_the_pocket_is_one_token() {
        let tokenizer = tokenizer();
        let words_and_marks = |text: &str| {
            let marks = text.matches(['.', ',', '?', ':']).count();
            text.split_whitespace().count() + marks
        };
        for index in 0..500 {
            let mut random = stream(0, "tokenizer test", index);
            let scene = Scene::sample(Statistics::Balanced, &mut random);
            let caption = Caption::of(&scene, Detail::Full, &mut random).to_string();
            let question = Question::sample(&scene, &mut random);
            for text in [
                question.text.clone(),
                format!(" {}", question.answer()),
                format!(" {caption}"),
                format!(" {}", rewrite::description_request(&caption)),
                rewrite::answer_request(&question.text, &question.answer()),
            ] {
                let found = tokens(&tokenizer, &text);
                assert_eq!(found.len(), words_and_marks(&text), "{text}: {found:?}");
            }
        }
        for request in [Detail::Full, Detail::Short].into_iter().flat_map(Detail::requests) {
            assert_eq!(tokens(&tokenizer, request).len(), words_and_marks(request), "{request}");
        }
    }

    #[test]
    fn a_conversation_begins_and_ends_with_special_tokens() {
        let text =
            "<|im_start|>User:<image>Describe the image.<end_of_utterance>\nAssistant: A cat.<end_of_utterance>\n";
        let expected = [
            "<|im_start|>",
            "User",
            ":",
            "<image>",
            "Describe",
            "Ġthe",
            "Ġimage",
            ".",
            "<end_of_utterance>",
            "Ċ",
            "Assistant",
            ":",
            "ĠA",
            "Ġcat",
            ".",
            "<end_of_utterance>",
            "Ċ",
        ];
        assert_eq!(tokens(&tokenizer(), text), expected);
    }

    proptest! {
        #[test]
        fn any_text_has_tokens_and_comes_back(text in "\\PC{0,60}") {
            prop_assume!(!SPECIAL.iter().any(|token| text.contains(token)));
            let tokenizer = tokenizer();
            let ids = tokenizer.encode(text.as_str(), false).unwrap().get_ids().to_vec();
            prop_assert!(ids.iter().all(|&id| id as usize >= SPECIAL.len()));
            prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
    }
}
