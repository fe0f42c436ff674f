//! Models: the code that threads share memory by, run by loom in every order.
//!
//! `kernel/` compiles the agent's own `mailbox.rs`, `desk.rs` and `budget.rs` with loom's
//! locks and atomics and a modelled eventfd in the place of the real ones; no line
//! of them is copied. `world` is a modelled kernel for the agent's own
//! `coverage::clean_marks`. Must not: hold a protocol of its own. What each model
//! tries, and its bounds, stands in `tests/`.

pub mod kernel;
pub mod world;
