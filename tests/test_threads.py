"""Threads, forks and processes. Each case runs in an interpreter of its own: what hangs, fails."""

import multiprocessing
import os
import sys

import numpy as np
import pytest
from support import assert_projected, bits, run_python

import projgen

SETUP = """
import numpy as np, projgen
from support import assert_projected

def problem(seed=0, shape=(700, 800)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

p = projgen.build({spec!r}, threads={threads})
y = problem()
expected = projgen.build({spec!r}, threads=1)(y, 30.0)
assert_projected({spec!r}, y, 30.0, expected)

def check(z=y, wanted=expected):
    assert np.array_equal(p(z, 30.0), wanted)
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")

SHARED = [  # ways in which threads share a level
    ("l1(linf)", (700, 800)),
    ("l1(linf(axis=0))", (700, 800)),
    ("l2(l1(axis=0))", (700, 800)),
    ("l1", (700, 800)),
    pytest.param("linf(l1)", (700, 800), marks=pytest.mark.slow),
    pytest.param("l2(l1)", (40000, 16), marks=pytest.mark.slow),
    pytest.param("l1(axis=0)", (30000, 20), marks=pytest.mark.slow),
    pytest.param("l1(l2(axis=0))", (3, 200000), marks=pytest.mark.slow),
    pytest.param("l1(l1(axis=0))", (100000, 4), marks=pytest.mark.slow),
    pytest.param("l2(l1(axis=0))", (20, 20000), marks=pytest.mark.slow),
    pytest.param("l1(l1(axis=1))", (20000, 5, 3), marks=pytest.mark.slow),
    pytest.param("l1(l1(axis=1))", (8000, 50, 2), marks=pytest.mark.slow),
]


def setup(spec: str = "l1(linf)", threads: int = 2) -> str:
    return SETUP.format(spec=spec, threads=threads)


@pytest.mark.parametrize(("spec", "shape"), SHARED)
def test_bits_do_not_depend_on_threads(spec: str, shape: tuple[int, ...]) -> None:
    """7 threads are more than there are processors, mostly."""
    y = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    radius = 0.1 * projgen.build(spec, backend="numpy").norm(y)
    one = projgen.build(spec, threads=1)
    alone, norms = one(y, radius), one.norm(y)
    assert_projected(spec, y, radius, alone)
    for threads in (2, 7):
        p = projgen.build(spec, threads=threads)
        for _ in range(8):
            assert bits(p(y, radius)) == bits(alone)
            assert np.array_equal(p.norm(y), norms)


def test_the_verdict_reaches_the_caller_whoever_works() -> None:
    """Inside the ball, and not finite: decided by the threads together, again and again."""
    code = (
        setup("l2(l1(axis=0))", 2)
        + """
many = projgen.build("l2(l1(axis=0))", threads=7)
bad = y.copy()
bad[3, 4] = np.nan
out = np.empty_like(y)
for turn in range(3000):
    q = (p, many)[turn % 5 == 0]
    out[0, 0] = out[-1, -1] = 7
    assert q(y, 1e6, out=out) is out and out[0, 0] == y[0, 0] and out[-1, -1] == y[-1, -1], turn
    if turn % 10 == 0:
        try:
            q(bad, 1.0, out=out)
        except ValueError:
            pass
        else:
            raise AssertionError(turn)
"""
    )
    run_python(code)


def test_from_run_to_run() -> None:
    code = setup("l2(l1(axis=0))", 3) + "print(hash(expected.tobytes()), hash(p(y, 3.0).tobytes()))"
    assert run_python(code, PYTHONHASHSEED="0") == run_python(code, PYTHONHASHSEED="0")


@pytest.mark.parametrize("spec", ["l1(linf)", "l2(l1(axis=0))", "l1"])
def test_eight_python_threads_and_one_projection(spec: str) -> None:
    code = (
        setup(spec, 1)
        + """
from concurrent.futures import ThreadPoolExecutor
problems = [problem(seed) for seed in range(8)]
wanted = [p(z, 30.0) for z in problems]

