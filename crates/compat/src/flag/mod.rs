//! Imitates Go's `flag` package: syntax, error texts, usage text.
