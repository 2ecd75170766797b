//! The body of a chat request: any bytes.
//!
//! Wrong is a panic, a request that breaks what its fields promise, a refusal that is not 400 or does not say much in
//! few words, and what AddressSanitizer and libFuzzer's own limits find.

#![no_main]

use libfuzzer_sys::fuzz_target;
use reground::answer::ToolChoice;
use reground::api::chat::ChatRequest;
use reground::api::chat::request::{MAX_N, parse};
use reground::api::error::ApiError;
use reground::engine::Role;

/// In bytes. The longest message names every known parameter, about 700 bytes, and repeats 80 characters of the caller's.
const LONGEST: usize = 1500;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(request) => keeps_its_promises(&request),
        Err(error) => says_enough(&error),
    }
});

fn keeps_its_promises(request: &ChatRequest) {
    let in_range = |number: f64, low: f64, high: f64| (low..=high).contains(&number);
    assert!(in_range(request.temperature, 0.0, 2.0));
    assert!(request.top_p > 0.0 && request.top_p <= 1.0);
    assert!(in_range(request.min_p, 0.0, 1.0));
    assert!(in_range(request.frequency_penalty, -2.0, 2.0));
    assert!(in_range(request.presence_penalty, -2.0, 2.0));
    assert!(request.logit_bias.iter().all(|(_, bias)| in_range(f64::from(*bias), -100.0, 100.0)));
    assert_ne!(request.max_tokens, Some(0));
    assert!((1..=MAX_N as usize).contains(&request.n));
    assert!(request.stop.len() <= 4 && request.stop.iter().all(|stop| !stop.is_empty()));
    assert!(request.top_logprobs <= 20 && (request.logprobs || request.top_logprobs == 0));
    assert!(request.stream || !request.include_usage);
    assert!(request.metadata.len() <= 16);

    assert!(request.messages.iter().any(|message| message.role == Role::User));
    for message in &request.messages {
        assert!(!message.content.is_empty() || !message.tool_calls.is_empty());
        assert_eq!(message.tool_call_id.is_some(), message.role == Role::Tool);
    }

    assert!(request.tools.len() <= 128);
    match &request.tool_choice {
        ToolChoice::Function(name) => {
            let is_it = |tool: &serde_json::Value| tool["function"]["name"] == name.as_str();
            assert!(request.tools.iter().any(is_it));
        }
        ToolChoice::Required => assert!(!request.tools.is_empty()),
        ToolChoice::Auto | ToolChoice::None => {}
    }
    assert!(request.grammar.is_none() || request.tools.is_empty() || request.tool_choice == ToolChoice::None);
}

fn says_enough(error: &ApiError) {
    assert_eq!(error.status.as_u16(), 400, "{error}");
    assert!(!error.code.is_empty() && !error.message.is_empty());
    assert!(error.message.len() <= LONGEST, "{error}");
    assert!(error.param.as_ref().is_none_or(|param| param.len() <= LONGEST), "{error}");
    assert!(serde_json::to_string(&error.body()).is_ok());
}
