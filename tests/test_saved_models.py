"""Ensembles and sequences of saved runs, and runs whose model's class is gone."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncloop
from asyncloop import AfterBatch, CheckpointError, ConfigError, ModelError
from asyncloop.evaluation import open_evaluation
from asyncloop.models import Ensemble, Sequence
from asyncloop.models.aggregation import aggregated

PARTS = """
import threading
import numpy as np
import asyncloop

built, together = [], threading.Barrier(3)

class Data:
    n_classes = 3
    def __init__(self, n: int = 12, source: str = "label"):
        self.n, self.source = n, source
    def train_stream(self):
        rng = np.random.default_rng(0)
        for _ in range(3):
            label = rng.integers(0, 3, self.n)
            yield {"image": (label[:, None] + rng.normal(size=(self.n, 4))).astype("float32"), self.source: label}
    valid_stream = train_stream

class Says:
    '''Gives what it was configured with.'''
    input_names = ("image",)
    def __init__(self, says=1, gives: str = "answer", wants: str = "image", does: str = ""):
        built.append(threading.get_ident())
        self.says, self.does, self.input_names, self.output_names = says, does, (wants,), (gives,)
        self.ran_on = []
    def run(self, batch, *, train, stream):
        self.ran_on.append(threading.get_ident())
        asyncloop.log("said", 1.0 if self.says == 1 else 3.0)
        if self.does == "fail" and stream == "valid":
            raise RuntimeError("no answer")
        if self.does == "meet" and stream == "met":
            together.wait(10)
        if self.does == "add":
            return {self.output_names[0]: batch[self.input_names[0]] + self.says}
        if self.does == "lazy":
            return {self.output_names[0]: lambda: self.says}
        if self.does == "nest":
            return {self.output_names[0]: {"logits": np.full(2, float(self.says)), "n": self.says}}
        if self.does == "keep silent":
            return {}
        says = self.says
        return {self.output_names[0]: np.array(says) if isinstance(says, list) else says}
    def state_dict(self):
        return {"says": self.says}
    def load_state_dict(self, state):
        self.says = state["says"]

class Async(Says):
    async def run(self, batch, *, train, stream):
        return {"answer": 1}

class Wants(Says):
    def __init__(self, dataset, says: int = 1):
        super().__init__(dataset.n)

class Old:
    '''An MLP under another name, with an argument of its own.'''
    restore_fallback = "asyncloop.models:SoftmaxRegression"
    def __new__(cls, n_inputs: int, n_classes: int, flavour: str = "sweet"):
        model = asyncloop.models.SoftmaxRegression(n_inputs=n_inputs, n_classes=n_classes)
        model.restore_fallback = cls.restore_fallback
        return model
    def __init__(self, n_inputs: int, n_classes: int, flavour: str = "sweet"):
        pass
"""

BATCH = {"image": np.ones((2, 4), "float32"), "label": np.array([0, 1])}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "saved_parts.py").write_text("import asyncloop.models\n" + textwrap.dedent(PARTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "saved_parts", raising=False)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("saved_parts", None)
    gc.collect()


@pytest.fixture
def saved(project: Path) -> Callable[..., str]:
    """Trains a run of one epoch; its directory's name."""

    def train(
        cls: str = "saved_parts:Says", *, name: str = "member", root: str = "runs", source: str = "label", **model: Any
    ) -> str:
        result = asyncloop.run(
            {
                "run": {"name": name, "root": root},
                "dataset": {"class": "saved_parts:Data", "source": source},
                "model": {"class": cls, **model},
                "engine": {"epochs": 1, "skip_zeroth_epoch": True, "on_unused_sources": "ignore"},
                "hooks": [{"class": "SaveLatest"}],
            }
        )
        assert result.dir is not None
        return result.dir.name

    return train


@pytest.fixture
def classifiers(saved: Callable[..., str]) -> list[str]:
    """Three MLPs from different seeds."""
    return [saved("MLP", n_inputs=4, n_classes=3, hidden=[5], lr=0.05, seed=seed) for seed in range(3)]


