"""Tests of what sets the project up and runs it."""
