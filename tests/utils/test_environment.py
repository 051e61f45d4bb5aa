"""Where and with what something was measured."""

from __future__ import annotations

import subprocess

from processes import command, environment

PRINT = """
from mmgfp.utils.environment import processor
print(processor())
"""


def test_processor_names_what_it_computes_with(tmp_path):
    """Torch has no other instructions than those that it is left."""
    script = tmp_path / 'print.py'
    script.write_text(PRINT)
    # torch reads the variable when it is imported
    result = subprocess.run(
        command(script),
        env=environment(ATEN_CPU_CAPABILITY='default'),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(('(DEFAULT)', '(NO AVX)'))
