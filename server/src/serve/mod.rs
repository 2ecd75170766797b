//! Starting and stopping the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App as ActixApp, HttpServer, web};
use anyhow::Context;
use reground_learner::bpo::launch::{POCKET, digest};
use reground_learner::model::{Model, Source};
use reground_learner::pocket::shipped;
use reground_learner::store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::answer::{Answerer, BackgroundGenerator, ShadowTask};
use crate::api;
use crate::bootstrapper::{Bootstrapper, Models};
use crate::config::{Config, EngineKind, Isq, ModelConfig};
use crate::engine::Engine;
use crate::engine::native::NativeEngine;
use crate::engine::source::{BUILTIN, ModelFiles};
use crate::images::ImageReader;
use crate::recorder::Recorder;
use crate::rollout::Generations;
use crate::runs::{Base, Program, Runs};
use crate::watch::WatchTask;

/// How long an idle connection stays open: longer than load balancers keep theirs, so that they close first.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// A server that runs. Dropping it ends the making of pairs and nothing else; [`Running::stop`] stops it.
pub struct Running {
    address: SocketAddr,
    generations: Arc<Generations>,
    recorder: Arc<Recorder>,
    bootstrapper: Bootstrapper,
    watch: WatchTask,
    shadow: ShadowTask,
    runs: Arc<Runs>,
    handle: actix_web::dev::ServerHandle,
    /// Cancelled when no new request is taken any more.
    stopping: CancellationToken,
    /// Cancelled when open answers must end.
    closing: CancellationToken,
    deadline: Duration,
    server: JoinHandle<std::io::Result<()>>,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves.
    #[must_use]
    pub fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    /// What it writes down, and where.
    #[must_use]
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Takes no new connections, lets open answers finish until the deadline, then ends them with a proper last event.
    ///
    /// # Errors
    /// The server failed while it ran.
    pub async fn stop(self) -> anyhow::Result<()> {
        info!("Stopping: open answers get {} s.", self.deadline.as_secs());
        self.stopping.cancel();
        let (runs, bootstrapper, watch, shadow) = (self.runs.clone(), self.bootstrapper, self.watch, self.shadow);
        let saved =
            tokio::spawn(async move { tokio::join!(runs.stop(), bootstrapper.stop(), watch.stop(), shadow.stop()) });
        let closing = self.closing.clone();
        let deadline = self.deadline;
        let stopping = self.handle.stop(true);
        let watchdog = async {
            tokio::time::sleep(deadline).await;
            closing.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stopping => {}
            () = watchdog => {}
        }
        let served = self.server.await.context("the server panicked")?.context("the server failed");
        saved.await.context("the runs panicked")?;
        let recorder = self.recorder;
        tokio::task::spawn_blocking(move || recorder.close()).await.context("the recorder panicked")?;
        served
    }

    /// Waits until SIGTERM or Ctrl-C, then stops.
    ///
    /// # Errors
    /// The server failed.
    pub async fn until_signal(mut self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            result = tokio::signal::ctrl_c() => result?,
            result = &mut self.server => return result.context("the server panicked")?.context("the server failed"),
        }
        self.stop().await
    }
}

/// Loads the model and listens. It answers once this returns.
///
/// # Errors
/// The model cannot be loaded, a key cannot be read, or the address cannot be bound.
pub async fn start(mut config: Config) -> anyhow::Result<Running> {
    let recorder = recorder(&config).await?;
    let files = ModelFiles::open(&config.model.source, &config.model.revision).await?;
    let checkpoint = checkpoint(&files)?;
    let digest = tokio::task::spawn_blocking({
        let (directory, is_builtin) = (files.directory.clone(), files.source == BUILTIN);
        move || digest(&if is_builtin { shipped::source() } else { Source::directory(directory) })
    });
    let source = files.source.clone();
    let is_native = is_native(&config.model, &files)?;
    if config.train.enabled && !Model::knows(&files.model_type()?) {
        tracing::warn!("Nothing is trained: {} is of a family that is served and not trained here.", files.source);
        config.train.enabled = false;
    }
    if config.train.enabled && !is_native && files.splits_images()? {
        tracing::warn!(
            "Nothing is trained: mistralrs serves images of {} whole, and runs would train on tiles of them. Set do_image_splitting to \
             false in its preprocessor_config.json, or leave `model.engine` at `auto`.",
            files.source
        );
        config.train.enabled = false;
    }
    let engine = engine(&config, files, is_native)?;
    let generations = Arc::new(Generations::start(engine, config.admission.clone()).await?);
    let digest = digest.await.context("the thread that read the model's files is gone")?;
    let digest =
        digest.inspect_err(|error| tracing::warn!(%error, "It is not seen whether adapters belong to the model.")).ok();
    let base = Base { checkpoint, source, digest: digest.clone() };
    let (stopping, closing) = (CancellationToken::new(), CancellationToken::new());
    let answerer = Arc::new(Answerer::new(generations.clone(), closing.clone()));
    let images = Arc::new(ImageReader::new(&config.images));
    let app = api::App::new(
        &config,
        digest,
        generations.clone(),
        answerer,
        images.clone(),
        recorder.clone(),
        stopping.clone(),
    )?;
    app.rollout.restore().await?;
    let store = recorder.store().clone();
    let served = Arc::new(BackgroundGenerator::new(generations.clone()));
    let watch = WatchTask::start(app.watcher.clone(), served.clone(), images.clone());
    let shadow = app.answerer.shadow().start();
    let models = Models::new(served, &generations, &config).await?;
    let bootstrapper = Bootstrapper::start(store.clone(), models, images, &config.bootstrap);
    let runs = Arc::new(Runs::start(store, app.rollout.clone(), &config, base, Program::this()?));
    let app = web::Data::new(app.with_runs(runs.clone()));

    let server = HttpServer::new(move || ActixApp::new().configure(api::configure(app.clone())))
        .disable_signals()
        .keep_alive(KEEP_ALIVE)
        // A token is a small packet: without this it waits 40 ms for the client's acknowledgement of the one before.
        .tcp_nodelay(true)
        // Only then does actix drop a request whose client left before the first byte of the answer.
        .h1_allow_half_closed(false)
        .shutdown_timeout(config.server.shutdown_deadline_s + 5)
        .bind((config.server.bind, config.server.port))
        .with_context(|| format!("cannot listen on {}:{}", config.server.bind, config.server.port))?;
    let address = *server.addrs().first().context("the server has no address")?;
    let server = server.run();
    Ok(Running {
        address,
        generations,
        recorder,
        bootstrapper,
        watch,
        shadow,
        runs,
        handle: server.handle(),
        stopping,
        closing,
        deadline: Duration::from_secs(config.server.shutdown_deadline_s),
        server: tokio::spawn(server),
    })
}