def work(i):
    for _ in range(25):
        check(problems[i], wanted[i])

for threads in (1, 2, 7):
    p = projgen.build(p.spec, threads=threads)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
"""
    )
    run_python(code)


def test_first_calls_at_once() -> None:
    """Nothing is compiled yet, and no team is there."""
    code = """
import threading, numpy as np, projgen
p = projgen.build("l1(linf)", threads=2)
y = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
barrier, results = threading.Barrier(8), []

def work():
    barrier.wait()
    results.append(p(y, 30.0))

threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(results) == 8 and all(np.array_equal(x, results[0]) for x in results)
"""
    run_python(code)


def test_several_kernels_take_turns() -> None:
    """Followers must not enter a call with the arguments of another."""
    code = (
        setup()
        + """
import threading
cases = []
for spec in ("l1(linf)", "l1(linf(axis=0))", "l2(l1(axis=0))"):
    for seed, shape in enumerate([(700, 800), (500, 900)]):
        q, z = projgen.build(spec, threads=2), problem(seed, shape)
        cases.append((q, z, projgen.build(spec, threads=1)(z, 5.0)))

def work(offset):
    for i in range(300):
        q, z, wanted = cases[(i + offset) % len(cases)]
        assert np.array_equal(q(z, 5.0), wanted)

failures = []
threading.excepthook = failures.append
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for t in threads: t.start()
for t in threads: t.join()
assert not failures, failures
"""
    )
    run_python(code)


FORK = """
import os, signal

def child(task):
    \"\"\"Run `task` in a forked child that must end well, and soon.\"\"\"
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            task()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def join(pid):
    assert os.waitpid(pid, 0)[1] == 0
"""


@forks
def test_a_forked_child_calls_it_too() -> None:
    code = (
        setup()
        + FORK
        + """
for threads in (1, 2, 7):
    p = projgen.build(p.spec, threads=threads)
    check()
    for _ in range(5):
        join(child(check))
        check()
    join(child(lambda: join(child(check))))
"""
    )
    run_python(code)


@forks
def test_a_child_forked_while_another_thread_is_in_a_call() -> None:
    code = (
        setup()
        + FORK
        + """
import threading
stop = threading.Event()

def work():
    while not stop.is_set():
        check()

worker = threading.Thread(target=work)
worker.start()
for _ in range(30):
    join(child(check))
stop.set()
worker.join()
check()
"""
    )
    run_python(code)


@forks
def test_a_child_forked_while_another_thread_compiles() -> None:
    code = (
        FORK
        + """
import tempfile, threading, time, numpy as np, projgen
from projgen.cpu.load import making
z = np.ones((20, 30), np.float32)
projgen.project(z, "l1(linf)", 1.0)  # all modules are there
cache = tempfile.TemporaryDirectory()
os.environ["PROJGEN_CACHE_DIR"] = cache.name

def compile_all():
    for spec in ("l2(axis=1)", "linf(axis=1)"):
        projgen.project(z, spec, 1.0)

worker = threading.Thread(target=compile_all)
worker.start()
while worker.is_alive() and making.acquire(blocking=False):
    making.release()
    time.sleep(0.001)
assert worker.is_alive()  # and compiles
for _ in range(2):
    join(child(compile_all))
worker.join()
"""
    )
    run_python(code)


@forks
@pytest.mark.parametrize("moment", [0, 0.1])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_child_forked_while_others_are_in_their_first_call(threads: int, moment: float) -> None:
    """Whatever they import and make just then."""
    code = (
        FORK
        + f"""
import threading, time, numpy as np, projgen
z = np.ones((20, 30), np.float32)

def first():
    p = projgen.build("l1(linf)")
    assert np.allclose(p(z, 2.0), 0.1)

workers = [threading.Thread(target=first) for _ in range({threads})]
for worker in workers:
    worker.start()
time.sleep({moment})
join(child(first))
for worker in workers:
    worker.join()
"""
    )
    run_python(code)


@forks
def test_forks_wait_for_calls_in_other_threads_but_not_for_their_own() -> None:
    code = (
        FORK
        + """
