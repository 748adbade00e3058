"""Where the material of m0-nano comes from: one module for each kind of it."""
