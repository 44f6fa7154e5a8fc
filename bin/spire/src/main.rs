//! Assembly.
fn main() {}
