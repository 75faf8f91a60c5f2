"""`make bench`: what the proxy costs its users in time, and its operators in CPU and memory.

Every target (this build before RunPod's queue, its relay, the build before, other proxies) is asked
the same by one load generator, in rounds, beside a direct run against the same stand-in for vLLM in
the same minutes; what is told is the difference. `stacks.py` says what there is to measure,
`rounds.py` in which order, `report.py` what becomes of it.
"""
