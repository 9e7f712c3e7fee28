//! `/tokenize` and `/detokenize`, as vLLM has them.

use super::error::ApiError;
use super::fields::{Fields, token_ids};
use super::prompt::{Chat, Length, special_tokens_of_texts};
use super::{AppState, body};
use crate::text::{Prompt, PromptLayout};
use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};
use std::sync::Arc;

/// `/tokenize`: a text or a conversation to ids.
pub(super) async fn tokenize(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app, request).await?;
    let encoding = body::encoding(&app, &bytes).await;
    body::aside(move || {
        let _encoding = encoding;
        let mut fields = Fields::parse(&bytes)?;
        if let Some(name) = fields.text("model")? {
            app.check_model(&name)?;
        }
        let strings = fields.flag("return_token_strs")?.unwrap_or(false);
        let length = Length::read(&mut fields, app.context, app.context)?.counted();
        if fields.has("prompt") && fields.has("messages") {
            return Err(ApiError::field("messages", "and `prompt` exclude each other"));
        }
        let ids = match fields.text("prompt")? {
            Some(text) => {
                let special_tokens = special_tokens_of_texts(&mut fields)?;
                length.cut(Prompt::of_text(&app.pair, &text, special_tokens, length.most)?).ids
            }
            None => {
                let chat = Chat::read(&mut fields, app.config.limits.messages)?;
                chat.lay_out(&app.pair, PromptLayout::Chat, length)?.ids
            }
        };
        let spelled = |id: &u32| app.pair.tokenizer.token(*id);
        let strings: Option<Vec<Option<String>>> = strings.then(|| ids.iter().map(spelled).collect());
        let (count, context) = (ids.len(), app.context);
        Ok(Json(json!({ "count": count, "max_model_len": context, "tokens": ids, "token_strs": strings })))
    })
    .await
}

/// `/detokenize`: ids to a text.
pub(super) async fn detokenize(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app, request).await?;
    let encoding = body::encoding(&app, &bytes).await;
    body::aside(move || {
        let _encoding = encoding;
        let mut fields = Fields::parse(&bytes)?;
        if let Some(name) = fields.text("model")? {
            app.check_model(&name)?;
        }
        let ids = fields.get("tokens", "a list of token ids", token_ids)?;
        let ids = ids.ok_or_else(|| ApiError::field("tokens", "is missing"))?;
        let policy = app.pair.policy().map(|policy| &policy.config);
        let vocab = policy.or_else(|_| app.pair.reward().map(|reward| &reward.config))?.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ApiError::field("tokens", format!("names id {id}, but there are only {vocab} ids")));
        }
        Ok(Json(json!({ "prompt": app.pair.tokenizer.decode(&ids)? })))
    })
    .await
}
