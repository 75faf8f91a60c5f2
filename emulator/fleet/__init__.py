"""The workers of an endpoint as processes: how many there are, and the life of each."""
