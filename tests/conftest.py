"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# On a machine that others keep busy an example may stall for seconds; how long one takes tells
# nothing here.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
