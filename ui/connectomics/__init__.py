"""The web page of the connectomics app."""
