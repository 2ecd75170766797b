//! The differentiable models.
