"""The road to workers that goes past RunPod's API: the TCP ports that an endpoint exposes."""
