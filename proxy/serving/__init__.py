"""Who answers a call: the table of models, and what may answer in a backend's place."""
