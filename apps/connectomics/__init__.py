"""Connectomics: flood-filling networks for volumes of electron microscopy, from seeds to measured segmentations."""
