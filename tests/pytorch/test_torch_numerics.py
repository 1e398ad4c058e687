"""Precision and what is watched in a step: set for the step alone, and put back as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch_parts import Data, Net, a_model, on_asyncio, train

from asyncloop.torch import Clip
from asyncloop.torch.microbatches import number_of

pytestmark = pytest.mark.anyio


class Seeing(Net):
    """Notes PyTorch's settings in each forward pass, and the dtypes it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        self.seen.append(
            {
                "matmul": torch.get_float32_matmul_precision(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "anomaly": torch.is_anomaly_enabled(),
                "dtype": logits.dtype,
            }
        )
        return logits


def seen(*, train: bool = True, **settings: Any) -> dict[str, Any]:
    net = Seeing()
    a_model(module=net, **settings).run(Data(1).batches[0], train=train, stream="s")
    return net.seen[0]


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, {}),
        ({"precision": "tf32"}, {"matmul": "high"}),
        ({"precision": "bf16"}, {"dtype": torch.bfloat16}),
        ({"precision": "fp16"}, {"dtype": torch.float16}),
        ({"deterministic": True}, {"deterministic": True}),
        ({"detect_anomaly": True}, {"anomaly": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_setting_holds_while_a_step_runs_and_only_then(
    settings: dict[str, Any], changed: dict[str, Any], is_training: bool
) -> None:
    plain = {"matmul": "highest", "deterministic": False, "anomaly": False, "dtype": torch.float32}
    assert seen(train=is_training, **settings) == {**plain, **changed}
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()


def test_what_the_process_had_chosen_is_put_back_also_after_a_failure() -> None:
    class Fails(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ZeroDivisionError):
            a_model(module=Fails(), deterministic=True, precision="tf32").run(
                Data(1).batches[0], train=True, stream="train"
            )
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


@on_asyncio
async def test_an_operation_that_cannot_be_repeated_is_named_in_deterministic_mode() -> None:
    class Scattered(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits.put(torch.tensor([0, 0]), logits.flatten()[:2])

    await train(a_model(module=Scattered()), Data(2))
    with pytest.raises(RuntimeError, match=r"put_? does not have a deterministic implementation") as caught:
        await train(a_model(module=Scattered(), deterministic=True), Data(2))
    assert any("batch 0, step 1" in note for note in caught.value.__notes__)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@on_asyncio
async def test_the_operation_behind_a_nan_of_the_backward_pass_is_named() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(12, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.weight).abs().sqrt() * 0

    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"),
    ):
        await train(a_model(module=Rooted(), detect_anomaly=True), Data(1))


def test_the_losses_are_computed_in_full_precision_under_autocast() -> None:
    dtypes: list[torch.dtype] = []

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        found = nn.functional.cross_entropy(output, label)
        dtypes.append(found.dtype)
        return found

    a_model(loss=loss, precision="bf16").run(Data(1).batches[0], train=True, stream="train")
    assert dtypes == [torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_scalar_that_stays_on_a_device_is_widened_for_sums(dtype: torch.dtype) -> None:
    assert number_of(torch.zeros((), dtype=dtype, device="meta")).dtype == torch.float32
    assert number_of(torch.zeros((), dtype=torch.float64, device="meta")).dtype == torch.float64


@on_asyncio
async def test_a_step_whose_gradients_overflow_in_fp16_changes_nothing_and_lowers_the_scale() -> None:
    def huge(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, label) * 1e6

    model = a_model(loss=huge, precision="fp16")
    before = model.module.head.weight.detach().clone()
    await train(model, Data(1))
    assert torch.equal(model.module.head.weight, before)
    assert model.state_dict()["updates"]["scaler"]["scale"] == 2.0**15
    assert model.state_dict()["updates"]["n_updates"] == 1


def test_the_norm_of_gradients_that_the_scaler_skips_is_no_number_that_stops_a_run() -> None:
    class Steep(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1e4

    model = a_model(module=Steep(), precision="fp16", clip=Clip(norm=1.0))
    norms = [model.run(Data(1).batches[0], train=True, stream="train")["grad_norm"] for _ in range(3)]
    assert all(math.isfinite(norm) for norm in norms)
    assert 0.0 in norms
