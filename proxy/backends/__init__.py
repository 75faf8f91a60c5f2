"""What can answer a call: RunPod's queue endpoints, and servers that are asked by plain HTTP."""
