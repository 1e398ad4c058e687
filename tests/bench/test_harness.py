"""The benchmark's harness: what it finds wrong, what it makes of numbers, what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as program
from bench.harness import Goal, Metric, Plan, Row, Scenario, Spread, WrongResult, run_scenario, timed
from bench.harness import row as row_of
from bench.job import Batch, Job, Outcome, make_batches
from bench.report import as_json
from bench.scenarios.digits import beside_the_bare_loop
from bench.stages import NoOp
from bench.systems.plain import PlainLoop
from bench.systems.registry import all_systems, missing

JOB = Job(make_batches(10), NoOp, [None, None])


@dataclass
class Spoiled:
    """The plain loop, whose outcome is changed before it is handed over."""

    change: Callable[[Outcome], Outcome]
    name: str = "spoiled"
    family: str = "spoiled"
    form: Any = "threads"
    needs: tuple[str, ...] = ()

    def run(self, job: Job) -> Outcome:
        return self.change(PlainLoop().run(job))


def second_hook_saw(change: Callable[[list[Any]], list[Any]]) -> Spoiled:
    return Spoiled(lambda outcome: replace(outcome, seen=[outcome.seen[0], change(list(outcome.seen[1]))]))


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (second_hook_saw(lambda seen: seen[:4] + seen[5:]), "hook 1 never saw batch 4"),
        (second_hook_saw(lambda seen: seen[:3]), "hook 1 never saw batch 3 and 6 others"),
        (second_hook_saw(lambda seen: [*seen[:4], seen[3], *seen[4:]]), "hook 1 saw batch 3 more than once"),
        (second_hook_saw(lambda seen: [*seen[:2], seen[3], seen[2], *seen[4:]]), "hook 1 saw batch 3 where 2 was due"),
        (Spoiled(lambda outcome: replace(outcome, seen=outcome.seen[:1])), "1 of 2 hooks said what they saw"),
        (Spoiled(lambda outcome: replace(outcome, n_runs=9)), "the model ran 9 times for 10 batches"),
        (Spoiled(lambda outcome: replace(outcome, n_done=[10, 9])), "hook 1 was done with 9 of 10 batches"),
    ],
)
def test_a_system_that_loses_doubles_or_swaps_a_batch_is_found(system: Spoiled, words: str) -> None:
    with pytest.raises(WrongResult, match=words):
        timed(system, JOB)()


class Summing:
    """A hook that comes to something."""

    def __init__(self) -> None:
        self.total = 0

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.total += int(batch["id"][0])

    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.blocking(batch, outputs)

    def told(self) -> object:
        return self.total


def test_a_system_that_ends_with_other_weights_or_whose_hooks_were_told_other_things_is_found() -> None:
    job = replace(JOB, hooks=[Summing()])
    expected = PlainLoop().run(job)
    assert expected.told == [45]
    for change, words in (({"weights": "others"}, "final weights"), ({"told": [44]}, r"hooks came to \[44\]")):
        spoiled = Spoiled(lambda outcome, change=change: replace(outcome, **change))
        with pytest.raises(WrongResult, match=words):
            beside_the_bare_loop(spoiled, job, lambda: expected)()
    for _ in range(2):  # with hooks that have heard of nothing yet
        beside_the_bare_loop(PlainLoop(), job, lambda: expected)()


SECONDS = Metric("time", "s", lambda one, name: one[name]["s"])


def scripted(name: str, values: Sequence[float], **given: Any) -> Row:
    """A row that reads these values, one a round."""
    left = iter(values)
    return Row(name, "ours", lambda: {"s": next(left)}, **given)


def test_medians_spreads_and_verdicts_are_of_the_rounds() -> None:
    def ratio(one: Any) -> float:
        return one["slow"]["s"] / one["floor"]["s"]

    goals = [
        Goal("must and moonshot", ratio, "×", must=3, moonshot=2.5),
        Goal("must only", ratio, "×", must=3, moonshot=2),
        Goal("neither", ratio, "×", must=2, moonshot=1),
        Goal("more is better", ratio, "×", must=2.5, moonshot=2.6, better="more"),
        Goal("of a row that is not there", lambda one: one["absent"]["s"], "s", must=1),
    ]
    rows = [scripted("slow", [20, 6, 10]), scripted("floor", [1, 4, 4], reference=True)]
    result = run_scenario(Scenario("script", "", rows, [SECONDS], goals), n_rounds=3)
    assert result.measured[0].spreads["time"] == Spread((20, 6, 10))
    assert result.measured[0].spreads["time"].median == 10
    assert (result.measured[0].spreads["time"].least, result.measured[0].spreads["time"].most) == (6, 20)
    assert [verdict.spread.median if verdict.spread else None for verdict in result.verdicts] == [2.5] * 4 + [None]
    assert [verdict.must for verdict in result.verdicts] == [True, True, False, True, None]
    assert [verdict.moonshot for verdict in result.verdicts] == [True, False, False, False, None]
    assert [verdict.goal.name for verdict in result.missed] == ["neither"]


def test_every_round_measures_the_references_first_and_the_others_in_another_order() -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[], dict[str, float]]:
        return lambda: order.append(name) or {"s": 1.0}

    rows = [Row(name, "ours", noting(name), reference=name == "floor") for name in ("a", "b", "c", "floor")]
    run_scenario(Scenario("order", "", rows, [SECONDS]), n_rounds=3)
    assert order == ["floor", "a", "b", "c", "floor", "b", "c", "a", "floor", "c", "a", "b"]


def test_a_row_that_is_wrong_or_breaks_is_invalid_and_never_a_number() -> None:
    def breaks() -> dict[str, float]:
        raise OSError("the disk is full")

    rows = [
        row_of(second_hook_saw(lambda seen: seen[1:]), timed(second_hook_saw(lambda seen: seen[1:]), JOB)),
        Row("breaks", "ours", breaks),
        row_of(PlainLoop(), timed(PlainLoop(), JOB)),
    ]
    goal = Goal("about it", lambda one: one["spoiled"]["batch_s"], "s", must=1)
    metric = Metric("time", "s", lambda one, name: one[name]["batch_s"])
    result = run_scenario(Scenario("wrong", "", rows, [metric], [goal]), n_rounds=2)
    assert [(measured.row.name, measured.wrong) for measured in result.invalid] == [
        ("spoiled", "hook 1 never saw batch 0"),
        ("breaks", "OSError: the disk is full"),
    ]
    shown = {entry["name"]: entry for entry in as_json(result, quick=False)["rows"]}
    assert shown["spoiled"]["metrics"] == {} == shown["breaks"]["metrics"]
    assert len(shown["plain loop"]["metrics"]["time"]["values"]) == 2
    assert result.verdicts[0].must is None


def test_what_is_not_installed_is_left_out_with_a_note() -> None:
    absent = replace(second_hook_saw(list), needs=("json", "no_such_module", "no_such.part"))
    result = run_scenario(Scenario("absent", "", [row_of(absent, timed(absent, JOB))], [SECONDS]), n_rounds=1)
    assert result.measured == []
    assert result.left_out == {"spoiled": "not installed: no_such_module, no_such.part"}


def test_a_row_is_prepared_before_all_rounds_and_finished_after_them_whatever_happens() -> None:
    order: list[str] = []

    def noting(what: str) -> Callable[[], Any]:
        return lambda: order.append(what) or {"s": 1.0}

    def breaks() -> None:
        raise MemoryError("too large")

    mine = Row("mine", "ours", noting("measured"), prepare=noting("prepared"), finish=noting("finished"))
    large = Row("large", "ours", noting("never"), prepare=breaks, finish=noting("finished too"))
    result = run_scenario(Scenario("prepared", "", [mine, large], [SECONDS]), n_rounds=2)
    assert order == ["prepared", "measured", "measured", "finished", "finished too"]
    assert [measured.wrong for measured in result.measured] == [None, "MemoryError: too large"]


def test_no_round_begins_that_would_end_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes_ten_seconds() -> dict[str, float]:
        nonlocal now
        now += 10
        return {"s": 10}

    monkeypatch.setattr("bench.harness.time.perf_counter", lambda: now)
    rows = [Row("mine", "ours", takes_ten_seconds)]

    def n_rounds(budget_s: float) -> int:
        return run_scenario(Scenario("long", "", rows, [SECONDS]), n_rounds=5, budget_s=budget_s).n_rounds

    assert n_rounds(5) == 1
    assert n_rounds(39) == 3
    assert n_rounds(1000) == 5


def test_only_the_families_asked_for_are_measured_and_the_references() -> None:
    rows = [
        scripted("mine", [1]),
        replace(scripted("theirs", [1]), family="theirs"),
        scripted("floor", [1], reference=True),
    ]
    result = run_scenario(Scenario("some", "", rows, [SECONDS]), n_rounds=1, families=["theirs"])
    assert {measured.row.name for measured in result.measured} == {"theirs", "floor"}


def test_no_peer_is_imported_before_it_is_measured_and_each_says_what_it_needs() -> None:
    for name, system in all_systems().items():
        assert system.name == name
        note = missing(system.needs)
        assert note is None or note.startswith("not installed: ")


def test_whoever_is_ahead_of_us_is_named() -> None:
    rows = [
        replace(scripted("asyncloop uvloop", [3]), family="asyncloop"),
        replace(scripted("asyncloop asyncio", [4]), family="asyncloop"),
        replace(scripted("faster", [2]), family="theirs"),
        replace(scripted("fastest", [1]), family="theirs"),
        replace(scripted("slower", [3.5]), family="theirs"),
        scripted("floor", [0], reference=True),
    ]
    assert run_scenario(Scenario("race", "", rows, [SECONDS]), n_rounds=1).ahead == {
        "asyncloop uvloop": ["fastest", "faster"],
        "asyncloop asyncio": ["fastest", "faster", "slower"],
    }


@pytest.fixture
def one_scenario(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Row], Sequence[Goal]], None]:
    """Puts one scenario in the place of all."""

    def put(rows: Sequence[Row], goals: Sequence[Goal]) -> None:
        def build(plan: Plan) -> Scenario:
            return Scenario("only", "", rows, [SECONDS], goals)

        monkeypatch.setattr(program, "scenarios", lambda: {"only": build})

    return put


def test_the_exit_code_tells_of_invalid_rows_and_with_check_of_missed_goals(
    one_scenario: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rounds", "1", "--results", str(tmp_path)]
    goal = Goal("fast", lambda one: one["mine"]["s"], "s", must=1)
    one_scenario([scripted("mine", [2, 2])], [goal])
    assert program.main(arguments) == 0
    assert program.main([*arguments, "--check"]) == 1
    assert json.loads((tmp_path / "only.part.json").read_text())["goals"][0]["must_reached"] is False
    assert not (tmp_path / "only.json").exists()
    one_scenario([scripted("mine", [1])], [replace(goal, value=lambda one: one["theirs"]["s"])])
    assert program.main([*arguments, "--check"]) == 1
    assert "not judged, because a row is missing: 1 musts" in capsys.readouterr().out
    one_scenario([scripted("mine", [])], [])
    assert program.main(arguments) == 1
    assert "INVALID: mine" in capsys.readouterr().out
    assert program.main(["no-such"]) == 2 == program.main(["--systems", "no-such"])
    with pytest.raises(SystemExit, match="2"):
        program.main(["--rounds", "0"])


def test_what_was_measured_before_a_ctrl_c_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> dict[str, float]:
        raise KeyboardInterrupt

    goal = Goal("fast", lambda one: one["mine"]["s"], "s", must=3)
    scenarios = {
        "first": Scenario("first", "", [scripted("mine", [2] * 5)], [SECONDS], [goal]),
        "second": Scenario("second", "", [Row("mine", "ours", interrupted)], [SECONDS]),
    }
    built = {name: lambda plan, found=found: found for name, found in scenarios.items()}
    monkeypatch.setattr(program, "scenarios", lambda: built)
    assert program.main(["--results", str(tmp_path)]) == 130
    shown = capsys.readouterr().out
    assert "interrupted in second" in shown
    assert "1 of 1 musts reached" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["first.json"]


def test_a_scenario_that_says_how_many_rounds_it_takes_gets_so_many_unless_one_is_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def n_rounds(*arguments: str) -> int:
        rows = [scripted("mine", [1] * 9)]
        monkeypatch.setattr(program, "scenarios", lambda: {"long": lambda plan: replace(scenario, rows=rows)})
        program.main([*arguments, "--results", str(tmp_path)])
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return json.loads(newest.read_text())["rounds"]

    scenario = Scenario("long", "", [], [SECONDS], n_rounds=1)
    assert n_rounds() == 1
    assert n_rounds("--rounds", "2") == 2
    scenario = replace(scenario, n_rounds=None)
    assert n_rounds() == 5


def test_the_page_names_every_must_that_the_results_miss(capsys: pytest.CaptureFixture[str]) -> None:
    """After new results: put what `python -m bench --missed` prints between the marks in bench/README.md."""
    assert program.main(["--missed"]) == 0
    page = (Path(program.__file__).parent / "README.md").read_text()
    assert page.partition("<!-- missed -->\n")[2].partition("<!-- /missed -->")[0] == capsys.readouterr().out
