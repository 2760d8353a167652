//! exchange-sim
fn main() {}
