"""The routes. They know requests, answers and errors; RunPod's URLs they do not know."""
