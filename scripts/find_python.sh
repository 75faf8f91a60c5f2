#!/bin/sh
# Print the Python to make the environments with: $PYTHON, else the first on the PATH that will do.
# Each candidate has to run, since version managers leave shims that only complain, and to have
# venv and pip, which some distributions package apart. 3.11 comes first: it has the most wheels.
will_do='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c "$will_do" 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done
echo "No Python 3.11, 3.12 or 3.13 with venv found (tried: ${PYTHON:-python3.11 python3.12 python3.13 python3})." >&2
echo "Install one (on Debian and Ubuntu python3.12-venv goes with python3.12), or set PYTHON=/path/to/it." >&2
exit 1
