//! The agent's brain: SVID cache, subscribers and rotation.
