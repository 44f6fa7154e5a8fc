//! Imitates Go's `time.Time` text forms.
