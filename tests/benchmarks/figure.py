"""The one form of a figure: a JSON line on standard output."""
import atexit
import json
import os

_missed = []


@atexit.register
def _report():
    """A promise that does not hold is a failure of the bench, seen by whoever runs it without reading."""
    if _missed:
        os._exit(1)


def emit(name, value, unit, floor=None, limit=None, at_least=False, **more):
    """Prints one figure. `limit` is the most that is promised (with `at_least` the least), in the same unit; None where nothing is."""
    holds = None if limit is None else value >= limit if at_least else value <= limit
    line = {"name": name, "value": round(value, 3), "unit": unit, "floor": None if floor is None else round(floor, 3),
            "ratio": None if not floor else round(value / floor, 2), "limit": None if limit is None else round(limit, 3), "holds": holds}
    print(json.dumps({**line, **more}), flush=True)
    if line["holds"] is False:
        _missed.append(name)
