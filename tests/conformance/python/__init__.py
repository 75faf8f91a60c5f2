"""The checks of the clients for Python; each file runs in the environment of its client."""
