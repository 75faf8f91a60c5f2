"""What clients speak: routes, calls, answers, dialects. Pure: no I/O, and no backend is known."""
