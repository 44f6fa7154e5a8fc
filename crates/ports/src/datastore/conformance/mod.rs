//! The suite that every datastore must pass.
