//! Who decides inside of a simulation. One per thread, so that several run beside each other.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};

use crate::FileStep;

pub type Step = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

pub trait World: Send + Sync {
    fn now_us(&self) -> i64;
    fn shared_now_us(&self) -> i64;
    fn random(&self, bytes: &mut [u8]);
    fn step(&self, name: &'static str) -> Step;
    fn fault(&self, name: &'static str) -> io::Result<()>;
    fn file(&self, step: FileStep, path: &Path) -> io::Result<()>;
}

thread_local! {
    static WORLD: RefCell<Option<Arc<dyn World>>> = const { RefCell::new(None) };
    static BUSY: Cell<usize> = const { Cell::new(0) };
    static TAKEN: Cell<bool> = const { Cell::new(false) };
    static WAITING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// From now on `world` decides for this thread; None: the machine.
pub fn enter(world: Option<Arc<dyn World>>) {
    WORLD.with(|current| *current.borrow_mut() = world);
    BUSY.set(0);
    TAKEN.set(false);
    WAITING.take();
}

pub(crate) fn world() -> Option<Arc<dyn World>> {
    WORLD.with(|current| current.borrow().clone())
}

/// Whether another thread works for this one.
pub fn is_busy() -> bool {
    BUSY.get() > 0
}

/// One after the other: which of two threads is done first is not for a replay to know.
pub(crate) async fn real<T>(work: impl Future<Output = T>) -> T {
    let _busy = Busy::begin();
    let _turn = Turn::take().await;
    let mut work = std::pin::pin!(work);
    let mut done = None;
    let mut asked = false;
    std::future::poll_fn(|cx| {
        if let Some(done) = done.take() {
            return Poll::Ready(done);
        }
        let polled = work.as_mut().poll(cx);
        match std::mem::replace(&mut asked, true) {
            true => polled,
            // A thread that is done at once is as one that takes its time: others come between.
            false => {
                if let Poll::Ready(result) = polled {
                    done = Some(result);
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    })
    .await
}

struct Busy;

impl Busy {
    fn begin() -> Busy {
        BUSY.set(BUSY.get() + 1);
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(BUSY.get().saturating_sub(1));
    }
}

struct Turn;

impl Turn {
    async fn take() -> Turn {
        std::future::poll_fn(|cx| match TAKEN.replace(true) {
            false => Poll::Ready(Turn),
            true => {
                WAITING.with(|waiting| waiting.borrow_mut().push(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.set(false);
        for waiting in WAITING.take() {
            waiting.wake();
        }
    }
}

pub(crate) fn planted(bug: &str) -> bool {
    static PLANTED: OnceLock<Option<String>> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("TIDEGATE_PLANTED_BUG").ok());
    planted.as_deref() == Some(bug)
}
