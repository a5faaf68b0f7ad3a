"""Charts say what they show, on round axes, and nothing in them is markup but their own."""

import json
import math
import re
from html import unescape

import pytest
from hypothesis import given, strategies as st

from alignkit.contract.events import Metrics, Sample
from alignkit.show.charts import Axis, Node, Series, bar_chart, graph, histogram, line_chart, thinned, ticks
from alignkit.show.pictures import curves_of, pictures_of
from alignkit.show.sample_cards import cards_of


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1]),
        (0.09, 0.85, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3.0, 14.0, [-5, 0, 5, 10, 15]),
        (1e-9, 3e-9, [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9]),
        (2.0, 2.0, [1.8, 1.9, 2, 2.1, 2.2]),
    ],
)
def test_ticks_are_round_and_reach_over_both_ends(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12))
def test_ticks_of_anything_are_few_and_reach_over_it(low: float, wide: float) -> None:
    found = ticks(low, low + wide)

    assert 2 <= len(found) <= 8
    slack = 1e-6 * (abs(low) + wide)
    assert found[0] <= low + slack
    assert found[-1] >= low + wide - slack


def lines(chart: str) -> list[str]:
    return re.findall(r'points="([^"]*)"', chart)


def test_a_line_runs_from_corner_to_corner() -> None:
    chart = line_chart("loss", [Series("loss", [(0, 4.0), (2, 0.0), (4, 4.0)])], Axis("step", whole=True), Axis(""))

    assert lines(chart) == ["46.0,22.0 188.0,166.0 330.0,22.0"]


def test_a_line_is_interrupted_where_a_value_is_not_finite() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 2.0), (5, 1.0)]

    chart = line_chart("loss", [Series("loss", points)], Axis("step"), Axis(""))

    assert [len(line.split()) for line in lines(chart)] == [2, 2]


def test_the_script_can_tell_the_values_again() -> None:
    chart = line_chart("loss", [Series("a<b", [(10, 4.0), (30, 0.0)])], Axis("step", whole=True), Axis(""))
    data = json.loads(unescape(re.findall(r'data-chart="([^"]*)"', chart)[0]))

    assert data == {"x": [10, 30, 46, 330], "y": [0, 4, 166, 22], "names": ["a<b"], "over": "step"}


def test_texts_of_charts_are_escaped() -> None:
    evil = '<script>"&'

    for drawn in (
        line_chart(evil, [Series(evil, [(0, 1.0), (1, 2.0)], "path")], Axis(evil), Axis(evil)),
        bar_chart(evil, [(evil, 1.0)], Axis(evil), Axis(evil)),
        graph([Node(evil, (evil,), evil, ())]),
    ):
        assert "<script" not in drawn
        assert 'script>"' not in drawn


def test_a_chart_of_nothing_is_empty() -> None:
    assert line_chart("", [Series("", [(0, math.nan)])], Axis(""), Axis("")) == ""
    assert bar_chart("", [], Axis(""), Axis("")) == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    assert sum(count for _, count in histogram(values)) == len(values)


def test_thinning_keeps_ends_and_spikes() -> None:
    series = [(float(n), 0.0) for n in range(10_000)]
    series[4321] = (4321.0, 99.0)

    kept = thinned(series, 300)

    assert len(kept) <= 300
    assert (kept[0], kept[-1]) == ((0.0, 0.0), (9999.0, 0.0))
    assert (4321.0, 99.0) in kept
    assert kept == sorted(kept)


def test_boxes_stand_below_those_that_they_start_from() -> None:
    drawn = graph([Node("a", (), "finished", ()), Node("b", (), "open", ("a",)), Node("c", (), "open", ("a", "b"))])

    tops = [float(top) for top in re.findall(r'<rect [^>]*y="([0-9.]+)"', drawn)]
    assert tops == sorted(tops)
    assert len({*tops}) == 3
    assert drawn.count("<path") == 3