import threading, time
from projgen import forks
inside, go_on = threading.Event(), threading.Event()

def call():
    with forks.whole, forks.whole:
        inside.set()
        go_on.wait()

worker = threading.Thread(target=call)
worker.start()
inside.wait()
began = time.monotonic()
threading.Timer(0.3, go_on.set).start()
join(child(lambda: None))
assert time.monotonic() - began >= 0.3
worker.join()
with forks.whole:
    join(child(lambda: None))

def again():
    with forks.whole:
        pass

forks.PATIENCE = 0.2  # what never ends is not waited for for ever
go_on.clear()
worker = threading.Thread(target=call)
worker.start()
while not forks._calling:
    time.sleep(0.001)
join(child(again))
go_on.set()
worker.join()
"""
    )
    run_python(code)


@forks
def test_interrupted_forks_keep_nobody_out() -> None:
    """What is raised in the hooks of a fork is reported, and lost."""
    code = (
        FORK
        + """
import signal, sys, threading, time
from projgen import forks
sys.unraisablehook = lambda _: None
stop = threading.Event()

def work():
    while not stop.is_set():
        with forks.whole:
            time.sleep(0.001)

workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
forking, interrupted = False, 0

def interrupt(*_):
    global interrupted
    if forking:
        interrupted += 1
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
until = time.monotonic() + 1.5
while time.monotonic() < until:
    try:
        forking = True
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        forking = False
        os.waitpid(pid, 0)
    except KeyboardInterrupt:
        forking = False
signal.setitimer(signal.ITIMER_REAL, 0)
assert interrupted
stop.set()
for worker in workers:
    worker.join(10)
assert not any(worker.is_alive() for worker in workers)
assert not forks._forks and not forks._calling
join(child(lambda: None))
with forks.whole:
    pass
"""
    )
    run_python(code)


@forks
def test_a_thread_that_waits_to_fork_may_call() -> None:
    """In a signal's handler, say."""
    code = (
        FORK
        + """
import threading
from projgen import forks
inside, go_on = threading.Event(), threading.Event()

def call():
    with forks.whole:
        inside.set()
        go_on.wait()

def handle(*_):
    with forks.whole:
        go_on.set()

signal.signal(signal.SIGUSR1, handle)
worker = threading.Thread(target=call)
worker.start()
inside.wait()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
join(child(lambda: None))
assert go_on.is_set()
worker.join()
"""
    )
    run_python(code)


@forks
@pytest.mark.parametrize("spec", ["l1(linf(axis=1))", "l1(lp(p=3, axis=1))"])
def test_forks_wait_for_gradients(spec: str) -> None:
    """Which import and compile as well."""
    code = f"""
import numpy as np, projgen
from projgen import forks, pullback
y = np.ones((20, 30), np.float32)
_, pull = projgen.build({spec!r}, backend="numpy").vjp(y, 1.0)
seen = []
put, pullback.put = pullback.put, lambda *arrays: (seen.append(len(forks._calling)), put(*arrays))
pull(y)
assert seen == [1], seen
assert not forks._calling
"""
    run_python(code)


def process_code(method: str) -> str:
    """A script: a spawned child imports it again, from its file."""
    return f"""
import multiprocessing, pickle, numpy as np, projgen

def work(job):
    p, y, wanted = job
    return bool(np.array_equal(p(y, 30.0), wanted))

def main():
    p = projgen.build("l1(linf)", threads=2)
    y = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
    wanted = p(y, 30.0)
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.map(work, [(p, y, wanted)] * 6) == [True] * 6
    assert work((p, y, wanted))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes(method: str, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(process_code(method))
    run_python(f"import runpy, sys; sys.argv = [{str(script)!r}]; "
               f"sys.path.insert(0, {str(tmp_path)!r}); "
               f"import script; script.main()")  # fmt: skip


def test_a_call_at_exit() -> None:
    code = "import atexit\n" + setup() + "atexit.register(check)\ncheck()"
    run_python(code)


def test_a_daemon_thread_in_a_call_at_exit() -> None:
    code = (
        setup()
        + """
