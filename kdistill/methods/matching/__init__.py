"""Distribution and gradient matching."""
