"""The README's numbers come from committed result files."""

import re

from bench import readme, report


def test_the_tables_of_the_readme_are_those_its_result_files_give():
    text = readme.README.read_text()
    named = re.findall(r"`bench/results/(cpu-[\w.-]+\.json)`", text)
    assert named, "the README names no CPU result file"
    for name in named:
        assert readme.section(report.ROOT / "bench" / "results" / name) in text
