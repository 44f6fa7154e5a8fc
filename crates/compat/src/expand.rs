//! Imitates Go's `os.Expand`.
