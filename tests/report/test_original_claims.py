"""The original study's claims on made-up runs in which they hold."""

import re

from report_helpers import section_of


def test_claims_are_set_beside_these_runs(made):
    claims = section_of((made / "report.html").read_text(encoding="utf-8"), "Claims of the original study")
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", claims)]
    of_norm = {row.strip("|").partition("|")[0]: row.strip("|").rpartition("|")[2] for row in rows}
    assert of_norm["EvoNormBO"] == of_norm["BatchNorm"] == of_norm["InstanceNorm"] == of_norm["Plain"] == "yes"
    assert any("test accuracy" in row and "|pooled|" in row and row.strip("|").endswith("|yes") for row in rows)
