"""Whether calls are shared: found out by trying. Times are made up here."""

import random

from projgen.cpu.sharing import PATIENCE, PAUSE, TRIES, Sharing, Ways


def simulate(sharing: Ways, alone: float, shared: float, calls: int) -> int:
    """How many of `calls` calls that take so long are shared."""
    count = 0
    for _ in range(calls):
        choice = sharing.choose()
        count += choice
        sharing.learn(choice, shared if choice else alone)
    return count


def test_both_ways_are_tried_first() -> None:
    assert simulate(Ways(), 1.0, 1.0, TRIES) == TRIES // 2


def test_the_quicker_way_is_taken_and_the_other_looked_at_now_and_then() -> None:
    quick, slow = Ways(), Ways()
    simulate(quick, 1.0, 0.6, TRIES)
    simulate(slow, 1.0, 1.5, TRIES)
    assert 4950 < simulate(quick, 1.0, 0.6, 5000) < 5000
    assert 0 < simulate(slow, 1.0, 1.5, 5000) < 50


def test_a_change_is_noticed() -> None:
    """A second processor that becomes busy is left alone soon, and found again when it is free."""
    sharing = Ways()
    simulate(sharing, 1.0, 0.6, 1000)
    assert simulate(sharing, 1.0, 8.0, 100) < 20
    simulate(sharing, 1.0, 8.0, 1000)
    assert simulate(sharing, 1.0, 0.6, 2 * PATIENCE) > PATIENCE - 100


def test_one_interrupted_call_changes_nothing() -> None:
    sharing = Ways()
    simulate(sharing, 1.0, 0.6, TRIES + 1)
    sharing.learn(True, 500.0)
    assert sharing.pays
    assert not any(not sharing.choose() for _ in range(10))


def test_an_interruption_does_not_decide_a_trial() -> None:
    """Neither of the last shared call, nor of the one before it; and the first wakes threads."""
    for times in ([9.0, 0.6, 500.0], [9.0, 500.0, 0.6]):
        sharing = Ways()
        for seconds in times:
            assert sharing.choose()
            sharing.learn(True, seconds)
        simulate(sharing, 1.0, 0.6, TRIES - len(times))
        assert sharing.pays


def test_it_settles_in_noise() -> None:
    """With times that vary by a third the better way is taken nearly always."""
    rng = random.Random(0)
    sharing = Ways()
    better = 0
    for _ in range(3000):
        choice = sharing.choose()
        better += choice
        sharing.learn(choice, (0.7 if choice else 1.0) * rng.uniform(1.0, 1.33))
    assert better > 2850


def test_unknown_ways_are_worth_a_try() -> None:
    """Calls that end early teach nothing: sharing stays possible."""
    sharing = Ways()
    for _ in range(100):
        sharing.choose()
    assert sharing.pays


def test_calls_in_a_row_and_those_after_a_pause_are_learnt_of_apart() -> None:
    """A pause after each fourth call, from which threads take long to wake."""
    sharing, clock = Sharing(), 0.0
    count = {True: 0, False: 0}
    for call in range(4000):
        late = call % 4 == 0
        clock += 2 * PAUSE if late else PAUSE / 100
        choice = sharing.choose(clock)
        count[late] += choice
        seconds = {True: 9.0 if late else 0.6, False: 3.0 if late else 1.0}[choice] * 1e-4
        clock += seconds
        sharing.learn(choice, seconds)
    assert count[True] < 30
    assert count[False] > 2950
