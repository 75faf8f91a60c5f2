"""What an operator says: the environment, and the file with endpoints, models and keys."""
