//! From a conversation to prompt ids.

use crate::files::chat::{Conversation, Message, is_space};
use crate::files::pair::Pair;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A prompt, ready to be decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// Ids of the assistant header, where the policy writes it itself ([`PromptLayout::Official`]).
    pub header: Vec<u32>,
    /// Offset of the first segment's slot.
    pub first_offset: usize,
    /// The beginning of the answer that `ids` end with.
    pub prefill: String,
    /// What was asked in words: the last message, or the text that was encoded. `None` if ids were given.
    pub text: Option<String>,
}

/// How a prompt is laid out. As text: `chat` or `official`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptLayout {
    /// The chat template with its generation prompt, as chat servers do.
    #[default]
    Chat,
    /// Without the generation prompt, as the official code does: the policy writes the assistant header itself.
    Official,
}

impl PromptLayout {
    /// Both.
    pub const ALL: [PromptLayout; 2] = [PromptLayout::Chat, PromptLayout::Official];

    /// As text.
    pub fn name(self) -> &'static str {
        match self {
            PromptLayout::Chat => "chat",
            PromptLayout::Official => "official",
        }
    }
}

impl FromStr for PromptLayout {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = PromptLayout::ALL.into_iter().find(|layout| layout.name() == text);
        found.ok_or_else(|| "expected chat or official".to_string())
    }
}

/// Where the official code forces the first nudge token: behind the four ids of a Llama 3 header, whatever the header is.
const OFFICIAL_OFFSET: usize = 4;

/// What stands behind a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// An answer, of which the beginning may be given.
    Answer {
        /// How it is opened. A given beginning stands behind the assistant header, so both layouts are then the same.
        layout: PromptLayout,
        /// The beginning of the answer.
        prefill: &'a str,
    },
    /// Nothing: the conversation is a text to be read.
    Nothing,
    /// More of the last message.
    Continued,
}

impl Default for Next<'_> {
    fn default() -> Self {
        Next::Answer { layout: PromptLayout::Chat, prefill: "" }
    }
}

/// What only a chat template can lay out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// More than one message.
    Messages,
    /// A system message.
    System,
    /// The official layout.
    Official,
}

/// Why a conversation cannot be laid out.
#[derive(Debug)]
pub enum LayoutError {
    /// The policy has no chat template.
    NoTemplate(Wants),
    /// The template's generation prompt changes what is before it, so that the assistant header has no ids of its own.
    NoHeader,
    /// The template changes the text of the message that is to be continued.
    NotContinued,
    /// The template refuses the conversation.
    Template(Error),
    /// The text cannot be encoded.
    Tokenizer(Error),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::NoTemplate(Wants::Messages) => {
                f.write_str("a conversation of several messages: the policy has no chat template")
            }
            LayoutError::NoTemplate(_) => f.write_str("the policy has no chat template"),
            LayoutError::NoHeader => f.write_str(
                "this template's generation prompt changes the prompt before it, so the assistant header has no ids of its own",
            ),
            LayoutError::NotContinued => f.write_str("the chat template changes the last message's text"),
            LayoutError::Template(error) | LayoutError::Tokenizer(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LayoutError {}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Error {
        match error {
            LayoutError::Template(error) | LayoutError::Tokenizer(error) => error,
            error => Error::invalid(error.to_string()),
        }
    }
}

type Laid<T> = std::result::Result<T, LayoutError>;

impl Prompt {
    /// A user's message, as the pair's chat template lays it out; the bare text where there is no template.
    ///
    /// # Errors
    /// The template refuses it, or it cannot be encoded.
    pub fn of_message(pair: &Pair, message: &str) -> Laid<Prompt> {
        let message = Message { role: "user".to_string(), content: message.to_string() };
        Prompt::of_messages(pair, None, &[message], Next::default())
    }

