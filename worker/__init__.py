"""The GPU worker: one RunPod handler in front of a vLLM server on loopback."""
