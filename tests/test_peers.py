"benchmarks/peers.py: that its tables say what was measured, and that a peer that trains otherwise is found."

import copy
import json
import runpy
from pathlib import Path

import pytest

root = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(root / "benchmarks" / "peers.py")


@pytest.fixture
def found():
    once = {"losses": [2.3, 2.2, 2.1], "validation": [2.0, 0.3]}
    same = {kind: copy.deepcopy(once) for kind in ("engine", "documented", "channels last")}
    return same | {"steady": 1}


def test_equal_losses_pass(script, found):
    assert script["check"]("fastai", copy.deepcopy(found), found) == 0
    near = copy.deepcopy(found)
    near["documented"]["losses"][1] += 5e-6
    assert script["check"]("fastai", near, found) == pytest.approx(5e-6)


@pytest.mark.parametrize("kind", ["engine", "documented"])
def test_a_step_with_another_loss_fails(script, found, kind):
    off = copy.deepcopy(found)
    off[kind]["losses"][1] += 2e-5
    with pytest.raises(SystemExit, match=rf"fastai, {kind}: the loss of step 1 is 2\.20002"):
        script["check"]("fastai", off, found)


def test_fit_is_held_to_the_loop_over_batches_that_lie_as_its_own(script, found):
    other = copy.deepcopy(found)
    found["channels last"]["losses"][2] = other["documented"]["losses"][2] = 2.0
    assert script["check"]("fit", other, found) == 0
    with pytest.raises(SystemExit, match="documented: the loss of step 2"):
        script["check"]("skorch", other, found)


def test_keras_may_differ_where_the_last_bit_does(script, found):
    off = copy.deepcopy(found)
    off["engine"]["losses"][1] += 0.01
    off["engine"]["validation"][0] += 0.01
    assert script["check"]("keras_torch", off, found) == 0
    off["engine"]["losses"][0] += 2e-5
    with pytest.raises(SystemExit, match="the loss of step 0"):
        script["check"]("keras_torch", off, found)


def test_a_step_too_few_fails(script, found):
    off = copy.deepcopy(found)
    off["documented"]["losses"].pop()
    with pytest.raises(SystemExit, match="skorch, documented: 2 steps, by hand 3"):
        script["check"]("skorch", off, found)


@pytest.mark.parametrize("name, off", [("accelerate", 2e-5), ("keras_jax", 0.06)])
def test_another_validation_loss_fails(script, found, name, off):
    other = copy.deepcopy(found)
    other["engine"]["validation"][0] += off
    with pytest.raises(SystemExit, match="validation loss"):
        script["check"](name, other, found)


@pytest.mark.parametrize(
    "epochs, ratio, kept", [((1.5, 2.02, 3), 1.01, "yes"), ((1.5, 2.2, 4.4), 1.1, "no")]
)
def test_ratios_are_taken_round_by_round_and_limits_are_kept_or_not(script, epochs, ratio, kept):
    def row(*epochs):
        rest = {"import": [1.0] * 3, "setup": [2.0] * 3, "open": [3.0] * 3}
        return rest | {"engine": list(epochs), "documented": list(epochs)}

    results = {
        "machine": {"cpu": "C", "cores": 2, "threads": 2, "python": "3"},
        "load": 0.1,
        "versions": {"torch": "2"},
        "images": [60_000, 10_000],
        "rounds": 3,
        "seconds": {"hand": row(1, 2, 4), "fit": row(*epochs), "skorch": row(1.2, 2.4, 6)},
        "turns": {
            "engine": {"hand": [1, 2, 4], "again": [2, 4, 8], "fit": epochs, "skorch": [2, 4, 8]},
            "documented": {"hand": [1, 2, 4], "again": [1, 2, 4], "fit": epochs},
        },
        "worst difference": {"fit": 2e-7},
        "steady": 19,
    }
    text = script["report"](results)
    assert f"| slowconv `fit` | {epochs[1]:.2f} | {ratio:.2f} | " in text
    assert "| skorch | 2.40 | 1.20 | 1.20 to 1.50 | 1.00 | 2.00 |" in text
    assert (
        f"engine only, to the hand-written loop, by turns | {ratio:.2f} | 1.05 | {kept} |" in text
    )
    rival = "to the fastest other trainer, skorch"
    assert f"engine only, {rival}, by turns | {ratio / 2:.2f} | 1.00 | yes |" in text
    assert f"as documented, {rival}, by rounds | " in text
    assert "comes to 2.00 and 1.00 of itself" in text
    assert text.index("| hand-written loop |") < text.index("| slowconv `fit` |")


@pytest.mark.parametrize("path", sorted((root / "benchmarks").glob("*.json")), ids=lambda p: p.name)
def test_what_was_measured_is_what_its_page_and_the_readme_say(path):
    script = runpy.run_path(path.with_suffix(".py"))
    text = path.with_suffix(".md").read_text()
    assert text == script["report"](json.loads(path.read_text())), f"run benchmarks/{path.stem}.py"
    assert text.strip() in (root / "README.md").read_text(), (
        "run make bench, or its last three lines"
    )
