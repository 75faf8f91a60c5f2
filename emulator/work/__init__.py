"""The work of an endpoint and who does it: jobs in a queue, batches, requests on a balancer.

No client's HTTP and no processes here."""
