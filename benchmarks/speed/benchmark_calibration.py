"""Measure what a calibration pass of K-FAC costs, against plain training."""

from __future__ import annotations

import copy
import time

import numpy as np
from benchmark_training import Network, Nothing, Training
from beside_training import main

from mmgfp.criteria.kfac import KFAC
from mmgfp.criteria.layer_rows import is_matrix_layer
from mmgfp.groups import UnitSpace


class Calibrating(Training):
    """A training iteration, and a batch of a calibration pass."""

    def __init__(self, network: Network, device: str) -> None:
        super().__init__(network, device)
        self.criterion = KFAC(fisher='empirical')
        self.criterion.attach(self.model, self.pruner.net.units)

    def plain(self) -> float:
        return self.iteration(Nothing())

    def own(self) -> float:
        images = self.batch['inputs'].detach().requires_grad_()
        self.model.eval().requires_grad_(False)
        with self.criterion.observing():
            self.wait()
            began = time.perf_counter()
            losses = self.model(**{**copy.copy(self.batch), 'inputs': images})
            self.model.parse_losses(losses)[0].backward()
            self.criterion.end_batch()
            self.wait()
            taken = time.perf_counter() - began
        self.model.requires_grad_(True).train()  # freezes its first stages
        return taken

    def once(self) -> dict[str, float]:
        self.wait()
        began = time.perf_counter()
        self.score()
        self.wait()
        return {'scores_s': time.perf_counter() - began}

    def score(self) -> None:
        self.criterion.scores(np.ones(len(self.pruner.net.units), bool))


class CalibratingWeights(Calibrating):
    """The same for scores of single weights."""

    def __init__(self, network: Network, device: str) -> None:
        super().__init__(network, device)
        self.criterion.attach(self.model, UnitSpace([]))

    def score(self) -> None:
        lost = self.criterion.unmeasured()
        self.criterion.elements(
            [
                f'{name}.weight'
                for name, module in self.model.named_modules()
                if is_matrix_layer(module) and name not in lost
            ]
        )


if __name__ == '__main__':
    main(
        {'channels': Calibrating, 'weights': CalibratingWeights},
        __doc__,
        'benchmark_calibration.py',
    )
