"""`python -m proxy` that soon dials workers again which it could not reach.

A storm is over before the pauses of the real one are, and all answers would come by the queue.
"""

from proxy.__main__ import main
from proxy.backends.runpod.direct import dialing

PAUSES = {"FIRST_PAUSE_SECONDS": 0.2, "LOST_PAUSE_SECONDS": 0.2, "MAX_PAUSE_SECONDS": 1.0}

if __name__ == "__main__":
    for name, seconds in PAUSES.items():
        assert hasattr(dialing, name)
        setattr(dialing, name, seconds)
    main()
