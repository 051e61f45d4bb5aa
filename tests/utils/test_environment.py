"""Where and with what something was measured."""

from __future__ import annotations

from toy import run_tool

PRINT = """
from mmgfp.utils.environment import processor
print(processor())
"""


def test_processor_names_what_it_computes_with(tmp_path):
    """Torch has no other instructions than those that it is left."""
    script = tmp_path / 'print.py'
    script.write_text(PRINT)
    result = run_tool(script, ATEN_CPU_CAPABILITY='default')
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(('(DEFAULT)', '(NO AVX)'))
