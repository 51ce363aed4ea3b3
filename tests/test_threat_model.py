"""What the documents promise comes from the results that are committed beside them."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_every_figure_of_the_threat_model_is_the_committed_results():
    results = json.loads((DOCS / "demo-results.json").read_text())
    text = " ".join((DOCS / "threat-model.md").read_text().split())
    first, second = (results["comparison"][name] for name in ("portrait-a", "portrait-b"))
    worst, utility = results["cost_factor"]["worst"], results["utility"]
    matched = next(check["value"] for check in results["verdict"]["checks"] if check["name"] == "match_rate")
    said = (
        f"{matched:.2f} of the pictures still match by the worse encoder. Likeness is {first['hardened']:.2f} where the "
        f"base gives {first['base']:.2f} (`portrait-a`), and {second['hardened']:.2f} where it gives {second['base']:.2f} "
        f"(`portrait-b`). The attack needed {'at least ' if worst['at_least'] else ''}{worst['factor']:.1f} times"
    )
    assert said in text
    assert f"FID to the base is {utility['fid_to_base'] / utility['fid_base_seed_to_seed']:.1f} times" in text
    assert ("**nothing**" in text) == (not results["verdict"]["protected"])
    assert (len(results["subjects"]) == 1) == ("one person" in text) and (len(results["seeds"]) == 1) == (
        "one seed" in text
    )
