//! A server over an engine that repeats what it is told, for tests.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use actix_web::web;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use futures::future::BoxFuture;
use reground_learner::store::{Options, Store};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::App;
use super::auth::Keyring;
use crate::answer::Answerer;
use crate::config::{AuthConfig, Config, Role};
use crate::engine::request::{Event, Finish, Token};
use crate::engine::source::golden;
use crate::engine::{
    Content, Engine, EngineError, EngineInfo, Generate, Generation, GenerationId, Place, TokenStream, Vocabulary,
};
use crate::images::ImageReader;
use crate::recorder::Recorder;
use crate::rollout::Generations;

/// An engine whose answer is the last message's text, one byte a token. What the text begins with can change that:
/// `!fail` fails after three tokens, `!refuse` is refused, `!hang` stops after three tokens until it is cancelled,
/// `!mute` does so before the first one, `!slow` waits 2 ms before each.
pub(crate) struct Echo {
    info: EngineInfo,
    /// Shared by all generations.
    pub(crate) watch: Arc<Watch>,
}

/// What the engine saw and does.
#[derive(Default)]
pub(crate) struct Watch {
    /// Every request.
    pub(crate) asked: Mutex<Vec<Generate>>,
    /// The thread that asked last.
    pub(crate) thread: Mutex<Option<ThreadId>>,
    /// Sequences inside the engine.
    pub(crate) active: AtomicUsize,
    /// Whether adapters give the base's log-probabilities; else they give lower ones.
    pub(crate) inert: AtomicBool,
    /// Whether it is being rebuilt.
    pub(crate) down: AtomicBool,
    /// Whether adapters do not load.
    pub(crate) unloadable: AtomicBool,
    /// Generations in memory, and the most that ever were at once.
    pub(crate) alive: AtomicUsize,
    pub(crate) most_alive: AtomicUsize,
    /// Milliseconds that loading takes.
    pub(crate) loading_ms: AtomicU64,
}

struct EchoGeneration {
    id: GenerationId,
    vocabulary: Arc<Vocabulary>,
    watch: Arc<Watch>,
}

impl Echo {
    pub(crate) fn new(tools: bool) -> Self {
        let vocabulary = Arc::new(Vocabulary::read(&golden("model"), None).unwrap());
        let info = EngineInfo {
            engine: "echo",
            source: "test".into(),
            family: "Echo".into(),
            device: "cpu".into(),
            dtype: "f32".into(),
            max_len: 1000,
            max_parallel: 2,
            look_ahead: 0,
            one_batch: false,
            images: true,
            image_tokens: 1,
            tools,
            vocabulary,
        };
        Self { info, watch: Arc::default() }
    }

    /// With one batch for all generations.
    pub(crate) fn with_one_batch(mut self) -> Self {
        self.info.one_batch = true;
        self
    }
}

impl Engine for Echo {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn load(
        &self,
        id: GenerationId,
        _adapter: Option<PathBuf>,
    ) -> BoxFuture<'_, Result<Arc<dyn Generation>, EngineError>> {
        let (vocabulary, watch) = (self.info.vocabulary.clone(), self.watch.clone());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(watch.loading_ms.load(Ordering::SeqCst))).await;
            if id != GenerationId::base() && watch.unloadable.load(Ordering::SeqCst) {
                return Err(EngineError::Load("this adapter does not load".into()));
            }
            let alive = watch.alive.fetch_add(1, Ordering::SeqCst) + 1;
            watch.most_alive.fetch_max(alive, Ordering::SeqCst);
            Ok(Arc::new(EchoGeneration { id, vocabulary, watch }) as Arc<dyn Generation>)
        })
    }
}

