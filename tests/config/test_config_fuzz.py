"""Whatever is given: a Config or a ConfigError, never anything else."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncloop.config import Config, dumps, load_config
from asyncloop.errors import ConfigError

keys = st.sampled_from(
    [
        "run",
        "dataset",
        "model",
        "engine",
        "hooks",
        "eval",
        "extends",
        "!replace",
        "class",
        "name",
        "epochs",
        "buffer",
        "every",
        "lr",
        "n",
        "a.b",
        "0",
        "valid",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats()
    | st.dates()
    | st.text(max_size=4)
    | st.sampled_from(["parts:Data", "parts:Net", "parts:Save", "MLP", "${run.name}", "${model}", "${env:HOME}", "${"])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
documents = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.fixed_dictionaries({"class": st.just("parts:Data")}, optional={"n": values, "limits": values}),
        "model": st.fixed_dictionaries({"class": st.just("parts:Net")}, optional={"lr": values, "loose": values}),
        "run": values,
        "engine": values,
        "hooks": values,
        "eval": values,
    },
)
overrides = st.lists(st.text(st.sampled_from("abhks.0=[]{}\"'$ \n"), max_size=12), max_size=3)
lenient = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


@lenient
@given(documents | st.dictionaries(keys, values, max_size=5), overrides, st.sampled_from([None, "valid"]))
def test_any_mapping_is_a_config_or_a_config_error(document, set, for_eval):
    with contextlib.suppress(ConfigError):
        config = load_config(document, set=set, for_eval=for_eval)
        assert isinstance(config, Config)
        dumps(config.resolved)


@lenient
@given(st.text() | st.text(st.sampled_from("[]{}=\"\n.#ab1\\ 'r")))
def test_any_text_is_a_config_or_a_config_error(project, text):
    (project / "cfg.toml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError):
        load_config("cfg.toml")


@pytest.mark.parametrize("depth", [50, 200, 400, 5000])
def test_depth_is_no_danger(depth):
    nested = 1
    for _ in range(depth):
        nested = {"a": nested}
    with contextlib.suppress(ConfigError):
        load_config({"dataset": {"class": "parts:Anything", "x": nested}, "model": {"class": "parts:Net"}})
