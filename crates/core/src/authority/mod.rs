//! One slot machine for X.509, JWT and WIT authorities.