/// Opens the store before anything large is loaded: a directory in use is found at once.
async fn recorder(config: &Config) -> anyhow::Result<Arc<Recorder>> {
    let options = config.data.options();
    let directory = config.data.dir.clone();
    let store = tokio::task::spawn_blocking(move || Store::open(directory, options))
        .await
        .context("the thread that opened the store is gone")?
        .context("`data.dir` names the directory")?;
    let digest = blake3::hash(config.to_toml()?.as_bytes()).to_hex().to_string();
    Recorder::start(Arc::new(store), &config.record, digest)
}

/// How runs name the model that is served.
fn checkpoint(files: &ModelFiles) -> anyhow::Result<String> {
    if files.source == BUILTIN {
        return Ok(POCKET.to_owned());
    }
    Ok(files.directory.to_str().context("the model's directory has a name that is no UTF-8")?.to_owned())
}

/// Whether the native engine can hold weights as `model.isq` says.
fn native_can_hold(model: &ModelConfig) -> anyhow::Result<bool> {
    let is_cpu = || Ok(model.device.open().with_context(|| format!("model.device = {}", model.device))?.is_cpu());
    if model.isq == Isq::Off { Ok(true) } else { is_cpu() }
}

fn is_native(model: &ModelConfig, files: &ModelFiles) -> anyhow::Result<bool> {
    Ok(match model.engine {
        EngineKind::Native => true,
        EngineKind::Mistralrs => false,
        EngineKind::Auto => Model::knows(&files.model_type()?) && native_can_hold(model)?,
    })
}

fn engine(config: &Config, files: ModelFiles, is_native: bool) -> anyhow::Result<Arc<dyn Engine>> {
    if is_native {
        return Ok(Arc::new(NativeEngine::new(&config.model, files)?));
    }
    if config.model.isq != Isq::Off && !config.model.adapter_root.as_os_str().is_empty() {
        anyhow::bail!(
            "`model.adapter_root` must be empty: {} is served by mistralrs, whose quantised layers (`model.isq`) take no adapter",
            files.source
        );
    }
    mistralrs(config, files)
}

#[cfg(feature = "mistralrs")]
fn mistralrs(config: &Config, files: ModelFiles) -> anyhow::Result<Arc<dyn Engine>> {
    Ok(Arc::new(crate::engine::mistralrs::MistralrsEngine::new(&config.model, files)?))
}

#[cfg(not(feature = "mistralrs"))]
fn mistralrs(_: &Config, files: ModelFiles) -> anyhow::Result<Arc<dyn Engine>> {
    anyhow::bail!("{} needs mistralrs, and this build was made without that feature", files.source)
}

/// Serves until a signal comes: what `reground serve` does.
///
/// # Errors
/// See [`start`] and [`Running::until_signal`].
pub async fn run(config: Config) -> anyhow::Result<()> {
    let name = config.model.name.clone();
    let running = start(config).await?;
    let address = running.address();
    let info = running.generations().info();
    println!("reground listens on http://{address}");
    println!("It serves {} ({}, {} on {}) as model `{name}`. Try:", info.source, info.family, info.engine, info.device);
    println!("  curl http://{address}/v1/chat/completions -H 'content-type: application/json' \\");
    println!("    -d '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'");
    running.until_signal().await
}

#[cfg(test)]
#[cfg(feature = "mistralrs")]
mod tests;
