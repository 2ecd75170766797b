//! Whether anybody is being answered, for work that takes the machine from them without being in their queue.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// How many live requests wait or are inside, in all queues that count in it together.
#[derive(Clone, Default)]
pub struct Activity {
    live: Arc<watch::Sender<usize>>,
}

/// One live request, for as long as it waits or is inside.
pub(super) struct Present(Activity);

impl Activity {
    pub(super) fn enter(&self) -> Present {
        self.live.send_modify(|live| *live += 1);
        Present(self.clone())
    }

    /// Whether a live request waits or is answered.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        *self.live.borrow() > 0
    }

    /// Waits until a live request waits or is answered.
    pub async fn busy(&self) {
        self.until(|live| live > 0).await;
    }

    /// Waits until none does.
    pub async fn idle(&self) {
        self.until(|live| live == 0).await;
    }

    async fn until(&self, is_so: impl Fn(usize) -> bool) {
        // It fails when the sender is gone, which `self` holds.
        let _ = self.live.subscribe().wait_for(|live| is_so(*live)).await;
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.live.send_modify(|live| *live -= 1);
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").field("live", &*self.live.borrow()).finish()
    }
}
