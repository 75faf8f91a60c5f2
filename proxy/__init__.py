"""The OpenAI-compatible proxy: HTTP in, RunPod jobs out, SSE back."""
