//! The server's index of registration entries and the view that one agent is authorised to see.
