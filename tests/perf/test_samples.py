"""Figures: what each round gives, and none from too few rounds."""

import pytest

from perf.samples import MIN_ROUNDS, Figure, NotEnoughSamples


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


def test_sides_of_different_rounds_are_no_ratio() -> None:
    with pytest.raises(ValueError):
        _ = Figure("", "ratio", [1.0] * 6, [1.0] * 5).median
