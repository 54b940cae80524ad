//! Messages to oneself, after a while.

use std::time::Duration;

use ractor::{ActorRef, Message};
use shoal_kernel::Env;

/// Sends the actor a message when the pause is over, unless it has gone by then; nobody waits any more when it goes. `what` names the wait
/// in traces.
pub(crate) fn later<M: Message>(env: &Env, what: &'static str, actor: &ActorRef<M>, pause: Duration, message: M) {
    let (sleep, actor) = (env.sleep(pause), actor.clone());
    env.spawn(what, async move {
        tokio::select! {
            biased;
            () = sleep => {
                let _ = actor.cast(message);
            }
            // A pause may last for minutes.
            _ = actor.wait(None) => {}
        }
    });
}
