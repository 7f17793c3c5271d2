"""The web app: every page stands on the same command line and the same run directories as the terminal does."""