def asked(model: Any, stream: str = "test", batch: Any = BATCH) -> Any:
    try:
        return model.run(batch, train=False, stream=stream)
    finally:
        if isinstance(model, Ensemble):
            model.close()


# --- ensembles ----------------------------------------------------------------------------------------------------


def test_the_mean_is_that_of_the_members_own_outputs(classifiers: list[str]) -> None:
    own = [asyncloop.load_model(name).run(BATCH, train=False, stream="test") for name in classifiers]
    ensemble = Ensemble(classifiers)
    given = asked(ensemble)
    assert list(given) == list(ensemble.output_names) == ["loss", "accuracy", "prediction"]
    assert ensemble.input_names == ("image", "label")
    assert given["loss"] == pytest.approx(np.mean([each["loss"] for each in own]), abs=0)
    assert type(given["loss"]) is float
    np.testing.assert_array_equal(given["prediction"], np.mean([each["prediction"] for each in own], axis=0))


def test_the_majority_is_voted_for_each_element_and_of_equals_the_smallest_wins(saved: Callable[..., str]) -> None:
    says = [[[1, 5], [2, 9]], [[1, 4], [3, 9]], [[0, 6], [4, 7]]]
    given = asked(Ensemble([saved(says=each) for each in says], aggregation="majority"))
    assert given["answer"].tolist() == [[1, 4], [2, 9]]
    assert given["answer"].dtype == np.int64


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["cat", "ox"], ["cat", "dog"], ["horse", "dog"]], ["cat", "dog"]),
        (["yes", "no"], "no"),
        ([10**30, 2 * 10**30, 10**30], 10**30),
        ([np.array(["b", "a"], object), np.array(["b", "c"], object)], ["b", "a"]),
        ([True, True, False], True),
        ([np.nan, 1.0, 1.0], 1.0),
    ],
)
def test_votes_are_of_strings_and_numbers_of_any_kind(values: list[Any], expected: Any) -> None:
    result = aggregated("x", values, [str(i) for i in range(len(values))], "majority")
    assert (result.tolist() if isinstance(result, np.ndarray) else result) == expected
    assert isinstance(result, np.ndarray) == isinstance(expected, list)


