//! Connections: accepted, timed, and closed when the server stops.

use super::{AppState, router};
use crate::engine::Engine;
use crate::{Error, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_io_timeout::TimeoutStream;

/// Why a server has ended.
#[derive(Debug)]
pub enum Ended {
    /// It was stopped; the number of requests in flight that did not end in time.
    Stopped(usize),
    /// The device is lost.
    Lost,
}

/// How often the device is checked, and, while the server stops, the requests in flight.
const LOOK: Duration = Duration::from_millis(50);
/// How long clients have to read the last frames.
const LAST: Duration = Duration::from_secs(3);

/// Serves until it is stopped (`stop` counts the signals) or cannot go on. Requests are accepted once `engine` has started.
///
/// # Errors
/// The engine does not start.
pub async fn serve(
    listener: TcpListener,
    app: Arc<AppState>,
    engine: oneshot::Receiver<Result<Engine>>,
    mut stop: watch::Receiver<usize>,
) -> Result<Ended> {
    let graceful = GracefulShutdown::new();
    let service = TowerToHyperService::new(router(app.clone()));
    let places = Arc::new(Semaphore::new(app.config.limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.config.limits.arrival).max_headers(64);
    let mut loading = Some(engine);
    let mut deadline: Option<Instant> = None;
    let ended = loop {
        if app.is_lost() {
            break Ended::Lost;
        }
        if let Some(deadline) = deadline {
            let left = app.in_flight();
            if left == 0 || Instant::now() >= deadline || *stop.borrow() > 1 {
                break Ended::Stopped(left);
            }
        }
        tokio::select! {
            stream = accept(&listener, &places) => {
                let Some((stream, place)) = stream else { continue };
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(app.config.limits.write));
                let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service.clone());
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    // A client that broke off, or did not read, is not our error.
                    if let Err(error) = connection.await {
                        tracing::debug!(event = "connection ended", error = %error);
                    }
                    drop(place);
                });
            }
            loaded = loaded(&mut loading) => {
                app.ready_with(loaded?);
                tracing::info!(event = "ready");
            }
            changed = stop.changed() => {
                if changed.is_ok() && deadline.is_none() {
                    app.drain();
                    deadline = Some(Instant::now() + app.config.drain);
                    tracing::info!(event = "draining", in_flight = app.in_flight());
                }
                if changed.is_err() {
                    // The sender is gone: no stop can come any more, and polling it again would spin.
                    sleep(LOOK).await;
                }
            }
            () = sleep(LOOK) => {}
        }
    };
    drop(listener);
    // Requests still in flight get an error frame, and a moment to send it.
    app.stop_engine();
    let last = Instant::now() + LAST;
    tokio::select! {
        () = graceful.shutdown() => {}
        () = sleep_until(last) => {}
    }
    Ok(ended)
}

/// Resolves once, with the engine; pending after that.
async fn loaded(loading: &mut Option<oneshot::Receiver<Result<Engine>>>) -> Result<Engine> {
    let Some(receiver) = loading.as_mut() else { return std::future::pending().await };
    let engine = receiver.await;
    *loading = None;
    engine.unwrap_or_else(|_| Err(Error::Backend("the engine's start broke off".to_string())))
}

type ConnectionPermit = tokio::sync::OwnedSemaphorePermit;

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, ConnectionPermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Frames are small, and clients wait for each.
            let _ = stream.set_nodelay(true);
            Some((stream, place))
        }
        Err(error) => {
            // Out of file descriptors, for example: others will be closed.
            tracing::warn!(event = "no connection taken", error = %error);
            let _ = timeout(LOOK, std::future::pending::<()>()).await;
            None
        }
    }
}
