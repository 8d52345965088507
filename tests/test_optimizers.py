"""Optimisers, the clipping of gradients, and learning-rate schedules."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader

from ldm.lr_scheduler import LambdaLinearScheduler, LambdaWarmUpCosineScheduler, LambdaWarmUpCosineScheduler2
from ldm.modules.optimizers import build_optimizer, clip_gradients
from ldm.util import instantiate_from_config

# One fused kernel


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_on_the_cpu_an_optimiser_is_not_fused(kind: type[Optimizer]) -> None:
    optimizer = build_optimizer(kind, nn.Linear(2, 2).parameters(), pl.LightningModule(), lr=0.5)
    assert type(optimizer) is kind and not optimizer.defaults["fused"] and optimizer.defaults["lr"] == 0.5


@pytest.mark.parametrize(
    "device, precision, fused",
    [
        ("cuda", None, True),
        ("cuda", "bf16-mixed", True),
        ("cuda", "16-mixed", False),
        ("cpu", "bf16-mixed", False),
    ],
)
def test_on_a_gpu_it_is_fused_but_for_a_loss_scaler(device: str, precision: str | None, fused: bool) -> None:
    module = SimpleNamespace(
        device=torch.device(device), _trainer=precision and SimpleNamespace(precision=precision)
    )
    assert bool(build_optimizer(lambda weights, **options: options, [], module)["fused"]) == fused


# Clipping


def with_gradients(fused: bool, *gradients: list[float]) -> Optimizer:
    weights = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients):
        weight.grad = torch.tensor(gradient)
    groups = [{"params": [weight]} for weight in weights]
    return AdamW(groups, fused=fused)


def gradients_of(optimizer: Optimizer) -> list[float]:
    return [
        value
        for group in optimizer.param_groups
        for weight in group["params"]
        for value in weight.grad.tolist()
    ]


class Module(pl.LightningModule):
    """With what Lightning's own clipping asks for."""

    def __init__(self):
        super().__init__()
        self._trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "value, algorithm, expected",
    [
        (1.0, "norm", [0.6, 0.0, 0.8]),
        (1.0, None, [0.6, 0.0, 0.8]),
        (10.0, "norm", [3.0, 0.0, 4.0]),
        (2.0, "value", [2.0, 0.0, 2.0]),
        (None, None, [3.0, 0.0, 4.0]),
        (0, "norm", [3.0, 0.0, 4.0]),
    ],
)
def test_gradients_are_clipped_over_all_groups(
    fused: bool, value: float | None, algorithm: str | None, expected: list[float]
) -> None:
    optimizer = with_gradients(fused, [3.0, 0.0], [4.0])
    clip_gradients(Module(), optimizer, value, algorithm)
    assert gradients_of(optimizer) == pytest.approx(expected, rel=1e-5)


class Steep(pl.LightningModule):
    """One weight with a gradient of 100, clipped as the diffusion models are."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return 100 * self.weight.sum()

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.parameters(), fused=True)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.seen.append(float(self.weight.grad))


def test_lightnings_own_option_clips_a_fused_optimiser(tmp_path) -> None:
    module = Steep()
    pl.Trainer(
        accelerator="cpu", max_steps=1, gradient_clip_val=0.5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(module, DataLoader(torch.zeros(1, 1)))  # fmt: skip
    assert module.seen == [pytest.approx(0.5)]


# Learning-rate schedules


def factors(schedule: Any, steps: Sequence[int]) -> list[float]:
    return [schedule.schedule(step) for step in steps]


def test_the_learning_rate_warms_up_then_falls_as_a_half_cosine() -> None:
    schedule = LambdaWarmUpCosineScheduler(10, lr_min=0.2, lr_start=0.1, max_decay_steps=110)
    assert factors(schedule, [0, 5, 10, 60, 110, 1000]) == pytest.approx([0.1, 0.55, 1.0, 0.6, 0.2, 0.2])


CYCLES = {
    "warm_up_steps": [10, 0],
    "cycle_lengths": [30, 20],
    "f_start": [0.1, 0.0],
    "f_max": [1.0, 0.5],
    "f_min": [0.2, 0.1],
}
STEPS = [0, 5, 10, 20, 29, 30, 31, 40, 50, 10**6]  # a cycle has its last step in common with the next


@pytest.mark.parametrize(
    "kind, expected",
    [
        (LambdaWarmUpCosineScheduler2, [0.1, 0.55, 1.0, 0.6, 0.20492466, 0.2, 0.49753767, 0.3, 0.1, 0.1]),
        (LambdaLinearScheduler, [0.1, 0.55, 0.73333333, 0.46666667, 0.22666667, 0.2, 0.48, 0.3, 0.1, 0.1]),
    ],
)
def test_cycles_follow_each_other_and_the_last_value_stays(kind: type, expected: list[float]) -> None:
    assert factors(kind(**CYCLES), STEPS) == pytest.approx(expected, rel=1e-6)


def test_half_cosine_and_straight_line_differ_between_their_ends() -> None:
    curve, line = (
        factors(kind([0], [0.0], [1.0], [0.0], [100]), range(101))
        for kind in (LambdaWarmUpCosineScheduler2, LambdaLinearScheduler)
    )
    assert line == pytest.approx([1 - step / 100 for step in range(101)])
    assert (
        curve[25] == pytest.approx(0.5 + 0.5**1.5)
        and curve[50] == pytest.approx(0.5)
        and curve[75] == pytest.approx(0.5 - 0.5**1.5)
    )


@pytest.mark.parametrize(
    "interval, told",
    [(0, []), (4, ["step 0: 1 times the base learning rate", "step 4: 0.6 times the base learning rate"])],
)
def test_a_schedule_can_be_called_and_tell(
    interval: int, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    schedule = LambdaLinearScheduler([0], [0.0], [1.0], [1.0], [10], interval)
    with caplog.at_level("INFO"):
        assert (
            [schedule(step) for step in (0, 1, 4)]
            == [schedule.schedule(step) for step in (0, 1, 4)]
            == pytest.approx([1.0, 0.9, 0.6])
        )
    assert caplog.messages == told


def test_a_schedule_that_falls_needs_an_end() -> None:
    with pytest.raises(ValueError, match="needs max_decay_steps"):
        LambdaWarmUpCosineScheduler(10)


def test_the_published_warm_up_that_never_ends_is_flat_afterwards() -> None:
    """latent-diffusion's usual parameters: 10,000 steps up, then 1.0 for as long as anyone trains."""
    params = {
        "warm_up_steps": [10000],
        "cycle_lengths": [10000000000000],
        "f_start": [1e-6],
        "f_max": [1.0],
        "f_min": [1.0],
    }
    schedule = instantiate_from_config({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params})
    assert factors(schedule, [0, 5000, 10000, 10**7]) == pytest.approx([1e-6, 0.5, 1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize("kind", [LambdaWarmUpCosineScheduler2, LambdaLinearScheduler])
@pytest.mark.parametrize(
    "change", [{"f_min": [0.2]}, {name: [] for name in CYCLES}], ids=["unequal lengths", "no cycle"]
)
def test_every_cycle_needs_all_its_values(kind: type, change: dict[str, list]) -> None:
    with pytest.raises(ValueError):
        instantiate_from_config(
            {"target": f"ldm.lr_scheduler.{kind.__name__}", "params": {**CYCLES, **change}}
        )
