"""Figures: what each round gives, and none from too few rounds."""

import pytest

from perf.findings import MIN_ROUNDS, MIN_SLOPE_MINUTES, MIN_SLOPE_SAMPLES, Figure, NotEnoughSamples, number


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The ratio of the medians would be 30 / 10.
    figure = Figure("", "ratio", [10, 20, 30, 40, 50], [10, 10, 30, 10, 25])
    assert figure.per_round == [1, 2, 1, 4, 2]
    assert figure.median == 2


def test_a_difference_is_taken_round_by_round() -> None:
    assert Figure("", "difference", [5, 6, 7, 8, 9], [4, 4, 4, 4, 4]).median == 3


@pytest.mark.parametrize("kind", ["ratio", "difference", "value"])
@pytest.mark.parametrize("rounds", range(MIN_ROUNDS))
def test_too_few_rounds_give_no_figure_and_no_verdict(kind: str, rounds: int) -> None:
    figure = Figure("", kind, [1.0] * rounds, [1.0] * rounds, at_least=0.5)  # type: ignore[arg-type]
    for what in ("median", "is_met"):
        with pytest.raises(NotEnoughSamples, match=rf"not enough samples \({rounds} of 5 rounds\)"):
            getattr(figure, what)


def test_an_exact_number_needs_no_second_round() -> None:
    assert Figure("", "exact", [0.25]).median == 0.25


def test_a_slope_is_that_of_the_line_through_all_samples() -> None:
    minutes = [1 + index / 12 for index in range(109)]
    steady = [500 + (20 if index % 2 else -20) for index in range(109)]
    assert abs(Figure("", "slope", steady, minutes).median) < 0.1
    growing = [size + 2.5 * minute for size, minute in zip(steady, minutes, strict=True)]
    figure = Figure("", "slope", growing, minutes, at_most=1.0)
    assert figure.median == pytest.approx(2.5, abs=0.1) and figure.is_met is False


@pytest.mark.parametrize(
    ("count", "minutes"), [(0, 0.0), (MIN_SLOPE_SAMPLES - 1, 2 * MIN_SLOPE_MINUTES), (1000, 0.9 * MIN_SLOPE_MINUTES)]
)
def test_too_few_samples_or_minutes_give_no_slope(count: int, minutes: float) -> None:
    times = [minutes * index / max(1, count - 1) for index in range(count)]
    figure = Figure("", "slope", [1.0] * count, times, at_most=1.0)
    for what in ("median", "is_met"):
        with pytest.raises(NotEnoughSamples, match=rf"not enough samples \({count} in {minutes:.1f} minutes"):
            getattr(figure, what)


@pytest.mark.parametrize(
    ("at_least", "at_most", "met"),
    [
        (None, None, None),
        (1.0, None, True),
        (1.1, None, False),
        (None, 1.0, True),
        (None, 0.9, False),
        (0.9, 1.1, True),
    ],
)
def test_a_target_is_met_or_missed(at_least: float | None, at_most: float | None, met: bool | None) -> None:
    assert Figure("", "value", [1.0] * MIN_ROUNDS, at_least=at_least, at_most=at_most).is_met is met


@pytest.mark.parametrize(
    ("value", "text"), [(0.96543, "0.965"), (99.96, "100"), (999.7, "1000"), (12345.6, "12346"), (-1234.5, "-1234")]
)
def test_numbers_are_written_without_an_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_sides_of_different_rounds_are_no_ratio() -> None:
    with pytest.raises(ValueError):
        _ = Figure("", "ratio", [1.0] * 6, [1.0] * 5).median
