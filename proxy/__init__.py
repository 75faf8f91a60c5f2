"""The OpenAI-compatible proxy: HTTP in, RunPod jobs out, SSE back."""

__version__ = "0.1.0"
