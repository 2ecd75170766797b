//! Files as a form, and preference data to put into them.

use serde_json::{Value, json};

use crate::pictures::{data_url, png};
use crate::{Client, Reply};

const BOUNDARY: &str = "-----------------------------reground-tests";

/// Uploads a file for fine-tuning.
///
/// # Errors
/// There is no complete response in time.
pub async fn upload(client: &Client, name: &str, content: &[u8]) -> anyhow::Result<Reply> {
    form(client, &[("purpose", None, b"fine-tune"), ("file", Some(name), content)]).await
}

/// Sends a form to `/v1/files`: name of the field, of the file, content.
///
/// # Errors
/// There is no complete response in time.
pub async fn form(client: &Client, fields: &[(&str, Option<&str>, &[u8])]) -> anyhow::Result<Reply> {
    let mut body = Vec::new();
    for (name, file, content) in fields {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let request = client.request(reqwest::Method::POST, "/v1/files");
    let request = request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    Client::send(request.body(body)).await
}

/// Lines of OpenAI's preference format, each about a picture of its own.
///
/// # Errors
/// Never.
pub fn preferences(count: u32) -> anyhow::Result<Vec<Value>> {
    let line = |number: u32| {
        let url = data_url("image/png", &png(64, 64, number)?);
        let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
        Ok(json!({
            "input": {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Describe the image."},
            ]}]},
            "preferred_output": answer("There is a red circle."),
            "non_preferred_output": answer("There is a blue square and a green ball."),
        }))
    };
    (0..count).map(line).collect()
}

/// Values as JSON lines.
#[must_use]
pub fn lines(values: &[Value]) -> Vec<u8> {
    values.iter().map(|value| format!("{value}\n")).collect::<String>().into_bytes()
}
