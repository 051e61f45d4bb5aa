"""Training data in two parts: for the weights, and for a search."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset, Subset

from .calibration import batch_images, train_loader
from .resume import separate_loader


class PartOfData(Dataset):
    """Some samples of a data set, repeated up to its length.

    An epoch has as many iterations as before, so schedules do not change.

    Args:
        dataset (Dataset): All samples.
        part (np.ndarray): Indices of the used samples, (k,).
    """

    def __init__(self, dataset: Any, part: np.ndarray) -> None:
        self._dataset = dataset
        self._part = part

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._there(index)]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Returns a batch of a data set that makes whole batches."""
        there = [self._there(index) for index in indices]
        if hasattr(self._dataset, '__getitems__'):
            return self._dataset.__getitems__(there)
        return [self._dataset[index] for index in there]

    def get_data_info(self, index: int) -> Any:
        """Returns information for samplers, such as the shape of an image."""
        return self._dataset.get_data_info(self._there(index))

    def get_cat_ids(self, index: int) -> Any:
        """Returns the classes in an image, for samplers."""
        return self._dataset.get_cat_ids(self._there(index))

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == '_dataset':  # while unpickling
            raise AttributeError(name)
        if name == 'cumulative_sizes' and hasattr(self._dataset, name):
            raise ValueError(
                'the sampler of train_dataloader reads the sizes of '
                'concatenated data sets (cumulative_sizes), which a part of '
                "the data does not have: expected split=0 or split='val' of "
                'the search, or another sampler'
            )
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('_dataset', '_part'):
            super().__setattr__(name, value)
        else:  # as hooks that switch the pipeline do
            setattr(self._dataset, name, value)

    def _there(self, index: int) -> int:
        return int(self._part[index % len(self._part)])


def split_data(runner: Runner, ratio: float) -> DataLoader:
    """Let the runner train on a part of its data set.

    Args:
        runner (Runner): Its train dataloader is replaced.
        ratio (float): Ratio of the samples for the other part; 0 for all
            samples in both parts.

    Returns:
        DataLoader: Loader of the other part, with the same settings.

    Raises:
        ValueError: If a part has less than one batch.
    """
    loop = runner.train_loop
    dataset = loop.dataloader.dataset
    if ratio == 0:
        return _loader(runner, dataset, 1)
    samples = [_sample(dataset, index) for index in range(len(dataset))]
    images = list(dict.fromkeys(samples))
    order = np.random.default_rng(runner.seed or 0).permutation(len(images))
    count = round(ratio * len(images))
    smallest = min(count, len(images) - count)
    batch = batch_images(loop.dataloader)
    if smallest < batch:
        raise ValueError(
            f'split={ratio}: a part of the data set would have {smallest} of '
            f'its {len(images)} images, less than a batch of {batch}. '
            "Expected more images, a smaller batch, split='val' or split=0"
        )
    # repeated images are in one part only
    place_of = {images[at]: place for place, at in enumerate(order)}
    places = np.array([place_of[sample] for sample in samples])
    theirs, ours = np.split(
        np.argsort(places, kind='stable'), [(places < count).sum()]
    )
    loop.dataloader = _loader(runner, PartOfData(dataset, ours), 0)
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = _InfiniteDataloaderIterator(loop.dataloader)
    separate_loader(loop.dataloader, runner.seed)
    return _loader(runner, PartOfData(dataset, theirs), 1)


def _sample(dataset: Any, index: int) -> Any:
    """Returns what a sample is read from: (part, ...) of wrapped data sets."""
    if isinstance(dataset, Subset):
        return _sample(dataset.dataset, dataset.indices[index])
    if not hasattr(dataset, '_get_ori_dataset_idx'):
        return index
    found = dataset._get_ori_dataset_idx(index)
    if isinstance(found, tuple):  # of concatenated ones
        part, index = found
        return part, _sample(dataset.datasets[part], index)
    return _sample(dataset.dataset, found)


def validation_data(runner: Runner) -> DataLoader:
    """Returns another loader of the validation set.

    Raises:
        ValueError: If the config has none.
    """
    if not runner.cfg.get('val_dataloader'):
        raise ValueError(
            "split='val': expected a config with val_dataloader, whose "
            'pipeline loads annotations'
        )
    settings = copy.deepcopy(dict(runner.cfg.val_dataloader))
    settings.pop('persistent_workers', None)
    settings['sampler'] = dict(type='DefaultSampler', shuffle=True)
    loader = Runner.build_dataloader(settings, seed=runner.seed)
    separate_loader(loader, (runner.seed or 0) + 1)
    return loader


def _loader(runner: Runner, dataset: Any, number: int) -> DataLoader:
    """Returns a loader like the runner's, with an order by the number."""
    seed = (runner.seed or 0) + number
    loader = train_loader(runner.cfg, seed, dataset=dataset)
    separate_loader(loader, seed)
    return loader


class Batches:
    """Batches of a loader without end, in an order that resuming repeats.

    Args:
        loader (DataLoader): A loader with at least one batch.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._iterator: Iterator | None = None
        self.epoch = 0
        self.taken = 0  # batches of this epoch

    def __next__(self) -> Any:
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.epoch, self.taken = self.epoch + 1, 0
            self._begin()
            batch = next(self._iterator)
        self.taken += 1
        return batch

    def resume(self, epoch: int, taken: int) -> None:
        """Continue at a recorded place; earlier batches are read again."""
        self.epoch = epoch
        self._begin()
        assert self._iterator is not None
        for _ in range(taken):
            next(self._iterator)
        self.taken = taken

    def _begin(self) -> None:
        parts: list[Any] = [self._loader.sampler, self._loader.batch_sampler]
        for part in parts:
            if hasattr(part, 'set_epoch'):
                part.set_epoch(self.epoch)
        self._iterator = iter(self._loader)
