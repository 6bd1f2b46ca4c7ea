//! From a unit to a number: every algorithm, encoding and projection that `HashSpec` can name.
