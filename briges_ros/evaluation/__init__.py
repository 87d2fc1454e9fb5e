"""How good depth is: metrics and protocol."""
