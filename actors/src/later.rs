//! Messages to oneself, after a while.

use std::time::Duration;

use ractor::{ActorRef, Message};
use shoal_kernel::Env;

/// Sends the actor a message when the pause is over. `what` names the wait in traces; an actor that has gone by then is
/// not missed.
pub(crate) fn later<M: Message>(env: &Env, what: &'static str, actor: &ActorRef<M>, pause: Duration, message: M) {
    let (sleep, actor) = (env.sleep(pause), actor.clone());
    env.spawn(what, async move {
        sleep.await;
        let _ = actor.cast(message);
    });
}
