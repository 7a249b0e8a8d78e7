//! Tells a task outside that something has been queued for it.

use atomic_waker::AtomicWaker;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// A bell that one task listens to. It may be rung from any thread, at any time, and never waits.
///
/// However often it is rung before the task looks, the task finds it rung once; what is rung while nobody listens is
/// found by the next who does. So whoever listens takes all there is each time.
#[derive(Debug, Default)]
pub struct Bell {
    is_rung: AtomicBool,
    listener: AtomicWaker,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        // What was queued before is seen by whoever finds the bell rung, whoever else has rung since: a swap continues
        // what earlier rings have released, which a store would end.
        self.is_rung.swap(true, Ordering::Release);
        self.listener.wake();
    }

    /// Waits until it is rung, or was since it was last waited for. One task may wait at a time: of two, only the one
    /// that came last is woken. A wait that is given up takes nothing away.
    pub async fn rung(&self) {
        poll_fn(|context| {
            // Registered before the look, so that a ring between the two wakes.
            self.listener.register(context.waker());
            if self.is_rung.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::task::{Context, Wake, Waker};

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_is_found_once_whether_it_came_before_or_while_somebody_waited() {
        let (bell, woken) = (Bell::default(), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut is_rung = || pin!(bell.rung()).poll(&mut context).is_ready();
        assert!(!is_rung());
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        bell.ring();
        bell.ring();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "whoever waited is woken");
        assert!(is_rung() && !is_rung(), "and finds both at once");
        // Nobody waits now but the one who was told no; a ring is not lost.
        bell.ring();
        assert!(is_rung());
    }
}