def test_the_curves_that_matter_come_first() -> None:
    told = [
        Metrics("first", n, 2, {"a": n, "lr": n, "loss": n, "objective/kl": n, "objective/scores": n}) for n in range(2)
    ]

    assert [curve.title for curve in curves_of(told, 300)] == ["reward", "KL", "loss", "a", "lr"]


def test_a_metric_that_was_told_once_is_no_curve() -> None:
    assert curves_of([Metrics("first", 1, 1, {"loss": 1.0})], 300) == []


def test_both_sides_of_pairs_stand_in_one_chart() -> None:
    told = [Metrics("first", n, 2, {"logps/chosen": -n, "logps/rejected": -2 * n}) for n in range(3)]

    (curve,) = curves_of(told, 300)

    assert (curve.title, curve.legend) == ("logps", ["chosen", "rejected"])


def test_margins_are_drawn_with_calibration_and_length() -> None:
    margins, longer = [3.0, 2.0, -1.0, 0.5] * 10, [4.0, 1.0, -2.0, 0.0] * 10

    drawn = {one.title: one for one in pictures_of([], {"margin": margins, "longer": longer})}

    assert [*drawn] == ["Margins", "Calibration", "Accuracy by difference of length"]
    assert drawn["Margins"].told.startswith("75% of 40 pairs")
    # how sure: 0.953, 0.881, 0.731, 0.622; right: 1, 1, 0, 1
    off = (1 - 0.9526 + 1 - 0.8808 + 0.7311 + 1 - 0.6225) / 4
    assert drawn["Calibration"].told.startswith(f"on average {off:.2f} off the line")


def test_an_online_run_has_its_path_and_rewards_against_lengths() -> None:
    told = [Metrics("align", n, 3, {"objective/kl": n, "objective/scores": 2 * n}) for n in range(3)]
    rows = {"reward before": [0.0, 1.0], "length before": [5, 6], "reward": [1.0, 2.0], "length": [7, 8]}

    path, lengths = pictures_of(told, rows)

    assert (path.title, path.chart.count("<circle")) == ("Path in KL and reward", 3)
    assert (lengths.title, lengths.legend) == ("Reward against length", ["before", "after"])


def test_cards_put_numbers_to_their_texts_and_tell_what_changed() -> None:
    row = {"prompt": " why? ", "before": "no", "after": "yes", "reward before": 0.25, "reward after": 1.0, "n": 3.0}
    samples = [Sample("s", row, "worst"), Sample("s", row, "best"), Sample("s", row)]

    kinds = cards_of(samples, 8)

    assert [called for called, _ in kinds] == ["best", "worst", "others"]
    (card,) = kinds[0][1]
    assert (card.prompt, card.numbers) == ("why?", [("n", "3")])
    assert [(said.name, said.text, said.numbers, said.change, said.better) for said in card.said] == [
        ("before", "no", [("reward", "0.25")], "", False),
        ("after", "yes", [("reward", "1")], "+0.75", True),
    ]


def test_a_cost_is_drawn_with_its_bound_and_before_its_multiplier() -> None:
    told = [Metrics("s", n, 3, {"loss": n, "lambda/harm": n, "cost/harm": n, "objective/scores": n}) for n in range(3)]

    curves = curves_of(told, 300, {"cost/harm": 0.05})

    assert [curve.title for curve in curves] == ["reward", "cost/harm", "lambda/harm", "loss"]
    assert [curve.legend for curve in curves[1:3]] == [["cost/harm", "bound"], ["lambda/harm"]]


def test_steps_are_dots_on_a_line_with_a_word_beside_each() -> None:
    series = Series("best of n", [(0.2, 1.0), (0.6, 2.0)], "steps", words=["2", "<4>"])

    chart = line_chart("best", [series], Axis("KL"), Axis("gold"))

    assert len(lines(chart)) == 1
    assert chart.count("<circle") == 2
    assert ">2</text>" in chart
    assert ">&lt;4&gt;</text>" in chart
