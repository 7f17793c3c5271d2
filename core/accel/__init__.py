"""How a graph runs: backends, compiler passes, kernels and the store of object code."""
