"""What a test that does not end is doing, told before its lab's time limit takes the evidence away: where each of its threads is, and
where each thread of the daemons is in the kernel. The process then ends with status 1.

Only in the lab, which says how long it has (LAB_LIMIT).
"""
import faulthandler
import os
import pathlib
import sys
import threading

# Left of the time limit when the report is made: it takes a second or two, on a busy day ten.
SPARE_S = 20


def _line_of(path):
    try:
        return ' < '.join(line.split(' ', 1)[-1] for line in path.read_text(errors='replace').splitlines())[:600]
    except OSError as error:
        return error.strerror


def _daemons():
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            name = (process / 'comm').read_text(errors='replace').strip()
        except OSError:
            continue
        if name in ('hyperkerneld', 'hkctl'):
            yield process, name


def _report():
    print(f'hang report: {SPARE_S} s before the time limit', file=sys.stderr)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    for process, name in _daemons():
        print(f'{name} {process.name}: {_line_of(process / "cmdline")}', file=sys.stderr)
        for thread in sorted(process.glob('task/*')):
            state = (thread / 'stat').read_text(errors='replace').rsplit(')', 1)[-1].split()[0]
            print(f'  {_line_of(thread / "comm")} {thread.name} {state}: {_line_of(thread / "stack")}', file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def arm():
    """For the main module of a test, once."""
    if 'LAB_LIMIT' not in os.environ:
        return
    up = float(pathlib.Path('/proc/uptime').read_text(encoding='ascii').split()[0])
    timer = threading.Timer(max(float(os.environ['LAB_LIMIT']) - SPARE_S - up, 1), _report)
    timer.daemon = True
    timer.start()
