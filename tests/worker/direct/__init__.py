"""Tests of the worker's side of the direct channel."""
