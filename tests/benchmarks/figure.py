"""The one form of a figure: a JSON line on standard output."""
import atexit
import json
import os
import statistics

_missed = []


@atexit.register
def _report():
    """A promise that does not hold is a failure of the bench, seen by whoever runs it without reading."""
    if _missed:
        os._exit(1)


def emit(name, value, unit, floor=None, limit=None, at_least=False, **more):
    """Prints one figure. `limit` is the most that is promised (with `at_least` the least), in the same unit; None where nothing is."""
    holds = None if limit is None else value >= limit if at_least else value <= limit
    _print(name, value, unit, floor, value / floor if floor else None, limit, holds, more)


def emit_pairs(name, pairs, unit, limit_ratio=None, at_least=False, **more):
    """Prints one figure from (product, floor) pairs, each pair measured at nearly the same time: what disturbs one disturbs the other. The
    ratio is the median of the pairs' ratios, and what `limit_ratio` is held against."""
    value, floor = (statistics.median(series) for series in zip(*pairs))
    ratio = statistics.median(product / bare for product, bare in pairs)
    holds = None if limit_ratio is None else ratio >= limit_ratio if at_least else ratio <= limit_ratio
    _print(name, value, unit, floor, ratio, None if limit_ratio is None else limit_ratio * floor, holds, more)


def _print(name, value, unit, floor, ratio, limit, holds, more):
    def rounded(number, digits):
        return None if number is None else round(number, digits)
    line = {"name": name, "value": round(value, 3), "unit": unit, "floor": rounded(floor, 3), "ratio": rounded(ratio, 2),
            "limit": rounded(limit, 3), "holds": holds}
    print(json.dumps({**line, **more}), flush=True)
    if holds is False:
        _missed.append(name)
