"""The direct channel: tokens come from the worker by a connection of their own, not by the queue.

RunPod's queue wakes a worker and bills it, and can carry everything at any moment. Where an
endpoint allows it, frames come by a WebSocket between this proxy and the worker instead. They are
those of the queue, numbered, so either road takes over from the other at any number.
"""
