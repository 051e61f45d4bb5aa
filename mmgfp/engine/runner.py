"""Access to, and changes of, an mmengine runner for pruning."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
)
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..groups import ChannelGroup, Member
from ..libraries.loading import load_weights
from ..libraries.models import unwrap
from ..slimming.checkpoint import weights_of
from ..slimming.optimizers import cut_saved_state
from ..slimming.surgery import Keep, cut_saved, named_tensors
from ..utils.errors import type_and_line


def optimizers(runner: Runner) -> list[torch.optim.Optimizer]:
    """Returns all optimisers of a runner."""
    return [part.optimizer for part in optim_wrappers(runner).values()]


def optim_wrappers(runner: Runner) -> dict[str, OptimWrapper]:
    """Returns the wrapper of each optimiser by name; '' for a single one."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return dict(wrapper.items())
    return {'': wrapper}


class Trainers:
    """The optimisers that train the channel groups of a runner's network.

    With several optimisers, as of a generator and a discriminator, each has
    its own loss scale and accumulation of gradients, and the model decides
    when it takes steps. Optimisers without a weight of any group do not count.

    Args:
        runner (Runner): The runner of the training.
        groups (Sequence[ChannelGroup]): The prunable groups.
    """

    def __init__(self, runner: Runner, groups: Sequence[ChannelGroup]) -> None:
        self._wrappers = optim_wrappers(runner)
        self._device = next(runner.model.parameters()).device
        first = next(iter(self._wrappers))
        trains = {
            id(parameter): name
            for name, wrapper in self._wrappers.items()
            for group in wrapper.optimizer.param_groups
            for parameter in group['params']
        }
        tensors = named_tensors(unwrap(runner.model))
        names = {
            group.name: [
                trains[id(tensors[member.tensor])]
                for member in sorted(group.members, key=_reads, reverse=True)
                if id(tensors.get(member.tensor)) in trains
            ]
            for group in groups
        }
        # the loss of a group is that of the optimiser of its consumers
        self._trainer = {g: (n or [first])[0] for g, n in names.items()}
        self._counted = {n for found in names.values() for n in found}
        self._counted = self._counted or {first}

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns the optimisers whose steps count."""
        return [self._wrappers[name].optimizer for name in self._counted]

    @property
    def accumulation(self) -> int:
        """Returns the iterations per optimiser step set in the wrappers."""
        return min(
            int(getattr(self._wrappers[name], '_accumulative_counts', 1))
            for name in self._counted
        )

    def loss_factor(self, groups: Sequence[ChannelGroup]) -> float | Tensor:
        """Returns the factor of the losses of this iteration.

        Args:
            groups (Sequence[ChannelGroup]): The current groups.

        Returns:
            float | Tensor: One factor for all units or, with several
            optimisers, shape (U,).
        """
        factors = {
            name: _loss_factor(wrapper, self._device)
            for name, wrapper in self._wrappers.items()
        }
        if len(factors) == 1:
            return next(iter(factors.values()))
        return torch.cat(
            [
                torch.as_tensor(
                    factors[self._trainer[group.name]],
                    dtype=torch.float64,
                    device=self._device,
                ).expand(group.size)
                for group in groups
            ]
        )


def _reads(member: Member) -> bool:
    return member.role in ('consumer', 'grouped')


def _loss_factor(
    wrapper: OptimWrapper, device: torch.device
) -> float | Tensor:
    """Returns the factor of a wrapper for the loss of this iteration.

    It is the loss scale of mixed precision divided by the number of batches
    whose gradients are accumulated. If the scale is a tensor, so is the
    result, and the host does not wait for it.
    """
    factor = float(wrapper.scale_loss(torch.ones(())))
    scaler = getattr(wrapper, 'loss_scaler', None)
    if not scaler:
        return factor
    one = torch.full((), factor, dtype=torch.float64, device=device)
    return scaler.scale(one)


def averaged_models(runner: Runner) -> Iterator[BaseAveragedModel]:
    """Yields the averaged copies of the model in EMA hooks."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
            yield hook.ema_model