import threading
def forever():
    while True:
        check()
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
check()
print("done")
"""
    )
    assert run_python(code) == "done\n"


FINALISER = """
import gc

class Last:
    \"\"\"Garbage in a cycle, whose finaliser calls the projection.\"\"\"

    def __init__(self):
        self.itself, self.check = self, check

    def __del__(self):
        for _ in range(4):  # some of them shared
            self.check()
        print("done", flush=True)
"""


def test_a_finaliser_s_call_at_exit() -> None:
    """No thread has been started yet, and none can be any more."""
    code = (
        setup()
        + FINALISER
        + """
from projgen.cpu.pool import team
with team()._busy:  # everything is compiled, and no follower is there
    check()
gc.disable()
Last()
gc.enable()
"""
    )
    assert run_python(code, 60.0) == "done\n"


def test_a_finaliser_s_call_while_the_team_is_made() -> None:
    """The collector may run it in the thread that makes the team, or compiles."""
    code = (
        setup()
        + FINALISER
        + """
from projgen.cpu import pool
made = pool.render_team

def interrupted(board):
    pool.render_team = made
    Last()
    gc.collect()
    return made(board)

pool.render_team = interrupted
check()
import threading
print(threading.active_count())
"""
    )
    assert run_python(code, 60.0) == "done\n2\n"


def test_where_no_thread_can_be_started() -> None:
    code = (
        setup(threads=4)
        + """
import threading
start = threading.Thread.start

def refuse(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
check()
threading.Thread.start = start
for _ in range(5):
    check()
print(threading.active_count())
"""
    )
    assert run_python(code) == "4\n"


def test_an_interrupt_leaves_it_usable() -> None:
    code = (
        setup("l2(l1(axis=0))")
        + """
import _thread, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
interrupts = 0
def interrupt():
    for _ in range(40):
        time.sleep(0.005)
        _thread.interrupt_main()
worker = threading.Thread(target=interrupt)
worker.start()
while True:
    try:
        while worker.is_alive():
            p(y, 30.0)
        time.sleep(0.02)
        break
    except KeyboardInterrupt:
        interrupts += 1
assert interrupts
for _ in range(20):
    check()
"""
    )
    run_python(code)


def test_more_threads_than_any_machine_has() -> None:
    """A call takes as many threads as it has blocks."""
    code = setup(threads=10**6) + "import threading\ncheck()\nassert threading.active_count() < 300"
    run_python(code)


def test_threads_of_the_environment() -> None:
    code = setup(threads=None) + "import threading\ncheck()\nprint(threading.active_count())"
    assert run_python(code, PROJGEN_NUM_THREADS="1") == "1\n"
    assert run_python(code, PROJGEN_NUM_THREADS="3") == "3\n"
    assert run_python(code, PROJGEN_NUM_THREADS="many") in {f"{n}\n" for n in range(1, 300)}


if sys.platform == "linux":

    def test_one_processor_and_seven_threads() -> None:
        code = "import os\nos.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        run_python(code + setup("l2(l1(axis=0))", 7) + "for _ in range(10): check()")


def test_a_follower_that_waited_for_the_interpreter_joins() -> None:
    """Its patience ends while another thread has the interpreter, which then calls: it has not gone
    to sleep yet, so that nothing wakes it."""
    out = run_python("""
import ctypes, threading, time
from projgen.cpu import pool

here = []

def meet(*_):
    here.append(threading.get_ident())
    deadline = time.monotonic() + 2.0
    while len(here) < 2 and time.monotonic() < deadline:
        time.sleep(0)
    return 0

entry = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5)(meet)
address = ctypes.cast(entry, ctypes.c_void_p).value
team = pool.Team()
for gap in (0.0, *[10 * pool.PATIENCE] * 5):  # seconds that nobody else has the interpreter
    until = time.perf_counter() + gap
    while time.perf_counter() < until:
        pass
    here.clear()
    assert team.run((address, 0, 0, 0, 0, 0), 1) == 0
    print(len(here))
""")
    assert out.split() == ["2"] * 6
