"""Tables can be read whatever the names of the layers are."""

from __future__ import annotations

from nets import Chain
from torch import nn

from mmgfp.finder import find_groups
from mmgfp.table import TABLE_WIDTH, groups_table, render


class Inside(nn.Module):
    """A network as a part of another one."""

    def __init__(self, name, net):
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x):
        return getattr(self, self.name)(x)


def test_long_names_leave_room_for_the_verdict():
    model = Chain()
    names = ['backbone', 'stages_of_it', 'blocks_of_stage', 'attention'] * 2
    for name in names[::-1]:
        model = Inside(name, model)
    groups = find_groups(model, lambda m: m(Chain.batch()), 2)
    text = render(groups_table(groups, {}))
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH
    for part in ('reaches an output', '│        8 │', '│ yes '):
        assert part in text, text
    assert '…' not in text
    assert 'conv1' in text
