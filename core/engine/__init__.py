"""What a model is: arrays, ops, tracing, gradients, modules, layers, training."""
