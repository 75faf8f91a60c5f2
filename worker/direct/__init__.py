"""The direct channel: frames reach the proxy without the queue, which takes over at any time."""
