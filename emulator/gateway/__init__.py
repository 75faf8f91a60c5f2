"""What a call passes before an endpoint answers it: key, distance, faults, limits, the edge."""
