"""What is told of the running proxy: numbers, and lines of the log."""
