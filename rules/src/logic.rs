//! JSONLogic trees with flagd's operators: one kind of expression.
