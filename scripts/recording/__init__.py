"""The README's recording: a real run of `make run`, filmed in a terminal and drawn as an SVG."""
