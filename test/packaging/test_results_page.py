"""docs/results.md shows what the benchmark measured, not what somebody typed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_results_page_are_those_of_the_benchmark():
    script, results = ROOT / 'benchmarks' / 'gate.py', ROOT / 'benchmarks' / 'results' / 'gate.json'
    command = [sys.executable, str(script), '--print', str(results)]
    tables = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert tables.count('\n| gate |') == 3
    assert tables.strip() in (ROOT / 'docs' / 'results.md').read_text()
