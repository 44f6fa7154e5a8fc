//! Imitates Go's `strconv.Quote`.