def test_a_vote_is_the_mode_of_each_element() -> None:
    votes = np.random.default_rng(0).integers(0, 4, (7, 5, 3, 2))
    result = aggregated("x", list(votes), [""] * 7, "majority")
    for at in np.ndindex(result.shape):
        assert result[at] == np.bincount(votes[(slice(None), *at)]).argmax()


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        ([np.zeros(2), np.zeros(3)], "mean", r"'x' of run 1 has shape \(3,\), that of run 0 shape \(2,\)"),
        ([1, "one"], "majority", "'x' of run 1 holds strings, that of run 0 numbers"),
        (["one", "one"], "mean", r"'x', which holds strings, has no mean .*aggregation = \"majority\""),
        ([1, {"a": 1}], "mean", "'x' of run 0 is a int, that of run 0 a int|'x' of run 1 is a dict"),
        ([{"a": 1}, {"b": 1}], "mean", "'x' of run 1 has the parts b, that of run 0 a"),
        ([{"a": 1}, {"a": [1]}], "mean", r"'x/a' of run 1 has shape \(1,\)"),
        ([[1], [[1], [1, 2]]], "mean", "'x' of run 1 is no array"),
        ([None, 1], "mean", "'x' of run 1 holds numbers, that of run 0 objects"),
        ([None, None], "majority", "'x', which holds objects, has no majority.*leave it out"),
    ],
)
def test_outputs_that_do_not_go_together_are_named(values: list[Any], how: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        aggregated("x", values, ["run 0", "run 1"], how)


def test_nested_outputs_are_aggregated_leaf_by_leaf(saved: Callable[..., str]) -> None:
    given = asked(Ensemble([saved(says=1, does="nest"), saved(says=4, does="nest")]))
    assert given["answer"]["logits"].tolist() == [2.5, 2.5]
    assert given["answer"]["n"] == 2.5


def test_a_lazy_output_stays_lazy(saved: Callable[..., str]) -> None:
    given = asked(Ensemble([saved(says=1, does="lazy"), saved(says=2, does="lazy")]))
    assert given["answer"]() == 1.5


def test_members_are_loaded_at_the_first_run_or_at_once(saved: Callable[..., str]) -> None:
    runs = [saved(), saved()]
    built = sys.modules["saved_parts"].built
    built.clear()
    lazy = Ensemble(runs)
    assert built == []
    asked(lazy)
    asked(lazy)
    assert len(built) == 2
    Ensemble(runs, eager=True).close()
    assert len(built) == 4


@pytest.mark.parametrize("kind", [Ensemble, Sequence])
def test_names_come_from_the_checkpoints_that_tell_them_and_no_model_is_loaded_for_it(
    saved: Callable[..., str], project: Path, kind: Any
) -> None:
    name = saved()
    manifest = project / "runs" / name / "checkpoints/step-00000003/manifest.json"
    written = json.loads(manifest.read_text())
    written["engine"] |= {"input_names": ["i"], "output_names": ["o", "p"]}
    manifest.write_text(json.dumps(written))
    built = sys.modules["saved_parts"].built
    built.clear()
    model = kind([name])
    assert (model.input_names, model.output_names) == (("i",), ("o", "p"))
    with pytest.raises(ModelError, match="'o'"):
        Sequence([name, name])
    assert built == []


def test_members_run_at_the_same_time_each_on_the_thread_it_was_built_on(saved: Callable[..., str]) -> None:
    runs = [saved(says=i, does="meet") for i in range(3)]
    sys.modules["saved_parts"].built.clear()
    ensemble = Ensemble(runs, eager=True)
    for _ in range(3):  # three at once, or the barrier breaks
        ensemble.run(BATCH, train=False, stream="met")
    members = [member.model for member in ensemble._members.loaded()]
    threads = [set(member.ran_on) for member in members]
    assert threads == [{ident} for ident in sys.modules["saved_parts"].built]
    assert threads[0] == {threading.get_ident()}
    assert len(set.union(*threads)) == 3
    ensemble.close()


def test_many_members_share_a_few_threads(saved: Callable[..., str]) -> None:
    ensemble = Ensemble([saved()] * 20)
    before = threading.active_count()
    ensemble.run(BATCH, train=False, stream="test")
    assert threading.active_count() == before + 7
    ensemble.close()


def test_a_members_failure_names_its_run_and_waits_for_the_others(saved: Callable[..., str]) -> None:
    runs = [saved(), saved(does="fail", name="broken"), saved()]
    ensemble = Ensemble(runs)
    with pytest.raises(RuntimeError, match="no answer") as told:
        asked(ensemble, "valid")
    assert any(runs[1] in note for note in told.value.__notes__)
    assert all(member.model.ran_on for member in ensemble._members.loaded())
    assert asked(ensemble)["answer"] == 1


def test_every_run_below_a_root_but_those_without_a_checkpoint_and_ensembles_themselves(
    saved: Callable[..., str], project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for says in (1, 3):
        saved(says=says, root="trained")
    shutil.rmtree(project / "trained" / saved(says=99, root="trained", name="bare") / "checkpoints")
    over_them = {"class": "Ensemble", "root": "trained"}
    asyncloop.run(
        {
            "run": {"root": "trained"},
            "dataset": {"class": "saved_parts:Data"},
            "model": over_them,
            "engine": {"epochs": 0},
        }
    )
    with caplog.at_level(logging.WARNING):
        assert asked(Ensemble(root="trained"))["answer"] == 2
    assert "left out, for they have no checkpoint: bare-" in caplog.text


def test_runs_are_found_below_the_root_by_prefix_path_and_id(saved: Callable[..., str], project: Path) -> None:
    one, two = saved(root="a/b", name="one"), saved(says=2, name="two")
    assert asked(Ensemble(["one"], root="a/b"))["answer"] == 1
    assert asked(Ensemble([f"b/{one}"], root="a"))["answer"] == 1
    assert asked(Ensemble([str(project / "runs" / two), f"runs/{two}"], root="a/b"))["answer"] == 2
    assert asked(Ensemble([two.rpartition("-")[2], "latest"]))["answer"] == 2


def test_a_run_stays_found_when_the_working_directory_changes(
    saved: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble([saved(says=7)])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert asked(ensemble)["answer"] == 7


def test_members_get_the_models_dataset_or_else_their_own(saved: Callable[..., str]) -> None:
    name = saved("saved_parts:Wants")
    data = sys.modules["saved_parts"].Data(n=5)
    for dataset in (None, data):
        ensemble = Ensemble([name], dataset=dataset, eager=True)
        (member,) = ensemble._members.loaded()
        assert member.model.says == 12  # of the checkpoint
    load = asyncloop.load_model
    assert load(name, dataset=data).says == load(name).says == 12


def test_a_checkpoint_can_be_chosen_for_all(saved: Callable[..., str]) -> None:
    name = saved()
    assert asked(Ensemble([name], checkpoint="3"))["answer"] == 1
    with pytest.raises(CheckpointError, match="no checkpoint 'best'"):
        Ensemble([name], checkpoint="best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Ensemble: give runs, a list of saved runs, or root"),
        ({"runs": []}, r"Ensemble: runs = \[\], expected a list"),
        ({"runs": "one"}, "Ensemble: runs = 'one', expected a list"),
        ({"runs": ["nope", "neither"]}, "runs: no run matches 'nope' in runs(.|\n)*no run matches 'neither'"),
        ({"root": "nowhere"}, "root = 'nowhere' has no run with a checkpoint"),
        ({"runs": ["latest"], "aggregation": "median"}, "aggregation = 'median', expected one of 'mean', 'majority'"),
        ({"runs": ["latest"], "outputs": []}, r"outputs = \[\], expected a list of names"),
    ],
)
def test_wrong_arguments_are_named(project: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ensemble(**arguments)


def test_outputs_have_to_be_those_of_every_member(saved: Callable[..., str]) -> None:
    both, other = saved("MLP", n_inputs=4, n_classes=3), saved(name="other")
    with pytest.raises(ModelError, match=f"outputs: run {other} has no output 'loss', only 'answer'"):
        asked(Ensemble([both, other], outputs=["loss"]))
    with pytest.raises(ModelError, match=f"no output in common: run {both} has 'loss', .*run {other} has 'answer'"):
        asked(Ensemble([both, other]))
    assert list(asked(Ensemble([both], outputs=["loss"]))) == ["loss"]


def test_a_declared_output_that_does_not_come_is_named(saved: Callable[..., str]) -> None:
    silent = saved(does="keep silent")
    with pytest.raises(ModelError, match=f"run {silent} declares the output 'answer' but gave only nothing"):
        asked(Ensemble([saved(), silent]))


def test_an_input_that_the_batch_lacks_is_named_with_its_member(saved: Callable[..., str]) -> None:
    one, two = saved(), saved(wants="label")
    ensemble = Ensemble([one, two])
    assert ensemble.input_names == ("image", "label")
    with pytest.raises(ModelError, match=f"stream 'test': run {two} lacks its input 'label'"):
        asked(ensemble, batch={"image": BATCH["image"]})


@pytest.mark.parametrize("kind", [Ensemble, Sequence])
def test_neither_is_trained_nor_has_a_state(saved: Callable[..., str], kind: Any) -> None:
    model = kind([saved()])
    with pytest.raises(ModelError, match="cannot be trained, it only evaluates saved runs; set epochs = 0"):
        model.run(BATCH, train=True, stream="train")
    assert model.state_dict() == {}
    model.load_state_dict({})
    with pytest.raises(ModelError, match="has no weights of its own, but the state has 'says'"):
        model.load_state_dict({"says": 1})


@pytest.mark.parametrize("kind", [Ensemble, Sequence])
def test_an_async_model_is_refused(saved: Callable[..., str], kind: Any) -> None:
    name = saved("saved_parts:Async")
    with pytest.raises(ModelError, match=f"run {name}: its model's run is async"):
        kind([name], eager=True)


@pytest.mark.parametrize("kind", [Ensemble, Sequence])
def test_damage_is_told_when_it_is_loaded_with_its_run(saved: Callable[..., str], project: Path, kind: Any) -> None:
    name = saved()
    (project / "runs" / name / "checkpoints/step-00000003/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged") as told:
        kind([name], eager=True)
    assert any(name in note for note in told.value.__notes__)


# --- sequences ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(saved: Callable[..., str]) -> list[str]:
    """label → a = label + 1 → b = a + 10."""
    return [
        saved(says=1, does="add", wants="label", gives="a", name="first"),
        saved(says=10, does="add", wants="a", gives="b", name="second", source="a"),
    ]


def test_a_chain_gives_all_outputs_and_wants_what_no_part_gives(chain: list[str]) -> None:
    sequence = Sequence(chain)
    given = asked(sequence)
    assert {name: value.tolist() for name, value in given.items()} == {"a": [1, 2], "b": [11, 12]}
    assert (sequence.input_names, sequence.output_names) == (("label",), ("a", "b"))
    assert set(BATCH) == {"image", "label"}


def test_an_output_that_two_models_give_is_named_with_both(saved: Callable[..., str]) -> None:
    runs = [saved(name="first"), saved(name="second")]
    with pytest.raises(ModelError, match="the output 'answer' of run second-.* has the name of one of run first-"):
        Sequence(runs, eager=True)


def test_a_chain_in_the_wrong_order_is_refused(chain: list[str]) -> None:
    with pytest.raises(
        ModelError, match="run second-.* lacks its input 'a', which only run first-.* gives.*change the order"
    ):
        Sequence(chain[::-1], eager=True)


def test_an_input_that_nobody_gives_is_named_with_its_model(chain: list[str]) -> None:
    sequence = Sequence(chain[1:], eager=True)
    assert sequence.input_names == ("a",)
    with pytest.raises(ModelError, match="run second-.* lacks its input 'a'; .* give 'image', 'label'"):
        asked(sequence)


def test_an_output_named_like_a_source_is_refused(chain: list[str]) -> None:
    with pytest.raises(ModelError, match="'a' of run first-.* has the name of one of the batch"):
        asked(Sequence(chain[:1]), batch={**BATCH, "a": 1})


def test_a_lazy_output_is_called_only_for_a_later_model(chain: list[str], saved: Callable[..., str]) -> None:
    lazy = saved(says=1, does="lazy", gives="a")
    given = asked(Sequence([lazy, chain[1]]))
    assert (given["a"], given["b"]) == (1, 11)
    assert asked(Sequence([lazy]))["a"]() == 1


def test_models_of_a_sequence_are_loaded_at_the_first_run(chain: list[str]) -> None:
    built = sys.modules["saved_parts"].built
    built.clear()
    sequence = Sequence(chain)
    assert built == []
    asked(sequence)
    asked(sequence)
    assert len(built) == 2


# --- in a config --------------------------------------------------------------------------------------------------


def config(model: dict[str, Any], **engine: Any) -> dict[str, Any]:
    return {
        "run": {"name": "over", "root": "evaluated"},
        "dataset": {"class": "saved_parts:Data"},
        "model": model,
        "engine": {"epochs": 0, "extra_streams": ["valid"], "on_unused_sources": "ignore", **engine},
    }


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["Ensemble", "asyncloop.models:Ensemble"])
async def test_an_ensemble_is_evaluated_by_a_run_without_epochs(project: Path, anyio_backend: Any, name: str) -> None:
    runs = await trained(3)
    async with asyncloop.open_run(config({"class": name, "runs": runs, "outputs": ["answer"]})) as live:
        result = await live
    assert result.metrics["valid"] == {"answer": 2.0, "said": pytest.approx(7 / 3)}
    assert result.steps == 0
    assert result.dir is not None
    assert not list(result.dir.glob("checkpoints/step-*"))


async def trained(n: int, **model: Any) -> list[str]:
    """`n` saved runs that say 1, 2, …"""
    names: list[str] = []
    for says in range(1, n + 1):
        own = config({"class": "saved_parts:Says", "says": says, **model}, epochs=1, skip_zeroth_epoch=True)
        own["engine"]["extra_streams"] = []
        async with asyncloop.open_run({**own, "run": {"name": "member"}, "hooks": [{"class": "SaveLatest"}]}) as live:
            await live
        assert live.dir is not None
        names.append(live.dir.name)
    return names


@pytest.mark.anyio
async def test_training_an_ensemble_fails_with_what_to_do(project: Path) -> None:
    runs = await trained(2)
    with pytest.raises(ModelError, match="Ensemble cannot be trained.*epochs = 0"):
        async with asyncloop.open_run(config({"class": "Ensemble", "runs": runs}, epochs=1)) as live:
            await live


@pytest.mark.anyio
async def test_the_run_of_an_ensemble_is_evaluated_and_loaded_without_a_checkpoint(project: Path) -> None:
    runs = await trained(2)
    async with asyncloop.open_run(config({"class": "Ensemble", "runs": runs})) as live:
        await live
    assert live.dir is not None
    async with open_evaluation(live.dir, ["valid", "train"]) as again:
        result = await again
    assert {stream: values["answer"] for stream, values in result.metrics.items()} == {"valid": 1.5, "train": 1.5}
    assert again.dir is not None
    assert json.loads((again.dir / "run.json").read_text())["evaluation"]["checkpoint"] is None
    outer = Ensemble([str(live.dir), runs[0]])
    assert asked(outer)["answer"] == 1.25
    for member in outer._members.loaded():
        getattr(member.model, "close", int)()


@pytest.mark.anyio
async def test_another_runs_evaluation_can_be_by_an_ensemble(project: Path) -> None:
    runs = await trained(2)
    change = {"model": {"class": "Ensemble", "runs": runs}}
    async with open_evaluation(runs[0], ["valid"], set=change) as live:
        assert (await live).metrics["valid"]["answer"] == 1.5


@pytest.mark.anyio
async def test_a_run_that_is_not_there_is_named_with_its_place_in_the_config(project: Path) -> None:
    file = project / "cfg.toml"
    file.write_text(
        '[dataset]\nclass = "saved_parts:Data"\n[engine]\nepochs = 0\n[model]\nclass = "Ensemble"\nruns = ["nope"]\n'
    )
    with pytest.raises(ConfigError, match=r"cfg\.toml:7:8: .*no run matches 'nope'"):
        async with asyncloop.open_run(file):
            pass
    assert not (project / "runs").exists()


@pytest.mark.anyio
async def test_a_failing_member_ends_the_run_and_leaves_no_thread(project: Path) -> None:
    runs = await trained(2, does="fail")
    with pytest.raises(RuntimeError, match="no answer"):
        async with asyncloop.open_run(config({"class": "Ensemble", "runs": runs})) as live:
            await live


@pytest.mark.anyio
async def test_members_end_with_the_engines_thread(project: Path) -> None:
    ensemble = Ensemble(await trained(3))
    engine = asyncloop.Engine(
        ensemble, sys.modules["saved_parts"].Data(), on_unused_sources="ignore", extra_streams=["valid"]
    )
    names: set[str] = set()
    engine.bus.subscribe(AfterBatch, lambda event: names.update(each.name for each in threading.enumerate()))
    for _ in range(2):
        assert (await engine.evaluate("valid")).metrics["valid"]["answer"] == 2.0
    assert {"asyncloop member 1", "asyncloop member 2"} <= names
    # and the fixture that looks for threads left behind finds none, although the ensemble is still there


def test_both_are_among_what_a_config_may_name() -> None:
    from asyncloop import models
    from asyncloop.config.importing import import_object, shipped

    assert {"Ensemble", "Sequence"} <= set(models.__all__) & set(dir(models)) & set(shipped("model"))
    assert import_object("Sequence", kind="model") is Sequence
    with pytest.raises(AttributeError, match="has no attribute 'Ensembel'"):
        models.Ensembel  # type: ignore[attr-defined]


# --- a class that is gone -----------------------------------------------------------------------------------------


@pytest.fixture
def orphan(saved: Callable[..., str], project: Path) -> Path:
    """A run whose module is gone, the run's own copy too; its dataset was in it as well."""
    run = project / "runs" / saved("saved_parts:Old", n_inputs=4, n_classes=3, flavour="sour")
    (project / "saved_parts.py").unlink()
    shutil.rmtree(run / "code", ignore_errors=True)
    sys.modules.pop("saved_parts")
    return run


def test_a_model_whose_module_is_gone_is_restored_as_its_fallback(
    orphan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = asyncloop.load_model(orphan)
    assert type(model) is asyncloop.models.SoftmaxRegression
    assert model.run(BATCH, train=False, stream="test")["loss"] > 0
    assert "saved_parts:Old is gone; restored as asyncloop.models:SoftmaxRegression without flavour" in caplog.text
    assert model.state_dict()["optimizer"]["n_updates"] == 3


def test_a_model_whose_name_is_gone_from_its_module_is_restored_too(orphan: Path, project: Path) -> None:
    (project / "saved_parts.py").write_text(PARTS.replace("class Old", "class New"))
    assert asked(Ensemble([orphan.name]))["loss"] > 0


def test_a_fallback_that_is_gone_as_well_is_noted_on_the_error(saved: Callable[..., str], project: Path) -> None:
    parts = (project / "saved_parts.py").read_text()
    (project / "saved_parts.py").write_text(parts.replace("models:SoftmaxRegression", "models:Gone"))
    run = project / "runs" / saved("saved_parts:Old", n_inputs=4, n_classes=3)
    (project / "saved_parts.py").unlink()
    shutil.rmtree(run / "code", ignore_errors=True)
    sys.modules.pop("saved_parts")
    with pytest.raises(ConfigError, match="there is no module `saved_parts`") as told:
        asyncloop.load_model(run)
    assert any("restore_fallback cannot be imported either" in note for note in told.value.__notes__)


def test_a_fallback_that_wants_the_dataset_which_is_gone_too_is_refused(
    saved: Callable[..., str], project: Path
) -> None:
    (project / "other_parts.py").write_text((project / "saved_parts.py").read_text())
    parts = (project / "saved_parts.py").read_text()
    (project / "saved_parts.py").write_text(parts.replace("asyncloop.models:SoftmaxRegression", "other_parts:Wants"))
    run = project / "runs" / saved("saved_parts:Old", n_inputs=4, n_classes=3)
    (project / "saved_parts.py").unlink()
    shutil.rmtree(run / "code", ignore_errors=True)
    sys.modules.pop("saved_parts")
    with pytest.raises(ConfigError, match="dataset.class: there is no module `saved_parts`"):
        asyncloop.load_model(run)
    sys.modules.pop("other_parts")


def test_a_module_that_is_there_but_fails_is_not_replaced(orphan: Path, project: Path) -> None:
    (project / "saved_parts.py").write_text("import not_installed")
    with pytest.raises(ConfigError, match="`saved_parts` cannot be imported: ModuleNotFoundError"):
        asyncloop.load_model(orphan)


def test_without_a_fallback_the_missing_module_is_an_error(saved: Callable[..., str], project: Path) -> None:
    name = saved()
    (project / "saved_parts.py").unlink()
    shutil.rmtree(project / "runs" / name / "code", ignore_errors=True)
    sys.modules.pop("saved_parts")
    with pytest.raises(ConfigError, match="model.class: there is no module `saved_parts`"):
        asyncloop.load_model(name)


@pytest.mark.anyio
async def test_an_evaluation_restores_the_fallback_if_the_dataset_is_there(project: Path) -> None:
    own = config({"class": "saved_parts:Old", "n_inputs": 4, "n_classes": 3}, epochs=1, extra_streams=[])
    sections = {"hooks": [{"class": "SaveLatest"}], "eval": {"valid": {"model": {"flavour": "bitter"}}}}
    async with asyncloop.open_run({**own, **sections}) as live:
        await live
    assert live.dir is not None
    (project / "saved_parts.py").write_text(PARTS.replace("class Old", "class New"))
    shutil.rmtree(live.dir / "code", ignore_errors=True)
    sys.modules.pop("saved_parts")
    async with open_evaluation(live.dir, ["valid"]) as again:
        assert (await again).metrics["valid"]["loss"] > 0
