"""Molecules: message-passing networks on the chemist's own CSV, SDF, extended XYZ and reaction files."""
