"""RunPod's queue: every call becomes a job, and the job's outputs the answer."""
