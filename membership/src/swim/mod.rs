//! Who answers: SWIM gossip over datagrams.
