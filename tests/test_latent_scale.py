"""scale_by_std: the latent's scale, and its shift where there is one, come from the pictures that training begins with."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from builders import CHANNELS, SIDE, STYLE_DIM, fit, tiny_ldm, tiny_options, unconditional_ldm
from golden_rules import rnd
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM

SPREAD, OFFSET = torch.tensor([0.5, 2.0, 1.0, 4.0]), torch.tensor([1.0, -1.0, 0.0, 3.0])


def rows(n: int = 12) -> list[dict[str, Tensor]]:
    """Cached latents whose channels differ in size and place."""
    latents = rnd("latents", n, CHANNELS, SIDE, SIDE) * SPREAD[:, None, None] + OFFSET[:, None, None]
    on = torch.tensor(True)
    return [
        {"latent": latents[i], "style": rnd(f"style {i}", STYLE_DIM), "style_flag": on, "content_flag": on}
        for i in range(n)
    ]


def train(
    model: pl.LightningModule,
    samples: list[dict[str, Tensor]],
    folder: Path,
    loader: DataLoader | None = None,
    **options,
) -> DualCondLDM:
    model.vgg.has_weights = True  # those of the golden rules
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **options,
    ).fit(model, loader or DataLoader(samples, batch_size=2))  # fmt: skip
    return model


def assert_scaled_by(model: DualCondLDM, samples: list[dict[str, Tensor]]) -> None:
    std, mean = torch.std_mean(torch.stack([sample["latent"] for sample in samples]), dim=(0, 2, 3))
    torch.testing.assert_close(model.shift_values, mean)
    torch.testing.assert_close(model.scale_factors, 1 / std)


@pytest.mark.parametrize("batches, used", [(1, 2), (3, 6), (16, 12)])
def test_the_scale_of_every_channel_comes_from_the_first_batches(
    tmp_path: Path, batches: int, used: int
) -> None:
    samples = rows()
    assert_scaled_by(
        train(tiny_ldm(scale_by_std=True, scale_batches=batches), samples, tmp_path), samples[:used]
    )


def test_sixteen_batches_are_looked_at_if_nobody_says_how_many(tmp_path: Path) -> None:
    samples = rows(40)
    assert_scaled_by(
        train(tiny_ldm(scale_by_std=True), samples, tmp_path, limit_train_batches=1), samples[:32]
    )


def test_scaled_latents_have_mean_0_and_std_1(tmp_path: Path) -> None:
    samples = rows()
    model = train(tiny_ldm(scale_by_std=True), samples, tmp_path)
    z = model.get_first_stage_encoding(torch.stack([sample["latent"] for sample in samples]))
    std, mean = torch.std_mean(z, dim=(0, 2, 3))
    torch.testing.assert_close(
        (std, mean), (torch.ones(CHANNELS), torch.zeros(CHANNELS)), rtol=1e-4, atol=1e-4
    )


def test_the_scale_comes_from_the_modes_of_pictures_too(tmp_path: Path) -> None:
    model, pictures = tiny_ldm(scale_by_std=True), rnd("pictures", 4, 32, 32, 3).tanh()
    flags = {"style_flag": torch.tensor(True), "content_flag": torch.tensor(True)}
    expected = model.encode_first_stage(pictures.permute(0, 3, 1, 2)).mode()
    train(model, [{"image": picture, **flags} for picture in pictures], tmp_path)
    assert_scaled_by(model, [{"latent": latent} for latent in expected])


def test_the_scale_of_the_base_is_one_factor(tmp_path: Path) -> None:
    model, pictures = unconditional_ldm(scale_by_std=True), rnd("pictures", 4, 32, 32, 3).tanh()
    posterior = model.encode_first_stage(pictures.permute(0, 3, 1, 2))
    fit(model, pictures, tmp_path)
    torch.testing.assert_close(model.scale_factor, 1 / posterior.sample().std(), rtol=0.1, atol=0)
    assert model.scale_factor.shape == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_begins_with_the_very_batches_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen, samples = [], rows()
    monkeypatch.setattr(
        DualCondLDM, "on_train_batch_start", lambda self, batch, batch_idx: seen.append(batch["latent"])
    )
    train(
        tiny_ldm(scale_by_std=True, scale_batches=2),
        samples,
        tmp_path,
        DataLoader(samples, batch_size=2, num_workers=workers),
    )
    assert torch.equal(torch.cat(seen), torch.stack([sample["latent"] for sample in samples]))


# Where it stays as it is


def test_the_scale_is_measured_only_if_wanted(tmp_path: Path) -> None:
    model = train(tiny_ldm(scale_factors=SPREAD.tolist(), shift_values=OFFSET.tolist()), rows(2), tmp_path)
    assert torch.equal(model.scale_factors, SPREAD) and torch.equal(model.shift_values, OFFSET)


def saved(folder: Path) -> str:
    """A whole model's checkpoint with a scale of its own."""
    model = tiny_ldm(scale_factors=SPREAD.tolist(), shift_values=OFFSET.tolist())
    torch.save({"state_dict": model.state_dict()}, folder / "model.ckpt")
    return str(folder / "model.ckpt")


