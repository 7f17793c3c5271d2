"""The applications that stand on the engine; they never import each other."""
