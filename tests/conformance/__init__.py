"""Real clients against the local stack, each check also against vLLM itself: `make conformance`."""
