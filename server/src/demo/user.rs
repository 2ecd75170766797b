//! Who asks, corrects and waits: everything over HTTP, as any client would.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use image::RgbImage;
use indicatif::ProgressBar;
use reground_learner::pocket::held_out::Example;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::Demo;
use super::world::{self, Occasion, data_url};

/// Questions under way at once.
const AT_ONCE: usize = 16;
/// How often is looked whether something happened.
const LOOK: Duration = Duration::from_millis(250);
/// Longer than any answer of the pocket.
const MAX_TOKENS: usize = 64;

/// A client of the server.
pub(super) struct User {
    client: reqwest::Client,
    base: String,
    /// Its API key, where there are keys.
    key: Option<&'static str>,
}

impl User {
    pub(super) fn new(address: SocketAddr, key: Option<&'static str>) -> Self {
        Self { client: reqwest::Client::new(), base: format!("http://{address}"), key }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        send(self.request(Method::GET, path)).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// Asks greedily; the id of the answer and its text. `record`: whether the server may learn from it.
    pub(super) async fn ask(&self, image: Option<&RgbImage>, question: &str, record: bool) -> Result<(String, String)> {
        let mut content = Vec::new();
        if let Some(image) = image {
            content.push(json!({"type": "image_url", "image_url": {"url": data_url(image)?}}));
        }
        content.push(json!({"type": "text", "text": question}));
        let mut body = json!({"model": "reground", "temperature": 0, "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": content}]});
        if !record {
            body["store"] = json!(false);
        }
        let answer = self.post("/v1/chat/completions", &body).await?;
        let text = answer["choices"][0]["message"]["content"].as_str().context("an answer without text")?;
        Ok((answer["id"].as_str().unwrap_or_default().to_owned(), text.to_owned()))
    }

    /// What each picture shows, as the server says.
    pub(super) async fn describe(&self, examples: &[Example]) -> Result<Vec<String>> {
        let ask = |example: &Example| {
            let image = example.image.clone();
            async move { Ok(self.ask(Some(&image), world::describe(), false).await?.1) }
        };
        stream::iter(examples.iter().map(ask).collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await
    }

    /// Asks on every occasion, and corrects the share of the answers that was agreed; how many those were. `liar` asks and
    /// corrects in the place of this user where the occasion is one for that.
    pub(super) async fn live(
        &self,
        liar: &Self,
        occasions: &[Occasion],
        demo: &Demo,
        bar: &ProgressBar,
    ) -> Result<usize> {
        let once = |occasion: &'_ Occasion| {
            let (image, question) = (occasion.image.clone(), occasion.question.clone());
            let corrects = occasion.lot < demo.corrected;
            let (user, correction) = if occasion.spite < demo.hostile {
                (liar, occasion.lie.clone())
            } else {
                (self, occasion.answer.clone())
            };
            async move {
                let (id, _) = user.ask(Some(&image), &question, true).await?;
                if corrects {
                    user.post("/v1/feedback", &json!({"completion_id": id, "correction": correction})).await?;
                }
                bar.inc(1);
                anyhow::Ok(usize::from(corrects))
            }
        };
        let work: Vec<_> = occasions.iter().map(once).collect();
        let corrected: Vec<usize> = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
        bar.finish_and_clear();
        Ok(corrected.iter().sum())
    }

    /// Waits until as many records have been looked at; how many pairs there are of each kind.
    pub(super) async fn pairs(&self, records: u64, bar: &ProgressBar, patience: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            let mut looked_at = 0;
            for state in ["done", "skipped"] {
                looked_at += self.count(&format!("/v1/records?bootstrap={state}")).await?;
            }
            bar.set_position(looked_at);
            if looked_at >= records {
                break;
            }
            give_up(begun, patience, "the records are looked at")?;
            tokio::time::sleep(4 * LOOK).await;
        }
        bar.finish_and_clear();
        let mut told = Vec::new();
        for kind in ["given", "image_weakened", "injected"] {
            let count = self.count(&format!("/v1/pairs?state=new&kind={kind}")).await?;
            told.push(format!("{count} {kind}"));
        }
        Ok(format!("Pairs: {}.", told.join(", ")))
    }

    /// Uploads a file to train on; its id.
    pub(super) async fn upload(&self, name: &str, content: &str) -> Result<String> {
        const BOUNDARY: &str = "reground-demo";
        let part = |head: &str, body: &str| {
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n")
        };
        let form = part("name=\"purpose\"", "fine-tune")
            + &part(&format!("name=\"file\"; filename=\"{name}\""), content)
            + &format!("--{BOUNDARY}--\r\n");
        let request = self.request(Method::POST, "/v1/files").body(form);
        let file = send(request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))).await?;
        Ok(file["id"].as_str().context("a file without id")?.to_owned())
    }

    /// Has a run made, with the pairs of a file mixed in, and waits for its end; the generation that answers then.
    pub(super) async fn train(&self, anchors: Option<&str>, bar: &ProgressBar, patience: Duration) -> Result<String> {
        let mut asked = json!({"model": "reground", "training_file": "pairs"});
        if let Some(file) = anchors {
            asked["anchors"] = json!([file]);
        }
        let job = self.post("/v1/fine_tuning/jobs", &asked).await?;
        let id = job["id"].as_str().context("a job without id")?;
        let begun = Instant::now();
        loop {
            let job = self.get(&format!("/v1/fine_tuning/jobs/{id}")).await?;
            let latest = self.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=1")).await?;
            bar.set_message(latest["data"][0]["message"].as_str().unwrap_or_default().to_owned());
            match job["status"].as_str().unwrap_or_default() {
                "succeeded" => break,
                "failed" | "cancelled" => {
                    bail!("the run ended without an adapter: {}\n{:#}", job["error"], job["gate"])
                }
                _ => {}
            }
            give_up(begun, patience, "the run ends")?;
            tokio::time::sleep(LOOK).await;
        }
        bar.finish_and_clear();
        let live = self.get("/v1/adapters").await?["route"]["live"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(live != "base", "the run succeeded and its adapter is not live");
        Ok(live)
    }

    /// How many items a list has.
    pub(super) async fn count(&self, path: &str) -> Result<u64> {
        let (mut count, mut after) = (0, String::new());
        loop {
            let page = self.get(&format!("{path}&limit=100{after}")).await?;
            count += page["data"].as_array().map_or(0, |items| items.len() as u64);
            if page["has_more"] != true {
                return Ok(count);
            }
            after = format!("&after={}", page["last_id"].as_str().unwrap_or_default());
        }
    }
}

fn give_up(begun: Instant, patience: Duration, until: &str) -> Result<()> {
    anyhow::ensure!(begun.elapsed() < patience, "it takes more than {} s until {until}", patience.as_secs());
    Ok(())
}

async fn send(request: RequestBuilder) -> Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let body: Value = response.json().await.with_context(|| format!("{status}, and no JSON"))?;
    if !status.is_success() {
        bail!("{status}: {}", body["error"]["message"].as_str().unwrap_or_default());
    }
    Ok(body)
}
