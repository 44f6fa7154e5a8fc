//! Notifiers and bundle publishers: who is told of the server's own bundle, and when (pkg/server/ca/manager: notify;
//! pkg/server/bundle/pubmanager).
//!
//! Each plugin is followed by a task of its own and each call is bounded, so that one that hangs holds up neither the
//! others nor the bundle. A plugin that is slow gets the newest bundle next and not each one between, as from the
//! reference's channel of one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use spire_core::spiffe::Bundle;
use spire_ports::plugins::{BundlePublisher, Notifier, Result};
use tokio::sync::watch;

/// How long a plugin may take for one call. The reference waits without end; what a notifier does (an update of a
/// ConfigMap or an object in a store) takes a second, and clients of clouds give up after a minute.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often publishers are called even if nothing changed (pkg/server/bundle/pubmanager: refreshInterval).
const PUBLISH: Duration = Duration::from_secs(30);

/// The newest bundle and its changes.
pub(super) type Changes = watch::Receiver<Option<Arc<Bundle>>>;

/// Tells every notifier that the bundle is loaded, all at once, and waits for them.
///
/// # Errors
/// What the notifiers said that failed, a line each.
pub(super) async fn announce(
    notifiers: &[Arc<dyn Notifier>],
    bundle: &Bundle,
) -> std::result::Result<(), String> {
    let calls = notifiers.iter().map(|notifier| async {
        let told = bounded(notifier.bundle_loaded(bundle)).await;
        match &told {
            Ok(()) => handled(&**notifier, LOADED),
            Err(error) => tracing::error!(
                subsystem_name = SUBSYSTEM,
                notifier = notifier.name(),
                event = LOADED,
                error,
                "Notifier failed to handle event"
            ),
        }
        told
    });
    let errors: Vec<String> =
        join_all(calls).await.into_iter().filter_map(std::result::Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// Tells a notifier of each change, until the bundle's owner is gone.
pub(super) async fn notify(notifier: Arc<dyn Notifier>, mut changes: Changes) {
    while changes.changed().await.is_ok() {
        let Some(bundle) = changes.borrow_and_update().clone() else { continue };
        match bounded(notifier.bundle_updated(&bundle)).await {
            Ok(()) => handled(&*notifier, UPDATED),
            Err(error) => tracing::warn!(
                subsystem_name = SUBSYSTEM,
                notifier = notifier.name(),
                event = UPDATED,
                error,
                "Notifier failed to handle event"
            ),
        }
    }
}

/// Has a publisher publish the bundle now, at each change, and once in a while for a place that lost it.
pub(super) async fn publish(publisher: Arc<dyn BundlePublisher>, mut changes: Changes) {
    loop {
        let bundle = changes.borrow_and_update().clone();
        if let Some(bundle) = bundle
            && let Err(error) = bounded(publisher.publish(&bundle)).await
        {
            tracing::error!(
                subsystem_name = "bundle_publishing",
                BundlePublisher = publisher.name(),
                error,
                "Failed to publish bundle"
            );
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PUBLISH) => {}
        }
    }
}

const SUBSYSTEM: &str = "ca_manager";
const LOADED: &str = "bundle loaded";
const UPDATED: &str = "bundle updated";

fn handled(notifier: &dyn Notifier, event: &str) {
    tracing::debug!(subsystem_name = SUBSYSTEM, notifier = notifier.name(), event, "Notifier handled event");
}

async fn bounded<T>(call: impl Future<Output = Result<T>>) -> std::result::Result<T, String> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} seconds", CALL_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use spire_core::spiffe::TrustDomain;
    use spire_ports::plugins::{Error, ErrorKind, PluginType};
    use tokio::sync::mpsc;

    use super::*;

    /// Says what it is told; hangs or fails where it is meant to.
    struct Told {
        name: &'static str,
        told: mpsc::Sender<(&'static str, u64)>,
        hangs: bool,
        fails: bool,
    }

    impl Told {
        async fn hear(&self, bundle: &Bundle) -> Result<()> {
            self.told.send((self.name, bundle.sequence_number)).await.unwrap();
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if self.fails {
                return Err(Error::new(ErrorKind::Unknown, (PluginType::Notifier, self.name), "boom"));
            }
            Ok(())
        }
    }

    #[async_trait]
    impl Notifier for Told {
        fn name(&self) -> &str {
            self.name
        }

        async fn bundle_loaded(&self, bundle: &Bundle) -> Result<()> {
            self.hear(bundle).await
        }

        async fn bundle_updated(&self, bundle: &Bundle) -> Result<()> {
            self.hear(bundle).await
        }
    }

    #[async_trait]
    impl BundlePublisher for Told {
        fn name(&self) -> &str {
            self.name
        }

        async fn publish(&self, bundle: &Bundle) -> Result<bool> {
            self.hear(bundle).await.map(|()| true)
        }
    }

    fn bundle(sequence_number: u64) -> Arc<Bundle> {
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        bundle.sequence_number = sequence_number;
        Arc::new(bundle)
    }

    fn plugins(hangs: bool) -> (Vec<Arc<Told>>, mpsc::Receiver<(&'static str, u64)>) {
        let (told, heard) = mpsc::channel(64);
        let plugin = |name, hangs, fails| Arc::new(Told { name, told: told.clone(), hangs, fails });
        (vec![plugin("a", hangs, false), plugin("b", false, true), plugin("c", false, false)], heard)
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_all_and_tells_who_failed() {
        let (told, mut heard) = plugins(true);
        let notifiers: Vec<Arc<dyn Notifier>> = told.into_iter().map(|n| n as Arc<dyn Notifier>).collect();
        let error = announce(&notifiers, &bundle(1)).await.unwrap_err();
        assert_eq!(error, "no answer within 60 seconds\nnotifier(b): boom");
        let mut all =
            vec![heard.recv().await.unwrap(), heard.recv().await.unwrap(), heard.recv().await.unwrap()];
        all.sort_unstable();
        assert_eq!(all, [("a", 1), ("b", 1), ("c", 1)]);
        let (well, _heard) = plugins(false);
        let only: [Arc<dyn Notifier>; 1] = [well[2].clone()];
        assert_eq!(announce(&only, &bundle(1)).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_notifier_holds_up_nobody() {
        let (told, mut heard) = plugins(true);
        let (sender, mut changes) = watch::channel(Some(bundle(1)));
        changes.mark_unchanged();
        let mut tasks = tokio::task::JoinSet::new();
        for notifier in told {
            tasks.spawn(notify(notifier, changes.clone()));
        }
        for sequence in [2, 3] {
            sender.send(Some(bundle(sequence))).unwrap();
            let mut all = Vec::new();
            // The one that hangs hears of the first change only.
            for _ in 0..if sequence == 2 { 3 } else { 2 } {
                all.push(heard.recv().await.unwrap());
            }
            all.sort_unstable();
            let expected: &[_] =
                if sequence == 2 { &[("a", 2), ("b", 2), ("c", 2)] } else { &[("b", 3), ("c", 3)] };
            assert_eq!(all, expected);
        }
        sender.send(Some(bundle(4))).unwrap();
        // Time moves on by itself: its call times out, and it hears of the newest.
        while heard.recv().await.unwrap() != ("a", 4) {}
        drop(sender);
        drop(tasks);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bundle_is_published_at_once_at_changes_and_again() {
        let (told, mut heard) = plugins(false);
        let (sender, changes) = watch::channel(Some(bundle(1)));
        let publishing = tokio::spawn(publish(told[1].clone(), changes));
        assert_eq!(heard.recv().await, Some(("b", 1)));
        sender.send(Some(bundle(2))).unwrap();
        assert_eq!(heard.recv().await, Some(("b", 2)));
        let before = tokio::time::Instant::now();
        assert_eq!(heard.recv().await, Some(("b", 2)));
        assert_eq!(before.elapsed(), PUBLISH, "the clock of the test is paused");
        drop(sender);
        publishing.await.unwrap();
    }
}
