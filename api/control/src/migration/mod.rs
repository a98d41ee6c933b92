//! Migrations: what to do next ([`machine`]), what may be recorded when ([`transition`]), and who does it ([`executor`]).

pub mod executor;
pub mod knowledge;
pub mod machine;
pub mod slowing;
pub mod transition;
pub mod view;

#[cfg(test)]
pub mod tests;
