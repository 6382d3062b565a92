"""The README's numbers come from committed result files."""

import re

from bench import readme, report


def test_the_table_of_the_readme_is_the_one_its_result_file_gives():
    text = readme.README.read_text()
    named = re.search(r"`bench/results/(cpu-[\w.-]+\.json)`", text)
    assert named, "the README names no CPU result file"
    assert readme.section(report.ROOT / "bench" / "results" / named[1]) in text
