"""The paths we serve. A route never builds a RunPod URL; it knows requests, answers and errors."""
