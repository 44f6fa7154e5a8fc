//! X.509, CSR, JWK, JWS and PEM: encoding, decoding and verification.