impl Drop for EchoGeneration {
    fn drop(&mut self) {
        self.watch.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Generation for EchoGeneration {
    fn id(&self) -> &GenerationId {
        &self.id
    }

    fn is_ready(&self) -> bool {
        !self.watch.down.load(Ordering::SeqCst)
    }

    fn generate(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError> {
        let last = request.messages.last().unwrap();
        let text: String = last
            .content
            .iter()
            .map(|content| match content {
                Content::Text(text) => text.as_str(),
                Content::Image(_) => "",
            })
            .collect();
        if text.starts_with("!refuse") {
            return Err(EngineError::Invalid("this model says no".into()));
        }
        if !self.is_ready() {
            return Err(EngineError::Unavailable(self.id.clone()));
        }
        let id_of = |byte: u8| (0..).find(|id| self.vocabulary.bytes(*id) == [byte]).unwrap();
        let changed = self.id != GenerationId::base() && !self.watch.inert.load(Ordering::SeqCst);
        let logprob = if changed { -0.75 } else { -0.5 };
        let top = request.top_logprobs;
        let token = |id: u32| {
            let top = (0..u32::try_from(top).unwrap()).map(|rank| ((id + rank) % 100, -0.5 - rank as f32)).collect();
            Token { id, logprob, top }
        };
        let tokens: Vec<Token> = text.bytes().map(|byte| token(id_of(byte))).collect();
        let end = token(self.vocabulary.end_of_turn()[0]);
        let most = request.max_tokens.unwrap_or(usize::MAX);
        let watch = self.watch.clone();
        watch.asked.lock().unwrap().push(request);
        *watch.thread.lock().unwrap() = Some(thread::current().id());
        watch.active.fetch_add(1, Ordering::SeqCst);
        let (stream, events) = TokenStream::channel();
        tokio::spawn(async move {
            let _place = place;
            events.send(Event::Started { prompt_tokens: 7 });
            let hangs = text.starts_with("!hang") || text.starts_with("!mute");
            let broken = if text.starts_with("!mute") { 0 } else { 3 };
            let mut sent = 0;
            for token in tokens.into_iter().chain([end]) {
                if events.is_cancelled() || sent == most {
                    break;
                }
                if text.starts_with("!fail") && sent == 3 {
                    events.send(Event::Failed(EngineError::Failed("it broke".into())));
                }
                while hangs && sent == broken && !events.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                if text.starts_with("!slow") {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                events.send(Event::Token(token));
                sent += 1;
                tokio::task::yield_now().await;
            }
            events.send(Event::Finished(if sent == most { Finish::Length } else { Finish::Stop }));
            watch.active.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(stream)
    }
}

/// An image that is taken.
pub(crate) fn data_url() -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(2, 2).write_to(&mut png, image::ImageFormat::Png).unwrap();
    format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner()))
}

/// A server for tests and the hooks of its engine.
pub(crate) struct Server {
    pub(crate) app: web::Data<App>,
    pub(crate) watch: Arc<Watch>,
    /// Cancelled when open answers must end.
    pub(crate) closing: CancellationToken,
    _keys: TempDir,
    _data: TempDir,
}

/// A server with this configuration and these keys.
pub(crate) async fn server(mut config: Config, keys: &[(&str, &str, Role)], tools: bool) -> Server {
    let (directory, auth) = auth_config(keys);
    config.auth = auth;
    let engine = Echo::new(tools);
    let watch = engine.watch.clone();
    let generations = Arc::new(Generations::start(Arc::new(engine), config.admission.clone()).await.unwrap());
    let closing = CancellationToken::new();
    let answerer = Arc::new(Answerer::new(generations.clone(), closing.clone()));
    let images = Arc::new(ImageReader::new(&config.images));
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(data.path(), Options::default()).unwrap());
    let recorder = Recorder::start(store, &config.record, String::new()).unwrap();
    let app = App::new(&config, None, generations, answerer, images, recorder, CancellationToken::new()).unwrap();
    Server { app: web::Data::new(app), watch, closing, _keys: directory, _data: data }
}

/// A server with the default configuration, no keys and a model that knows tools.
pub(crate) async fn open_server() -> Server {
    server(Config::default(), &[], true).await
}

/// A configuration with these keys, which lie in files.
pub(crate) fn auth_config(keys: &[(&str, &str, Role)]) -> (TempDir, AuthConfig) {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<_> = keys
        .iter()
        .map(|(name, key, role)| {
            let path = directory.path().join(name);
            fs_err::write(&path, key).unwrap();
            json!({"name": name, "key": format!("file:{}", path.display()), "role": role})
        })
        .collect();
    (directory, serde_json::from_value(json!({ "keys": keys })).unwrap())
}

/// These keys.
pub(crate) fn keyring(keys: &[(&str, &str, Role)]) -> Keyring {
    let (_files, config) = auth_config(keys);
    Keyring::new(&config).unwrap()
}
