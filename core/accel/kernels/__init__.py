"""Hand-written kernels: each file turns one family of ops into steps of a plan."""