def cut_checkpoint(
    runner: Runner, checkpoint: dict[str, Any], keep: Keep
) -> None:
    """Cut a checkpoint before it is saved; the runner does not change.

    Args:
        runner (Runner): The runner that saves it.
        checkpoint (dict): Checkpoint with weights and, if they are saved,
            averaged weights and optimiser state; changed in place.
        keep (Keep): Kept positions, see :mod:`mmgfp.slimming.surgery`.
    """
    model = unwrap(runner.model)
    cut_saved(checkpoint, model, keep)
    if 'optimizer' not in checkpoint:
        return
    saved = checkpoint['optimizer']
    for name, wrapper in optim_wrappers(runner).items():
        part = saved[name] if name else saved
        cut_saved_state(part, wrapper.optimizer, model, keep)


def check_loaded(
    runner: Runner,
    checkpoint: Mapping[str, Any],
    may_differ: Callable[[str, int], bool] | None = None,
) -> None:
    """Load the weights of a checkpoint, and raise if some do not fit.

    The runner itself continues with random weights if names or shapes differ.

    Args:
        runner (Runner): The runner with the model.
        checkpoint (Mapping): The loaded checkpoint.
        may_differ (Callable, optional): See
            :func:`mmgfp.libraries.loading.load_weights`.

    Raises:
        ValueError: If names or shapes differ from those of the model.
    """
    which = runner._load_from or 'that was loaded'
    weights = weights_of(checkpoint, which)
    load_weights(unwrap(runner.model), weights, which, may_differ)


def network_has_changed(runner: Runner) -> None:
    """Update all objects that hold the network's tensors after a cut."""
    model = unwrap(runner.model)
    for averaged in averaged_models(runner):
        # With `update_buffers` an averaged model has a state dict whose
        # tensors share memory with the parameters from before the cut.
        if averaged.update_buffers:
            averaged.avg_parameters = averaged.module.state_dict()
            # averaged models of MMYOLO have one of the source, too
            if hasattr(averaged, 'src_parameters'):
                averaged.src_parameters = model.state_dict()
    if is_model_wrapper(runner.model):
        _rewrap(runner)


def _rewrap(runner: Runner) -> None:
    """Wrap the model for distributed training again for its new buckets."""
    model = runner.model.module
    strategy = getattr(runner, 'strategy', None)  # of a FlexibleRunner
    runner.model = model
    if strategy is not None:
        strategy.model = model
    gc.collect()  # frees the old wrapper's reducer with its parameters
    if strategy is not None:
        runner.model = strategy.model = strategy._wrap_model(model)
    else:
        runner.model = runner.wrap_model(
            runner.cfg.get('model_wrapper_cfg'), model
        )


def is_training(runner: Runner) -> bool:
    """Returns whether a runner trains, not only validates or tests."""
    return isinstance(runner._train_loop, BaseLoop)


def check_whole(runner: Runner) -> None:
    """Raise unless every process has the whole network.

    Raises:
        ValueError: With the strategy or wrapper, and the expected ones.
    """
    strategy = getattr(runner, 'strategy', None)  # of a FlexibleRunner
    kinds = [base.__name__ for base in type(strategy).__mro__]
    if strategy is not None and (
        'SingleDeviceStrategy' not in kinds or 'FSDPStrategy' in kinds
    ):
        raise ValueError(
            f'the strategy {kinds[0]} divides the network, or the state of '
            'its optimizer, among the processes, so no channels can be '
            'removed; expected SingleDeviceStrategy or DDPStrategy while '
            'pruning'
        )
    model, bare = runner.model, unwrap(runner.model)
    wrapped: list[tuple[str, Any]] = []
    distributed = isinstance(model, DistributedDataParallel)
    if is_model_wrapper(model) and not distributed:
        wrapped.append(('the model', model))
    wrapped += [
        (f'the part {name} of the model', part)
        for name, part in bare.named_modules()
        if is_model_wrapper(part)
    ]
    wrapped += [
        (f'the parameter {name}', parameter)
        for name, parameter in bare.named_parameters()
        if hasattr(parameter, 'full_tensor')  # a distributed tensor
    ]
    for what, piece in wrapped[:1]:
        raise ValueError(
            f'{what} is wrapped by {type(piece).__name__}; expected a model '
            'without wrappers, or MMDistributedDataParallel around all of '
            'it, while pruning: channels can be removed only if every '
            'process has the whole network'
        )


