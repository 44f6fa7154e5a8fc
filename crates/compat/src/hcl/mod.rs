//! HCL version 1: the language of SPIRE configuration files.
