//! Frames, connections and streams between nodes.