@pytest.mark.parametrize("unet_alone", [False, True], ids=["whole model", "network alone"])
def test_the_scale_of_a_whole_model_is_kept(tmp_path: Path, unet_alone: bool) -> None:
    samples = rows(4)
    options = {"ckpt_path": saved(tmp_path), "load_only_unet": unet_alone}
    model = train(tiny_ldm(scale_by_std=True, **options), samples, tmp_path)
    if unet_alone:
        assert_scaled_by(model, samples)
    else:
        assert torch.equal(model.scale_factors, SPREAD) and torch.equal(model.shift_values, OFFSET)


def test_the_styles_components_come_from_the_first_batches_and_the_null_style_is_their_middle(
    tmp_path: Path,
) -> None:
    samples, initial = rows(), tiny_ldm(unet={"context_components": 5})
    model = train(
        tiny_ldm(unet={"context_components": 5}, scale_batches=4),
        samples,
        tmp_path,
        max_steps=1,
        limit_val_batches=0,
    )
    styles = torch.stack([sample["style"] for sample in samples[:8]])
    components = model.model.diffusion_model.context_whitening(styles)
    torch.testing.assert_close(components.T @ components / 8, torch.eye(5), rtol=0, atol=1e-3)
    middle = styles.mean(0)
    assert (
        (model.null_style_vector.weight[0] - middle).abs().max()
        < 0.01
        < (initial.null_style_vector.weight[0] - middle).abs().max()
    )


def test_components_of_a_loaded_model_are_kept(tmp_path: Path) -> None:
    trained = tiny_ldm(unet={"context_components": 5})
    trained.measure_styles(rnd("styles", 30, STYLE_DIM))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    model = train(tiny_ldm(unet={"context_components": 5}), rows(), tmp_path, max_steps=1)
    assert not torch.equal(
        model.model.diffusion_model.context_whitening.basis,
        trained.model.diffusion_model.context_whitening.basis,
    )
    continued = DualCondLDM(
        **tiny_options(unet={"context_components": 5}, ckpt_path=str(tmp_path / "model.pt"))
    )
    train(continued, rows(), tmp_path, max_steps=1)
    assert torch.equal(
        continued.model.diffusion_model.context_whitening.basis,
        trained.model.diffusion_model.context_whitening.basis,
    )


def test_scale_and_styles_take_one_look_at_the_first_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, looks = tiny_ldm(unet={"context_components": 5}, scale_by_std=True), []
    first_batches = model._first_batches
    monkeypatch.setattr(model, "_first_batches", lambda count: looks.append(count) or first_batches(count))
    train(model, rows(), tmp_path, max_steps=1, limit_val_batches=0)
    assert (
        len(looks) == 1
        and model.model.diffusion_model.context_whitening.mean.any()
        and (model.scale_factors != 1).any()
    )