def sum_over_ranks(tensor: Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    dist.all_reduce(tensor)


def true_on_all_ranks(value: Tensor) -> Tensor:
    """Returns whether a flag is true in all processes, shape ().

    The host does not wait for the result.
    """
    if dist.get_world_size() == 1:
        return value
    exceptions = (~value).double()
    dist.all_reduce(exceptions)
    return exceptions == 0


def on_main_process(what: str, work: Callable[[], None]) -> None:
    """Run a function in the main process; if it fails, all processes end.

    Without this check the others would wait until their timeout.

    Args:
        what (str): Name of the work, for their message.
        work (Callable): Called in the main process alone.

    Raises:
        RuntimeError: In the other processes if the main process fails, which
            raises its own error.
    """
    failure: Exception | None = None
    if dist.is_main_process():
        try:
            work()
        except Exception as error:  # raised below
            failure = error
    told = [failure and type_and_line(failure)]
    dist.broadcast_object_list(told)
    if failure is not None:
        raise failure
    if told[0]:
        raise RuntimeError(f'process 0 failed while {what}: {told[0]}')


def same_on_all_ranks(choices: bytes, of: str = 'channels') -> None:
    """Raise unless all processes have made the same choices.

    Args:
        choices (bytes): Choices of this process.
        of (str): Kind of the choices, for the message. Defaults to
            'channels'.

    Raises:
        RuntimeError: With the processes that differ from the first.
    """
    digest = hashlib.sha256(choices).digest()[:7]
    number = torch.tensor(int.from_bytes(digest, 'big'))
    first, *others = (int(n) for n in dist.all_gather(number))
    wrong = [i for i, other in enumerate(others, 1) if other != first]
    if wrong:
        raise RuntimeError(
            f'the processes {wrong} chose other {of} than process 0; '
            'expected the same model, config and packages in all of them'
        )


class _Announcing:
    """An iterator that calls a function before each of its elements."""

    def __init__(
        self, iterator: Iterator, announce: Callable[[], None]
    ) -> None:
        self._iterator = iterator
        self._announce = announce

    def __next__(self) -> Any:
        self._announce()
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def before_each_batch(runner: Runner, announce: Callable[[], None]) -> None:
    """Call a function before each batch of an iteration-based loop.

    A resumed loop first skips earlier batches, which early releases of
    mmengine load without calling a hook.
    """
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = _Announcing(
            loop.dataloader_iterator, announce
        )


def end_training(runner: Runner, batch: int | None) -> None:
    """End the training, which a loop by epochs does after the epoch.

    Args:
        runner (Runner): The runner.
        batch (int, optional): Index of the current batch in its epoch; None
            before the first.
    """
    loop = runner.train_loop
    loop.stop_training = True
    if batch is None:
        runner.logger.info('nothing is trained: the run ends here')
    elif isinstance(loop, EpochBasedTrainLoop) and batch + 1 < len(
        loop.dataloader
    ):
        runner.logger.info(
            'training ends after this epoch, which changes the weights '
            'further; the saved files have those of now'
        )


def saves_checkpoint(runner: Runner) -> bool:
    """Returns whether this iteration saves a checkpoint, on all ranks."""
    return any(
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_iter(runner))
        )
        for hook in runner.hooks
    )
