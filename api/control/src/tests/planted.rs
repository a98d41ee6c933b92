//! Bugs, planted one by one.
