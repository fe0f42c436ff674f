//! The command line: what it takes (`cli`) and what it starts. Must not: hold
//! logic of the agent.

pub mod cli;