    /// A conversation, behind a system message if there is one.
    ///
    /// # Errors
    /// It needs a chat template and there is none, the template refuses it or has no way to open the answer as asked, or
    /// the text cannot be encoded.
    pub fn of_messages(pair: &Pair, system: Option<&str>, messages: &[Message], next: Next<'_>) -> Laid<Prompt> {
        let text = messages.last().map(|message| message.content.clone()).unwrap_or_default();
        let Some(template) = pair.chat() else {
            let wants = match next {
                _ if messages.len() > 1 => Some(Wants::Messages),
                _ if system.is_some() => Some(Wants::System),
                Next::Answer { layout: PromptLayout::Official, .. } => Some(Wants::Official),
                _ => None,
            };
            return match wants {
                Some(wants) => Err(LayoutError::NoTemplate(wants)),
                None => bare(pair, text, next),
            };
        };
        let system = system.map(|content| Message { role: "system".to_string(), content: content.to_string() });
        let all: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
        let laid = rendered((pair, pair.longest), &text, next, &|generation_prompt, tail| {
            if tail.is_empty() {
                return template.render(&all, generation_prompt);
            }
            let mut all = all.clone();
            if let Some(last) = all.last_mut() {
                last.content += tail;
            }
            template.render(&all, generation_prompt)
        })?;
        Ok(Prompt { text: Some(text), ..laid })
    }

    /// A conversation as a server has it. It needs a chat template.
    ///
    /// # Errors
    /// As [`of_messages`](Self::of_messages), the last message cannot be continued, or there are more than `most` tokens.
    pub fn of_conversation(pair: &Pair, conversation: &Conversation<'_>, next: Next<'_>, most: usize) -> Laid<Prompt> {
        let template = pair.chat().ok_or(LayoutError::NoTemplate(Wants::Messages))?;
        let last = conversation.messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
        rendered((pair, most), last, next, &|generation_prompt, tail| {
            if tail.is_empty() {
                return template.render_conversation(conversation, generation_prompt);
            }
            let mut messages = conversation.messages.to_vec();
            if let Some(content) = messages.last_mut().and_then(|message| message.get_mut("content")) {
                *content = format!("{}{tail}", content.as_str().unwrap_or_default()).into();
            }
            let conversation = Conversation { messages: &messages, ..*conversation };
            template.render_conversation(&conversation, generation_prompt)
        })
    }

    /// A text that stands by itself, with the tokenizer's special tokens around it (the beginning of sequence), or without.
    ///
    /// # Errors
    /// The tokenizer's own, or there are more than `most` tokens.
    pub fn of_text(pair: &Pair, text: &str, special_tokens: bool, most: usize) -> Result<Prompt> {
        let ids = pair.tokenizer.encode_at_most(text, most)?;
        let ids = if special_tokens { pair.tokenizer.with_special_tokens(ids) } else { ids };
        Ok(Prompt { text: Some(text.to_string()), ..Prompt::of_ids(ids) })
    }

