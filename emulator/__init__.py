"""A RunPod of your own: both faces of RunPod Serverless, on one machine, without a GPU."""
