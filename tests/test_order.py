"""Which samples come when: a matter of the seed, the epoch and the position alone, whoever loads them."""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_builders import picture_folder
from torch.utils.data import Dataset, IterableDataset

from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.order import Draw, EpochOrder, SeededSamples, mixed_seed
from ldm.errors import ConfigError


def order(length: int = 20, batch: int = 2, epoch: int = 0, start: int = 0, **options: Any) -> list[Draw]:
    sampler = EpochOrder(length, batch, **{"seed": 0, "shuffle": True, "drop_last": False, **options})
    sampler.begin_at(epoch, start)
    return list(sampler)


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    first, second = order(), order(epoch=1)
    assert sorted(draw.index for draw in first) == sorted(draw.index for draw in second) == list(range(20))
    assert first == order() and [d.index for d in first] != [d.index for d in second]
    assert not {d.seed for d in first} & {d.seed for d in second}


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_is_another_order(change: dict[str, int]) -> None:
    assert [draw.index for draw in order(**change)] != [draw.index for draw in order()]


def test_without_shuffling_all_epochs_are_equal() -> None:
    assert order(shuffle=False) == order(shuffle=False, epoch=3)
    assert [draw.index for draw in order(shuffle=False)] == list(range(20))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("start", [0, 6])
def test_processes_together_make_the_batches_of_one(world: int, start: int) -> None:
    per_process = [order(24, 2, start=start, drop_last=True, rank=rank, world=world) for rank in range(world)]
    alone = order(24, 2 * world, start=start, drop_last=True)
    for k in range(0, len(alone), 2 * world):
        together = {draw for draws in per_process for draw in draws[k // world : k // world + 2]}
        assert together == set(alone[k : k + 2 * world])


@pytest.mark.parametrize("start", [0, 2, 10, 20])
def test_an_epoch_goes_on_in_its_middle(start: int) -> None:
    assert order(start=start) == order()[start:]


@pytest.mark.parametrize(
    "drop_last, world, expected", [(True, 1, 6), (False, 1, 7), (True, 2, 2), (False, 2, 4), (False, 3, 3)]
)
def test_processes_have_equally_many_samples(drop_last: bool, world: int, expected: int) -> None:
    draws = [order(7, 2, drop_last=drop_last, rank=rank, world=world) for rank in range(world)]
    assert [len(d) for d in draws] == [expected] * world
    in_turn = [draw.index for turn in zip(*draws) for draw in turn]
    assert in_turn == ([draw.index for draw in order(7)] * 2)[: len(in_turn)]


def test_the_epoch_that_is_gone_on_with_keeps_its_place_and_the_next_begins_anew() -> None:
    sampler = EpochOrder(20, 2, seed=0, shuffle=True, drop_last=True)
    sampler.begin_at(3, 8)
    sampler.set_epoch(3)
    assert list(sampler) == order(epoch=3)[8:] and len(sampler) == 20
    sampler.set_epoch(4)
    assert list(sampler) == order(epoch=4)


def test_close_numbers_make_unrelated_seeds() -> None:
    seeds = {mixed_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400 and mixed_seed(1, 2) == mixed_seed(1, 2)
    assert len({seed >> 48 for seed in seeds}) > 350, "only the low bits differ"


# Samples


class Noisy(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        if index == 7:
            raise RuntimeError("no such sample")
        return float(torch.rand(()))


def test_a_samples_choices_follow_from_its_draw_alone() -> None:
    samples = SeededSamples(Noisy())
    torch.manual_seed(1)
    first = samples[Draw(0, 5)]
    torch.rand(3)
    assert samples[Draw(0, 5)] == first != samples[Draw(0, 6)]


@pytest.mark.parametrize("index", [0, 7])
def test_making_a_sample_leaves_the_global_generator_as_it_was(index: int) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with suppress(RuntimeError):
        SeededSamples(Noisy())[Draw(index, 5)]
    assert torch.equal(torch.rand(3), expected)


# Loaders


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The node of a data set in which everything is drawn at random: place, flags, photo, crop, mirror."""
    root = tmp_path_factory.mktemp("hybrid")
    roots = {
        "style_root": str(picture_folder(root / "s", 12)),
        "content_root": str(picture_folder(root / "c", 5, seed=50)),
    }
    sizes = {"size": 16, "style_size": 32, "content_size": 32}
    return {
        "target": "ldm.data.wikiart.HybridTrain",
        "params": {**roots, **sizes, "style_drop": 0.5, "validation_share": 0.0},
    }


def module(
    node: dict[str, Any],
    rank: int = 0,
    world: int = 1,
    validation: dict[str, Any] | None = None,
    **options: Any,
) -> DataModuleFromConfig:
    data = DataModuleFromConfig(
        **{"batch_size": 4, "num_workers": 0, "seed": 3, "train": node, "validation": validation, **options}
    )
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    data.setup("fit")
    return data


def epochs(loader: Any, count: int = 2) -> list[list[dict[str, Any]]]:
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def batches(hybrid: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return epochs(module(hybrid).train_dataloader())


@pytest.mark.parametrize("options", [{"num_workers": 2}, {}], ids=["two workers", "again"])
def test_samples_do_not_depend_on_who_loads_them(
    hybrid: dict[str, Any], batches: list, options: dict[str, int]
) -> None:
    torch.manual_seed(99)
    assert same(epochs(module(hybrid, **options).train_dataloader()), batches)


def test_another_seed_gives_other_samples(hybrid: dict[str, Any], batches: list) -> None:
    assert not same(epochs(module(hybrid, seed=4).train_dataloader(), 1)[0][0], batches[0][0])


def test_a_picture_is_cropped_anew_in_every_epoch(batches: list) -> None:
    first, second = (
        {path: image for batch in epoch for path, image in zip(batch["path"], batch["image"])}
        for epoch in batches
    )
    common = first.keys() & second.keys()
    assert len(common) >= 3 and not any(torch.equal(first[path], second[path]) for path in common)


def test_loading_draws_nothing_from_the_trainings_generator(hybrid: dict[str, Any]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    for workers in (0, 1):
        torch.manual_seed(1)
        list(islice(module(hybrid, num_workers=workers).train_dataloader(), 2))
        assert torch.equal(torch.rand(3), expected)


def test_two_processes_load_the_global_batches_of_one(hybrid: dict[str, Any], batches: list) -> None:
    ranks = [epochs(module(hybrid, rank, 2, batch_size=2).train_dataloader()) for rank in range(2)]
    for epoch, alone in enumerate(batches):
        for k, batch in enumerate(alone):
            assert same(
                torch.stack([ranks[r][epoch][k]["image"] for r in range(2)], dim=1).flatten(0, 1),
                batch["image"],
            )


@pytest.mark.parametrize("done", [(0, 0), (0, 4), (1, 8)])
def test_a_loader_goes_on_where_a_checkpoint_says(
    hybrid: dict[str, Any], batches: list, done: tuple[int, int]
) -> None:
    data, (epoch, samples) = module(hybrid, seed=9), done
    data.load_state_dict({"seed": 3, "epoch": epoch, "samples": samples, "whole_batch": 4})
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    assert same(list(loader), batches[epoch][samples // 4 :])


def test_validation_draws_are_the_same_in_every_epoch(hybrid: dict[str, Any]) -> None:
    flags = {**hybrid, "params": {**hybrid["params"], "split": "all"}}
    first, second = epochs(module(hybrid, validation=flags).val_dataloader())
    assert same(first, second)
    assert len({bool(flag) for batch in first for flag in batch["style_flag"]}) == 2, "nothing was drawn"


def data_config(root: str, split: str = "all") -> dict[str, Any]:
    return {"target": "ldm.data.pictures.PictureFolder", "params": {"roots": root, "size": 8, "split": split}}


def test_the_data_module_gives_batches_of_both_sets(tmp_path: Path) -> None:
    node = data_config(str(picture_folder(tmp_path, 6)))
    data = module(node, validation=node)
    # the last two pictures are no full batch
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [4]
    assert [len(batch["image"]) for batch in data.val_dataloader()] == [4, 2]


def test_a_set_smaller_than_a_batch_is_still_used(tmp_path: Path) -> None:
    data = module(data_config(str(picture_folder(tmp_path, 6))), batch_size=100)
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [6] and data.val_dataloader() == []


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.arange(6.0)


def test_a_set_without_places_keeps_its_own_order() -> None:
    data = DataModuleFromConfig(batch_size=4, num_workers=0)
    data.datasets["train"] = Stream()
    assert [batch.tolist() for batch in data.train_dataloader()] == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("option, least", [("batch_size", 1), ("num_workers", 0)])
@pytest.mark.parametrize("value", [-1, "many", None])
def test_numbers_of_the_data_module_are_checked(option: str, least: int, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be a whole number from {least} on"):
        DataModuleFromConfig(**{"batch_size": 1, option: value})