    /// Ids as they are.
    pub fn of_ids(ids: Vec<u32>) -> Prompt {
        Prompt { ids, ..Prompt::default() }
    }
}

fn encode((pair, most): (&Pair, usize), text: &str) -> Laid<Vec<u32>> {
    pair.tokenizer.encode_at_most(text, most).map_err(LayoutError::Tokenizer)
}

/// A message without a template: a text that stands by itself.
fn bare(pair: &Pair, text: String, next: Next<'_>) -> Laid<Prompt> {
    let prefill = match next {
        Next::Answer { prefill, .. } => prefill,
        _ => "",
    };
    let ids = encode((pair, pair.longest), &format!("{text}{prefill}"))?;
    let ids = pair.tokenizer.with_special_tokens(ids);
    Ok(Prompt { ids, prefill: prefill.to_string(), text: Some(text), ..Prompt::default() })
}

/// Stands behind a message that is continued, to be found in the rendered text.
const MARK: &str = "MESSAGE_GOES_ON_HERE";

/// A conversation that `render` writes with or without the generation prompt, and with a tail behind the last message's text,
/// which is `last`. The pair stands with the most tokens that the prompt may have.
fn rendered(
    pair: (&Pair, usize),
    last: &str,
    next: Next<'_>,
    render: &dyn Fn(bool, &str) -> Result<String>,
) -> Laid<Prompt> {
    let render_tail = |tail: &str| render(false, tail).map_err(LayoutError::Template);
    let render = |generation_prompt| render(generation_prompt, "").map_err(LayoutError::Template);
    match next {
        Next::Nothing => Ok(Prompt::of_ids(encode(pair, &render(false)?)?)),
        Next::Continued => {
            // The way of transformers: the message's own text may stand anywhere in the rendered one, a mark only where it was put.
            let (plain, mut mark) = (render(false)?, MARK.to_string());
            while plain.contains(&mark) {
                mark += "_";
            }
            let text = render_tail(&format!("{mark} "))?;
            // A template that leaves out a part of the message would go on with another one.
            let whole = text.contains(last.trim_matches(is_space));
            let at = text.rfind(&mark).filter(|_| whole).ok_or(LayoutError::NotContinued)?;
            let (kept, rest) = text.split_at(at);
            // A template that took the blank behind the mark would have taken the white space in front of it.
            let kept = if rest[mark.len()..].starts_with(' ') { kept } else { kept.trim_end_matches(is_space) };
            Ok(Prompt::of_ids(encode(pair, kept)?))
        }
        Next::Answer { layout: PromptLayout::Official, prefill: "" } => {
            let opened = render(true)?;
            let (ids, opened) = (encode(pair, &render(false)?)?, encode(pair, &opened)?);
            let header = opened.strip_prefix(&ids[..]).ok_or(LayoutError::NoHeader)?.to_vec();
            Ok(Prompt { ids, header, first_offset: OFFICIAL_OFFSET, ..Prompt::default() })
        }
        Next::Answer { prefill, .. } => {
            let ids = encode(pair, &format!("{}{prefill}", render(true)?))?;
            Ok(Prompt { ids, prefill: prefill.to_string(), ..Prompt::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::demo;
    use serde_json::{Map, json};

    fn pair() -> Pair {
        Pair::load(&demo::policy(), &demo::reward()).unwrap()
    }

    #[test]
    fn both_kinds_of_conversation_are_laid_out_alike() {
        let pair = pair();
        let laid = Prompt::of_message(&pair, "Tell me a story.").unwrap();
        let messages = [json!({ "role": "user", "content": "Tell me a story." })];
        let variables = Map::new();
        let conversation = Conversation { messages: &messages, tools: None, variables: &variables };
        let other = Prompt::of_conversation(&pair, &conversation, Next::default(), usize::MAX).unwrap();
        assert_eq!((&laid.ids, laid.header.len()), (&other.ids, 0));
        assert_eq!(laid.text.as_deref(), Some("Tell me a story."));
        let official = Next::Answer { layout: PromptLayout::Official, prefill: "" };
        let official = Prompt::of_conversation(&pair, &conversation, official, usize::MAX).unwrap();
        assert_eq!((laid.first_offset, official.first_offset), (0, 4));
        assert_eq!([official.ids, official.header].concat(), laid.ids);
    }

    #[test]
    fn a_given_beginning_makes_the_layouts_the_same() {
        let pair = pair();
        let message = [Message { role: "user".to_string(), content: "Hi.".to_string() }];
        let laid = PromptLayout::ALL.map(|layout| {
            Prompt::of_messages(&pair, None, &message, Next::Answer { layout, prefill: "Once" }).unwrap()
        });
        assert_eq!(laid[0], laid[1]);
        assert_eq!(laid[0].prefill, "Once");
        assert!(pair.tokenizer.decode(&laid[0].ids).unwrap().ends_with("Once"));
    }

    #[test]
    fn what_needs_a_template_is_refused_without_one() {
        let mut pair = pair();
        pair.policy.as_mut().unwrap().chat = None;
        let user = Message { role: "user".to_string(), content: "Hi.".to_string() };
        let official = Next::Answer { layout: PromptLayout::Official, prefill: "" };
        let twice = [user.clone(), user.clone()];
        for (system, messages, next, wants) in [
            (None, &twice[..], Next::default(), Wants::Messages),
            (Some("Be brief."), &twice[..1], Next::default(), Wants::System),
            (None, &twice[..1], official, Wants::Official),
        ] {
            let refused = Prompt::of_messages(&pair, system, messages, next);
            assert!(matches!(refused, Err(LayoutError::NoTemplate(found)) if found == wants), "{wants:?}");
        }
        let bare = Prompt::of_messages(&pair, None, &twice[..1], Next::default()).unwrap();
        assert_eq!(bare.ids, pair.tokenizer.encode_text("Hi.").unwrap());
        let (begin, rest) = bare.ids.split_first().unwrap();
        assert_eq!(pair.tokenizer.token(*begin).as_deref(), Some("<|begin_of_text|>"));
        assert_eq!(rest, pair.tokenizer.encode("Hi.").unwrap());
        // A conversation as a server has it is refused, of one message too.
        let (message, variables) = ([json!({ "role": "user", "content": "Hi." })], Map::new());
        let conversation = Conversation { messages: &message, tools: None, variables: &variables };
        let refused = Prompt::of_conversation(&pair, &conversation, Next::default(), usize::MAX);
        assert!(matches!(refused, Err(LayoutError::NoTemplate(Wants::Messages))));
    }
}
