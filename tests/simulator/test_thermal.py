import pytest

from memsim.simulator.thermal import Heat

HEAT = Heat(30.0, 60.0, 0.5)


def _by_brute_force(heat: Heat, cool_s: float, n_steps: int, tick_s: float = 1e-3) -> list[float]:
    """Steps whose every part slows down alike: integrate the speed until a step's work is done."""
    times, clock_s = [], 0.0
    for _ in range(n_steps):
        start_s, done = clock_s, 0.0
        while done < cool_s:
            done += heat.speed(clock_s) * tick_s
            clock_s += tick_s
        times.append(clock_s - start_s)
    return times


def test_speed_holds_falls_and_stays() -> None:
    speeds = [HEAT.speed(at_s) for at_s in (0.0, 30.0, 60.0, 90.0, 1e6)]
    assert speeds == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
    assert Heat(1.0, 0.0, 0.25).speed(1.1) == 0.25


@pytest.mark.parametrize(("cool_s", "n_steps"), [(7.0, 12), (50.0, 4), (0.9, 60)])
def test_a_run_heats_up(cool_s: float, n_steps: int) -> None:
    times = HEAT.step_times(cool_s, cool_s / 0.5, n_steps)
    # Two ways of integrating, in steps of 1 ms and of 0.3 s of the ramp.
    assert times == pytest.approx(_by_brute_force(HEAT, cool_s, n_steps), rel=0.01)
    assert times[0] >= cool_s
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in zip(times, times[1:], strict=False))


def test_after_the_ramp_every_step_is_hot() -> None:
    assert HEAT.step_times(10.0, 17.0, 30)[-1] == pytest.approx(17.0)
    assert Heat(0.0, 0.0, 0.5).step_times(10.0, 17.0, 2) == pytest.approx([17.0, 17.0])
    assert Heat(30.0, 60.0, 1.0).step_times(10.0, 10.0, 20) == pytest.approx([10.0] * 20)
